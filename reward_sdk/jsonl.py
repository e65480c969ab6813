"""Reading reports from JSONL files: what `reward-sdk score` and `reward-sdk audit` are given.

One JSON object a line; images are relative to the file:

    {"id": "s1", "response": "<report> Clear. </report>", "reference": "Clear.", "image": "s1.png"}

Of the keys only `id` must be there, a text or an integer. `report` is another name of `reference`,
so that a studies file works as it is; a report that still has its tags is taken out of them. `view`
says how the image was taken, see `ImageRef`; `images` has all of a study's, paths or objects with
`path` and `view`, of which `image` is the first; `age` is the patient's, a number of years or a
text such as "82", "64 years" or DICOM's "082Y" and "006M"; `indication` is why the study was made.
A line has at most 4 MiB, a text in it 100,000 characters. A byte order mark at the start is passed
over.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from reward_sdk.errors import ConfigError
from reward_sdk.text import MAX_TEXT, plain_reference, years_of
from reward_sdk.types import ImageRef

_HEADER = re.compile(rb'"?[\w .-]*"?(?:[,;\t]"?[\w .-]*"?)+')

_TEXTS = ("response", "reference", "report", "image", "view", "indication")
_KEYS = ("id", "age", "images", *_TEXTS)
KINDS = {
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
"""What JSON calls them; their content may be a patient's, and stays out of messages."""
T = TypeVar("T")

MAX_LINE = 4 << 20  # ours: bytes of a line: two texts, if every character is escaped


