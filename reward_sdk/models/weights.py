"""Reading a stranger's file of weights, of the kinds that `torch.save` writes, without its code.

Such a file is a pickle, which is a program, beside the numbers of its tensors; and `torch.load`
hands files of other kinds, such as TorchScript archives, to readers that execute code and write
files. So nothing of torch's reads a file here. `read_weights` says no to every other kind of file
by its structure, and runs the pickle in a machine that knows tensors, ordered dictionaries, sets
and, where the caller wants them, inert `Layer`s; it can neither call nor change anything else.
Every tensor has to lie within its storage, and every storage within the file. Time is not bounded:
a small pickle can name a structure that takes forever to walk. Of the older format all numbers are
copied.
"""

from __future__ import annotations

import io
import mmap
import pickle
import re
import stat
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from reward_sdk.errors import ConfigError, one_line, plain

_RECORD = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id"
)
_ENCRYPTED = 1  # a flag of zip's
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before 1.6, as its first pickle says it
_HEAD = pickle.dumps(_MAGIC, 2)  # 15 bytes
_PROTOCOL = 1001  # the second pickle
_PICKLE = 1 << 22  # ours: bytes; twenty times what a language model of a thousand tensors needs

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Layer:
    """Stands in for an object of a layer's class: it has the attributes, and does nothing.

    That `__setstate__` exists also keeps a file from setting attributes of this class itself.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def read_weights(path: Path, layers: tuple[str, ...] = (), mapped: bool = False) -> Any:
    """What `torch.save` put into a file, zip or legacy, on the CPU.

    Args:
        path: the file to read, a regular one or a link to one, as the hub's cache is made of.
        layers: names of packages and modules whose objects the file may hold; they are read as
            `Layer`s.
        mapped: whether tensors keep their numbers in the file, which then must not change, until
            they are used; else, and where they are not aligned as torch has aligned them since 1.6,
            they are copied.

    Raises:
        ConfigError: the file is of another kind, is damaged, or wants anything but tensors; names
            the file, what is wrong and what to do.
    """
    if not path.is_file():  # which does not open it: a pipe would wait for its writer
        raise ConfigError(f"weights {path}: no regular file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
            _refuse_other_kinds(path, start)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if start.startswith(_HEAD):
                return _Legacy(path, data, layers, mapped).read()
            return _Zip(path, data, layers, mapped, zipfile.ZipFile(file).infolist()).read()
    except ConfigError:
        raise
    except Exception as error:  # a pickle that is damaged, or meant to harm, raises anything
        raise ConfigError(
            f"weights {path}: damaged, cut short or not of torch.save, fetch it again; nothing of "
            f"it was executed: {one_line(error)}"
        ) from None


def check_weights(path: Path) -> None:
    """Raises ConfigError for what `read_weights` refuses; a zip archive's numbers are not read."""
    read_weights(path, mapped=True)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if start.startswith((_HEAD, b"PK\x03\x04")):
        return
    if start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer in place of the weights: fetch them with `git lfs pull`"
    elif start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        found = "a web page in place of the weights, as a failed download leaves it: fetch it again"
    else:
        found = (
            "no file of torch.save's: neither its zip archive nor its format before torch 1.6; "
            "nothing of it was executed, do not trust it"
        )
    raise ConfigError(f"weights {path}: {found}")


class _Reader:
    """What both formats share. Subclasses know where the numbers of a storage lie."""

    def __init__(self, path: Path, data: mmap.mmap, layers: tuple[str, ...], mapped: bool) -> None:
        self._path, self._data, self._layers, self._mapped = path, data, layers, mapped

    def refuse(self, why: str) -> ConfigError:
        return ConfigError(f"weights {self._path}: refused, because {plain(why)}")

    def unpickle(self, file: io.BytesIO, storage: Callable[..., Tensor] | None = None) -> Any:
        return _Unpickler(file, self, storage, self._layers).load()

    def numbers(self, dtype: torch.dtype, count: int, offset: int) -> Tensor:
        """(count,): a storage, from its place in the file."""
        if not count:  # which frombuffer does not take
            return torch.empty(0, dtype=dtype)
        size = count * dtype.itemsize
        found = torch.frombuffer(self._data, dtype=torch.uint8, count=size, offset=offset)
        aligned = offset % dtype.itemsize == 0  # else processors may fault
        return (found if self._mapped and aligned else found.clone()).view(dtype)


