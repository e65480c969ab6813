"""Finding the files that datasets come in, and reading them row by row, so that memory does not
grow with them."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any, cast

from reward_sdk.errors import ConfigError, nearest

_DEPTH = 5  # ours: folders below the given one; `wget -r` makes four
_FANOUT = 1000  # ours: a folder with more entries holds studies, not tables
_WHERE = (
    f"neither itself nor {_DEPTH - 1} folders below (into those of more than {_FANOUT:,} entries "
    "it is not looked)"
)
csv.field_size_limit(1 << 24)  # reports stand in single fields
_CHUNK = 1 << 16  # ours: characters of JSON that are read at once
_LARGEST = 1 << 26  # ours: characters of a JSON value; a study has thousands
_ENDS = frozenset(",]}: \t\r\n")  # what may stand behind a value
_SPACE = re.compile(r"[ \t\r\n]*")


def places(src: Path, *names: str) -> Iterator[Path]:
    """The files and folders of these names in a folder and below, the highest first; on one height
    those of the first name. "files/p10" is a p10 inside of a folder called files."""
    level = [src]
    for _ in range(_DEPTH):
        yield from (folder / name for name in names for folder in level if _is_there(folder / name))
        level = sorted(below for folder in level for below in _folders(folder))


def find(src: Path, *names: str) -> Path | None:
    """The first of the `places`; None if there is none."""
    return next(places(src, *names), None)


def _is_there(path: Path) -> bool:
    with suppress(OSError):  # a folder such as lost+found, which is not ours to read
        return path.exists()
    return False


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        listed = list(entries)
        if len(listed) <= _FANOUT:
            return [Path(entry.path) for entry in listed if os.path.isdir(entry.path)]
    return []


def needed(src: Path, source: str, *names: str) -> Path:
    """What `find` finds.

    Args:
        src: the folder that the user named.
        source: where the file is from, for the message.
        names: names that it may have.

    Raises:
        ConfigError: there is no such file.
    """
    found = find(src, *names)
    if found is None:
        raise ConfigError(f"{src} holds no {' or '.join(names)}, {_WHERE}: it is from {source}")
    return found


def tree(src: Path, pattern: str, source: str, *names: str) -> Path:
    """The folder, in a folder or below, that holds one of some names, and a file of a pattern.

    Args:
        src: the folder that the user named.
        pattern: glob of the file; the first that fits is enough.
        source: where the files are from, for the message.
        names: what the folder holds, such as "train", or "files/p10" for a folder called files.

    Raises:
        ConfigError: there is no such folder.
    """
    for place in dict.fromkeys(found.parent for found in places(src, *names)):
        if next(place.glob(pattern), None) is not None:
            return place
    inside = names[0].rpartition("/")[0]
    raise ConfigError(f"{src} holds no {Path(inside, pattern)}, {_WHERE}: it is from {source}")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked if its name ends in .gz.

    Raises:
        ConfigError: it cannot be read, or is cut off.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast("IO[bytes]", file)
    except (EOFError, zlib.error):
        raise ConfigError(f"{path} is cut off or damaged: fetch it again") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None


def csv_rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, gzipped or not, as column -> text.

    Args:
        path: the file.
        columns: columns that it must have; it may have others.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has a row of another length; names
            file, line and column.
    """
    with opened(path) as file:
        lines = csv.DictReader(line.decode("utf-8-sig", "replace") for line in file)
        try:
            has = lines.fieldnames or []
            if columns and not set(columns) & set(has):  # what stands there may be of a patient
                raise ConfigError(
                    f"{path}: the first line does not name its columns, of which it needs "
                    f"{', '.join(columns)}"
                )
            for column in columns:
                if column not in has:
                    raise ConfigError(f"{path} has no column {column!r}: {nearest(column, has)}")
            for row in lines:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{path}, line {lines.line_num}: the row has more or fewer fields than the "
                        f"{len(has)} of the head"
                    )
                yield row
        except csv.Error as error:
            raise ConfigError(f"{path}, line {lines.line_num}: {error}") from None