@dataclass(frozen=True)
class Row:
    """A line that can be used, as a row of the data.

    Attributes:
        number: number of the line in the file, counted from 1.
        id: the study's id, never blank.
        response: the text that a policy wrote; None if the row has none.
        reference: the radiologist's report: `reference`, else `report`; None if the row has
            neither.
        report: what the row has under `report` alone; None if nothing.
        image: the X-ray, its path joined to the file's folder; None if the row has none.
        images: every X-ray of the study, `image` first; empty if the row has none.
        age: the patient's age in years, 0 to 150; None if the row has none.
        indication: why the study was made; None if the row does not say it.
        has: the end of a message about a key that the row lacks: those that it has beside ours.
    """

    number: int
    id: str
    response: str | None
    reference: str | None
    report: str | None
    image: ImageRef | None
    images: tuple[ImageRef, ...]
    age: float | None
    indication: str | None
    has: str


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be used: its number, what is wrong, and the line, cut at 100,000 bytes."""

    number: int
    problem: str
    text: str


def read_rows(path: str | Path, what: str = "data") -> Iterator[Row | BadRow]:
    """The rows of a file, one at a time; blank lines are none.

    Whether an image can be read is left to the rewards that look at it.

    Args:
        path: the JSONL file.
        what: what messages call the file, such as "studies".

    Raises:
        ConfigError: the file cannot be read, or is in another format than JSONL.
    """
    path = Path(path)
    try:
        # As bytes, lines end in "\n" alone: reports may hold U+2028 and its like.
        with path.open("rb") as file:
            first = True
            for number, line in enumerate(_lines(file), 1):
                line = line.removeprefix(BOM_UTF8) if number == 1 else line
                if first and line.strip():
                    first = False
                    if other := _other_format(line, path.suffix):
                        raise ConfigError(f"{what} {path}: {other}")
                if line.strip():
                    try:
                        yield _row(number, line, path.parent)
                    except ConfigError as error:
                        text = line[:MAX_TEXT].decode("utf-8", "backslashreplace").rstrip("\n")
                        yield BadRow(number, str(error), text)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long no more than shows it."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def _other_format(start: bytes, suffix: str) -> str:
    """What a file is by its first line, and what to do, if it is no JSONL; else ""."""
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # also UTF-32's
        return "UTF-16 or UTF-32 text, as its byte order mark (BOM) says: save it as UTF-8"
    text = start.strip()
    if text.startswith(b"["):
        return (
            "one JSON array: write one object a line. In Python: "
            "pandas.read_json(JSON).to_json(JSONL, orient='records', lines=True)"
        )
    if (
        text
        and not text.startswith(b"{")
        and (suffix in (".csv", ".tsv") or _HEADER.fullmatch(text))
    ):
        other = next((mark for mark in ("\t", ";") if mark.encode() in text), "")
        separated = f", sep={other!r}" if other else ""
        return (
            f"CSV, not JSONL. In Python: pandas.read_csv(CSV{separated}).to_json(JSONL, "
            "orient='records', lines=True)"
        )
    return ""


def study_key(study: str) -> str:
    """What the spellings of one study's id have in common: MIMIC's without the leading s, and
    without the .0 of a column that went through floats; any other id as it is.

    >>> study_key("s50414267") == study_key("50414267.0")
    True
    """
    found = re.fullmatch(r"[sS]?(\d+)(?:\.0)?", study.strip(), re.ASCII)
    return found[1] if found else study.strip()


def count_lines(path: str | Path) -> int:
    """How many lines a file has; OSError as `open` raises it."""
    with open(path, "rb") as file:
        return sum(1 for _ in _lines(file))


def _has(row: dict[str, Any]) -> str:
    """The keys of a row that are none of ours, for a message: one may be meant."""
    others = [repr(key[:100]) for key in row if key not in _KEYS]
    return f"; it has {', '.join(others[:10])}" if others else ""


def _given(row: dict[str, Any], key: str) -> str | None:
    """The text of a row under a key; None for a blank one."""
    text = row.get(key)
    return text if text and text.strip() else None


def _read(row: dict[str, Any], key: str, reader: Callable[[Any], T]) -> T:
    """What a reader makes of the value under a key; ConfigError, which names it, for its
    ValueError."""
    try:
        return reader(row.get(key))
    except ValueError as error:
        raise ConfigError(f"{key!r}: {error}") from None


def _images(row: dict[str, Any], folder: Path) -> tuple[ImageRef, ...]:
    """The X-rays of a row, from `images`, or `image` alone."""
    image, listed = _given(row, "image"), row.get("images")
    if listed is None or listed == []:
        return (ImageRef(str(folder / image), view=row.get("view")),) if image else ()
    found = []
    for one in listed if isinstance(listed, list) else [None]:
        path, view = (one.get("path"), one.get("view")) if isinstance(one, dict) else (one, None)
        if not isinstance(path, str) or not path.strip() or not isinstance(view, str | None):
            raise ConfigError(
                "'images' must be a list of paths, or of objects with 'path', a text, and 'view', "
                "a text or null"
            )
        found.append(ImageRef(str(folder / path), view=view))
    if image is not None and str(folder / image) != found[0].path:
        raise ConfigError(f"'image' is {image!r}, and the first of 'images' another")
    return tuple(found)


def _report(text: str | None) -> str | None:
    return None if text is None else plain_reference(text)


def _row(number: int, text: bytes, folder: Path) -> Row:
    if len(text) > MAX_LINE:
        raise ConfigError(f"the line has more than {MAX_LINE:,} bytes")
    try:
        row = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"no UTF-8 text: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError("a row is a JSON object with `id`")
    name = row.get("id")
    if isinstance(name, int | float) and not isinstance(name, bool) and name == name // 1:
        name = str(int(name))  # as pandas writes MIMIC-CXR's, 1.0 where the column has a gap
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"the row has no 'id' (a text or an integer){_has(row)}")
    for key in _TEXTS:
        if row.get(key) != row.get(key):  # NaN, which pandas has for what is not there
            row[key] = None
        if not isinstance(row.get(key), str | None):
            raise ConfigError(f"{key!r} must be a text or null, not {KINDS[type(row[key])]}")
        if len(row.get(key) or "") > MAX_TEXT:
            raise ConfigError(f"{key!r} has more than {MAX_TEXT:,} characters")
    images = _images(row, folder)
    reference, report = (_read(row, key, _report) for key in ("reference", "report"))
    return Row(
        number,
        name,
        row.get("response"),
        reference or report,
        report,
        images[0] if images else None,
        images,
        _read(row, "age", years_of),
        _given(row, "indication"),
        _has(row),
    )