class _Zip(_Reader):
    """torch's format since 1.6: a zip archive of the pickle and a record per storage."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        layers: tuple[str, ...],
        mapped: bool,
        entries: Iterable[zipfile.ZipInfo],
    ) -> None:
        super().__init__(path, data, layers, mapped)
        prefix = ""
        self._places: dict[str, tuple[int, int]] = {}  # record -> first byte, size
        for entry in entries:
            prefix = prefix or entry.filename.partition("/")[0] + "/"
            name = entry.filename.removeprefix(prefix)
            if name.startswith(("code/", "constants.pkl")):
                raise self.refuse(
                    f"it holds {entry.filename}: a TorchScript archive, which is a program; save "
                    "the model's state_dict with torch.save, or do not use it"
                )
            if not (entry.filename.startswith(prefix) and _RECORD.fullmatch(name)):
                raise self.refuse(
                    f"it holds {entry.filename}, which torch.save does not write: do not trust it"
                )
            if (
                name in self._places
                or stat.S_ISLNK(entry.external_attr >> 16)
                or entry.flag_bits & _ENCRYPTED
                or entry.compress_type != zipfile.ZIP_STORED
                or entry.compress_size != entry.file_size
            ):
                raise self.refuse(
                    f"its record {entry.filename} is there twice, a link, encrypted or compressed, "
                    "as torch.save's are not: do not trust it"
                )
            # The local header, after which the bytes lie, has its own lengths of name and extras.
            lengths = struct.unpack_from("<HH", data, entry.header_offset + 26)
            self._places[name] = entry.header_offset + 30 + sum(lengths), entry.file_size
        if sum(size for _, size in self._places.values()) > len(data):
            raise self.refuse("its records claim more bytes than it has: do not trust it")

    def _record(self, name: str) -> bytes:
        first, size = self._places[name]
        return self._data[first : first + size]

    def read(self) -> Any:
        if "byteorder" in self._places and self._record("byteorder") != b"little":
            raise self.refuse("its numbers are not little-endian: save it on another machine")
        _, size = self._places["data.pkl"]
        if size > _PICKLE:
            raise self.refuse(f"its pickle has {size:,} bytes, and weights need few")
        known: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in known:
                first, size = self._places[f"data/{key}"]
                if count * dtype.itemsize != size:
                    raise self.refuse(
                        f"storage {key} claims {count} numbers of {dtype}, and its record has "
                        f"{size} bytes: do not trust it"
                    )
                known[key] = self.numbers(dtype, count, first)
            return known[key]

        return self.unpickle(io.BytesIO(self._record("data.pkl")), storage)


class _Legacy(_Reader):
    """torch's format before 1.6: five pickles, then the storages, each after its length."""

    def read(self) -> Any:
        pickles = io.BytesIO(self._data[:_PICKLE])
        if [self.unpickle(pickles) for _ in range(2)] != [_MAGIC, _PROTOCOL]:
            raise self.refuse("it is of an unknown version")
        self.unpickle(pickles)  # the machine's sizes of C types, which torch does not use either
        start = pickles.tell()
        claimed: dict[str, tuple[torch.dtype, int]] = {}

        def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
            claimed[key] = dtype, count
            return torch.empty(count, dtype=dtype, device="meta")

        # The lengths stand behind the pickle that needs them, which is therefore read twice.
        self.unpickle(pickles, note)
        known: dict[str, Tensor] = {}
        keys, offset = self.unpickle(pickles), pickles.tell()
        for key in keys:
            dtype, count = claimed[key]
            [found] = struct.unpack_from("<q", self._data, offset)
            if found != count:
                raise self.refuse(
                    f"storage {key} claims {count} numbers, and {found} follow: do not trust it"
                )
            known[key] = self.numbers(dtype, count, offset + 8)
            offset += 8 + count * dtype.itemsize
        pickles.seek(start)
        return self.unpickle(pickles, lambda key, *_: known[key])


class _Unpickler(pickle._Unpickler):
    """The machine: pickle's own in Python, whose memo does not grow to an index that a file names.

    Functions that a file may call are made anew for each time that it names them, so that it gets
    no hold of torch's own or of those of a later file.

    Args:
        file: of one or several pickles.
        reader: says no.
        storage: (key, dtype, numbers) -> the storage as a tensor, (numbers,).
        layers: see `read_weights`.
    """

    def load_build(self) -> None:
        """Gives a `Layer` its attributes. Tensors have methods of torch's for this, which would
        change them, and what dictionaries get here is torch's metadata."""
        state = self.stack.pop()  # pyright: ignore[reportAttributeAccessIssue]
        built = self.stack[-1]  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(built, Layer) and isinstance(state, dict):
            built.__setstate__(state)
        elif not isinstance(built, OrderedDict):
            raise self._reader.refuse("it changes what is no layer: do not trust it")

    dispatch: ClassVar = {
        code: run
        for code, run in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]  # which allocates what a file claims
    } | {pickle.BUILD[0]: load_build}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        file: io.BytesIO,
        reader: _Reader,
        storage: Callable[..., Tensor] | None,
        layers: tuple[str, ...],
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._reader, self._storage, self._layers = reader, storage, layers

    def find_class(self, module: str, name: str) -> Any:
        if any(f"{module}.".startswith(f"{package}.") for package in self._layers):
            return Layer
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case (("builtins" | "__builtin__"), "set"):
                return set
            # Hooks, gradients and metadata, the rest of the arguments, are dropped.
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return lambda numbers, offset, size, stride, *_: _view(
                    numbers, offset, size, stride
                )
            case "torch._utils", "_rebuild_tensor_v3":  # of dtypes without a storage class
                return lambda numbers, offset, size, stride, grad, hooks, dtype, *_: _view(
                    numbers.view(dtype), offset, size, stride
                )
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", _ if name in _STORAGES:
                return _STORAGES[name]
            case "torch.storage", "UntypedStorage":
                return torch.uint8
            case "torch", _ if isinstance(dtype := getattr(torch, name, None), torch.dtype):
                return dtype
        raise self._reader.refuse(
            f"it wants {module}.{name}, which is no part of such weights; nothing of it was "
            "executed: do not trust it"
        )

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case "module", layer, *_:  # before 1.6, with its source code
                return layer
            case ("storage", torch.dtype() as dtype, str(key), _, int(count), *views) if (
                self._storage and not any(views)
            ):
                return self._storage(key, dtype, count)
        raise self._reader.refuse("it refers to what is no storage of its own: do not trust it")


def _view(numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A tensor within its storage, which torch sees to, and no larger than that."""
    found = numbers.as_strided(size, stride, offset)
    if found.numel() > len(numbers):
        raise ValueError(f"a tensor of the {found.shape} in a storage of {len(numbers)} numbers")
    return found
