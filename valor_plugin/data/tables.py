"""Finding the files that datasets come in, and reading them row by row, so that memory does not
grow with them."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from reward_sdk.errors import ConfigError, nearest

_DEPTH = 5  # ours: folders below the given one; `wget -r` makes four
_FANOUT = 1000  # ours: a folder with more entries holds studies, not tables
csv.field_size_limit(1 << 24)  # reports stand in single fields


def places(src: Path, *names: str) -> Iterator[Path]:
    """The files and folders of these names in a folder and below, the highest first; on one height
    those of the first name. "files/p10" is a p10 inside of a folder called files."""
    level = [src]
    for _ in range(_DEPTH):
        yield from (folder / name for name in names for folder in level if (folder / name).exists())
        level = sorted(below for folder in level for below in _folders(folder))


def find(src: Path, *names: str) -> Path | None:
    """The first of the `places`; None if there is none."""
    return next(places(src, *names), None)


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        listed = list(entries)
    return [] if len(listed) > _FANOUT else [Path(e.path) for e in listed if e.is_dir()]


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
        raise ConfigError(
            f"{src} holds no {' or '.join(names)}, neither itself nor in a folder below: it is "
            f"from {source}"
        )
    return found


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked if its name ends in .gz.

    Raises:
        ConfigError: it cannot be read, or is cut off.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast("IO[bytes]", file)
    except EOFError:
        raise ConfigError(f"{path} is cut off: fetch it again") from None
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
        has = lines.fieldnames or []
        for column in columns:
            if column not in has:
                raise ConfigError(f"{path} has no column {column!r}: {nearest(column, has)}")
        try:
            for row in lines:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{path}, line {lines.line_num}: the row has more or fewer fields than the "
                        f"{len(has)} of the head"
                    )
                yield row
        except csv.Error as error:
            raise ConfigError(f"{path}, line {lines.line_num}: {error}") from None


def json_items(path: Path, prefix: str) -> Iterator[Any]:
    """The values at a place of a JSON file, one at a time, as `ijson.items` finds them: "item" for
    those of a list, "train.item" for those of the list under "train".

    Raises:
        ConfigError: the file cannot be read, or is no JSON.
    """
    import ijson

    with _json(path) as file:
        yield from ijson.items(file, prefix, use_float=True)


def json_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of the object that a JSON file holds, one at a time.

    Raises:
        ConfigError: the file cannot be read, or is no JSON.
    """
    import ijson

    with _json(path) as file:
        yield from ijson.kvitems(file, "", use_float=True)


def json_keys(path: Path) -> list[str]:
    """The first keys of the object that a JSON file holds, up to the value of the first that is an
    object or a list; none if it holds something else.

    Raises:
        ConfigError: the file cannot be read, or is no JSON.
    """
    import ijson

    keys: list[str] = []
    with _json(path) as file:
        for place, event, value in ijson.parse(file):
            if not place and event not in ("start_map", "map_key"):
                break
            if event == "map_key":
                keys.append(value)
            elif place and event in ("start_map", "start_array"):
                break
    return keys


@contextmanager
def _json(path: Path) -> Iterator[IO[bytes]]:
    from ijson.common import JSONError

    with opened(path) as file:
        try:
            yield file
        except (JSONError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no JSON: {str(error).splitlines()[0]}") from None
