"""Files that stand where weights should. Those that are programs touch a marker if they are run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch


class Touch:
    """Unpickled, it creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Open(Touch):
    """The same by a built-in function."""

    def __reduce__(self):
        return open, (str(self.marker), "w")


class Script(torch.nn.Module):
    """In a TorchScript archive, it writes the marker while it is loaded."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), self.marker)


def torch_script(path: Path, marker: Path) -> None:
    torch.jit.script(Script(str(marker))).save(str(path))
    marker.unlink(missing_ok=True)


def save(content: object, path: Path, legacy: bool = False) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def edited(
    path: Path,
    edit: Callable[[str, bytes], bytes] = lambda name, content: content,
    more: dict[str, bytes] | None = None,
    **entry: int,
) -> None:
    """Ten numbers as torch.save writes them, with records changed or added, and fields of zip's."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(10.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        records = [(name, edit(name, old.read(name))) for name in old.namelist()]
        for name, content in [*records, *(more or {}).items()]:
            info = zipfile.ZipInfo(name)
            for key, value in entry.items():
                setattr(info, key, value)
            new.writestr(info, content)


def with_pickle(path: Path, program: bytes) -> None:
    """An archive with another pickle."""
    edited(path, lambda name, content: program if name.endswith("data.pkl") else content)


def replaced(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def lying_storage(path: Path, _: Path) -> None:
    many = b"J" + (1 << 30).to_bytes(4, "little")
    edited(
        path, lambda name, c: c.replace(b"K\n", many) if name.endswith("data.pkl") else c
    )  # of the storage and of the tensor


def lying_tensor(path: Path, _: Path) -> None:
    edited(path, lambda name, c: c.replace(b"K\n\x85", b"K\x7f\x85"))


def lying_stride(path: Path, _: Path) -> None:
    """10 numbers that claim to be a million."""
    tensor = torch.arange(10.0).as_strided((1000, 1000), (0, 0))
    save({"a": tensor}, path)


def lying_record(path: Path, _: Path) -> None:
    """The zip's list of contents says more bytes than there are."""
    edited(path)
    content = path.read_bytes()
    at = content.rindex(b"data/0") - 46  # the record's entry in the list
    while content[at : at + 4] != b"PK\x01\x02":
        at -= 1
    path.write_bytes(content[: at + 20] + struct.pack("<II", 1 << 30, 1 << 30) + content[at + 28 :])


def lying_legacy(path: Path, _: Path) -> None:
    save({"a": torch.arange(10.0)}, path, legacy=True)
    replaced(path, b"K\n", b"J" + (1 << 30).to_bytes(4, "little"))


def short_legacy(path: Path, _: Path) -> None:
    save({"a": torch.arange(10.0)}, path, legacy=True)
    path.write_bytes(path.read_bytes()[:-8])


def tar(path: Path, marker: Path) -> None:
    """torch's format of 2016, whose pickles `weights_only=True` executed until torch 2.6."""
    program = pickle.dumps(Touch(marker), 2)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(program)
            archive.addfile(entry, io.BytesIO(program))


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


PROTO, LONG_BINPUT, BINUNICODE8, BYTEARRAY8 = b"\x80\x05", b"r", b"\x8d", b"\x96"
HUGE = (1 << 34).to_bytes(8, "little")

HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "TorchScript": torch_script,
    "pickle": lambda path, marker: path.write_bytes(pickle.dumps(Touch(marker), 2)),
    "pickle in a zip": lambda path, marker: save({"a": Touch(marker)}, path),
    "open in a zip": lambda path, marker: save({"a": Open(marker)}, path),
    "pickle in a legacy file": lambda path, marker: save({"a": Touch(marker)}, path, legacy=True),
    "pickle of protocol 4": lambda path, marker: with_pickle(path, pickle.dumps(Touch(marker), 4)),
    "tar": tar,
    "zip with another record": lambda path, _: edited(path, more={"archive/data/0.py": b"1"}),
    "zip with another folder": lambda path, _: edited(path, more={"../escaped": b"1"}),
    "zip with a record twice": lambda path, _: edited(path, more={"archive/data/0": b"1" * 40}),
    "zip with a link": lambda path, _: edited(path, external_attr=0o120777 << 16),
    "zip bomb": lambda path, _: edited(
        path,
        lambda name, content: bytes(1 << 28) if name.endswith("data/0") else content,
        compress_type=zipfile.ZIP_DEFLATED,
    ),
    "storage that lies": lying_storage,
    "tensor that lies": lying_tensor,
    "stride that lies": lying_stride,
    "record that lies": lying_record,
    "legacy storage that lies": lying_legacy,
    "legacy file cut short": short_legacy,
    "memo that lies": lambda path, _: with_pickle(path, b"N" + LONG_BINPUT + b"\xff" * 4 + b"."),
    "text that lies": lambda path, _: with_pickle(path, PROTO + BINUNICODE8 + HUGE + b"."),
    "bytes that lie": lambda path, _: with_pickle(path, PROTO + BYTEARRAY8 + HUGE + b"."),
    "pipe": fifo,
    "link to a pipe": link_to_fifo,
    "link to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "folder": lambda path, _: path.mkdir(),
    "link to nothing": lambda path, _: path.symlink_to("nothing"),
    "LFS pointer": lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "web page": lambda path, _: path.write_text("\n<!DOCTYPE html><title>404</title>"),
    "nothing": lambda path, _: path.write_bytes(b""),
}
"""Kind -> what writes it: (file, marker)."""