def json_items(path: Path, *keys: str, under: str | None = None) -> Iterator[Any]:
    """The values of the list that a JSON file holds, one at a time. NaN, which is no JSON but in
    many files, is read as None.

    Args:
        path: the file.
        keys: keys that each value must have, which then is an object; it may have others.
        under: key of the list in the object that the file holds, which has no values if it is not
            there; None if the file holds the list.

    Raises:
        ConfigError: the file cannot be read, is no JSON, holds no list there, or a value lacks a
            key.
    """
    with _json(path) as json:
        if under is not None and not json.enter(under):
            return
        for number, value in enumerate(json.items(), 1):
            yield _having(value, keys, path, number)


def json_pairs(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """The keys and values of the object that a JSON file holds, one at a time; NaN as None.

    Args:
        path: the file.
        keys: keys that each value must have, which then is an object; it may have others.

    Raises:
        ConfigError: the file cannot be read, holds no JSON object, or a value lacks a key.
    """
    with _json(path) as json:
        for number, key in enumerate(json.members(), 1):
            yield key, _having(json.value(), keys, path, number)


def json_lines(path: Path, *keys: str) -> Iterator[Any]:
    """The values that a file holds one behind the other, mostly one a line; NaN as None.

    Args:
        path: the file.
        keys: keys that each value must have, which then is an object; it may have others.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or a value lacks a key.
    """
    with _json(path) as json:
        for number, value in enumerate(json.values(), 1):
            yield _having(value, keys, path, number)


def _having(value: Any, keys: Sequence[str], path: Path, number: int) -> Any:
    """The value, if it is an object with these keys. Of an entry only the number is told: the name
    may hold a patient's."""
    if keys and not (isinstance(value, dict) and value.keys() >= set(keys)):
        raise ConfigError(
            f"{path}, entry {number}: it is no object with the keys {', '.join(keys)}"
        )
    return value


def json_keys(path: Path) -> list[str]:
    """The first keys of the object that a JSON file holds, up to the first whose value is an object
    or a list; none if it holds something else.

    Raises:
        ConfigError: the file cannot be read, or is no JSON.
    """
    found: list[str] = []
    with _json(path) as json:
        if json.next() == "{":
            for key in json.members():
                found.append(key)
                if json.next() in ("{", "["):
                    break
                json.skip()
    return found


@contextmanager
def _json(path: Path) -> Iterator[_Json]:
    with opened(path) as file:
        try:
            yield _Json(file)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no JSON that is read here: {error}") from None


class _Json:
    """JSON that is read a value at a time; a ValueError says that the text is no such."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig")
        self._text, self._at = "", 0
        self._decoder = JSONDecoder(parse_constant=lambda _: None)

    def _more(self) -> bool:
        """Reads on, twice as far as last time if that was too little; False at the end."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > _LARGEST:
            raise ValueError(f"a value is larger than {_LARGEST:,} characters, or is not ended")
        read = self._file.read(max(_CHUNK, len(self._text)))
        self._text += read
        return bool(read)

    def next(self) -> str:
        """The next character that is no space, which stays there; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, characters: str) -> str:
        found = self.next()
        if not found or found not in characters:
            what = repr(found) if found else "the end"
            raise ValueError(f"expected {' or '.join(characters)}, found {what}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The value that is next."""
        self.next()
        while True:
            problem, value = "", None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                problem, end = error.msg, self._at
            if not problem and self._text[end : end + 1] in _ENDS:
                self._at = end
                return value
            length = end - self._at  # what was read may go on: "1" as "1e-05"
            if not self._more():
                if problem:
                    raise ValueError(problem)
                self._at = length
                return value

    def values(self) -> Iterator[Any]:
        """The values up to the end of the file."""
        while self.next():
            yield self.value()

    def items(self) -> Iterator[Any]:
        """The values of the list that is next."""
        self._take("[")
        if self.next() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of the object that is next; the value of each is to be read by the caller."""
        self._take("{")
        if self.next() == "}":
            self._take("}")
            return
        while True:
            if self.next() != '"':
                raise ValueError(f"expected a key, found {self.next()!r}")
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def enter(self, key: str) -> bool:
        """Goes to the value under a key of the object that is next; False if there is none."""
        for other in self.members():
            if other == key:
                return True
            self.skip()
        return False

    def skip(self) -> None:
        """Passes by the value that is next; of a list, value by value."""
        if self.next() == "[":
            for _ in self.items():
                pass
        else:
            self.value()
