"""Studies in and out. A studies file is JSONL, one study a line:

    {"id": "s1", "image": "images/s1.png", "report": "The lungs are clear."}

`image` is relative to the file; `report` may be missing or null where the radiologist's report is
not known, which stage 2 does not need. `view` may say how it was taken, as DICOM does ("PA",
"LATERAL"): the X-ray expert does not judge side views. `age` (the patient's, in years or as DICOM
writes it) and `indication` (why the study was made) are for rewards and prompts that read them.
A study of several images lists them all under `images`, of which `image` is the first. `openrlhf
prepare` writes more keys, see `valor_plugin.data.schema`.

Looking at every image takes minutes where they are many. What was found well is remembered beside
the file, as its fingerprint in FILE.checked, and not looked at again while the file stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.images import LATERAL, check_image
from reward_sdk.jsonl import BadRow, read_rows
from reward_sdk.types import ImageRef


@dataclass(frozen=True)
class Study:
    """One chest X-ray examination.

    Attributes:
        id: id of the study, which no other in its file has.
        image: path of the X-ray: the frontal one, where the study has one.
        report: the radiologist's report without tags, or None.
        view: how the X-ray was taken, as DICOM says it, such as "PA" or "LATERAL"; None where that
            is not known.
        age: the patient's age in years, 0 to 150; None where it is not known.
        indication: why the study was made; None where that is not known.
        others: the study's other X-rays, in the order in which a model may be shown them.
    """

    id: str
    image: Path
    report: str | None = None
    view: str | None = None
    age: float | None = None
    indication: str | None = None
    others: tuple[ImageRef, ...] = ()

    @property
    def image_ref(self) -> ImageRef:
        """The X-ray as rewards take it."""
        return ImageRef(path=str(self.image), view=self.view)

    def shown(self, most: int) -> list[str]:
        """Paths of the X-rays that a model is shown, which are at most `most`; `image` is the
        first."""
        return [str(ref.path) for ref in (self.image_ref, *self.others)[:most]]

    @property
    def is_frontal(self) -> bool:
        """Whether `image` may be a frontal one: nothing is known that says otherwise."""
        return (self.view or "").upper() not in LATERAL


def read_studies(path: str | Path) -> list[Study]:
    """The studies of a JSONL file, see `reward_sdk.jsonl`; every image is checked, unless the file
    is the one whose images were checked before.

    Raises:
        ConfigError: the file is missing or empty, a line is not a study, an id occurs twice, or an
            image is missing or cannot be read; names file and line.
    """
    studies: list[Study] = []
    if problem := next(problems_of(path, studies), None):
        raise ConfigError(problem)
    remember(Path(path), len(studies), _found_well.get(Path(path).resolve()))
    return studies


def problems_of(path: str | Path, studies: list[Study]) -> Iterator[str]:
    """Everything for which `read_studies` would refuse a file, as it is found.

    Args:
        path: the studies file, JSONL.
        studies: list to which the file's studies are added, also those whose id or image is wrong.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = Path(path)
    fingerprint = _fingerprint(path) if path.is_file() else None  # before it may be replaced
    places: list[str] = []
    first: dict[str, str] = {}
    row = None
    for row in read_rows(path, "studies"):
        place = f"{path}, line {row.number}"
        if isinstance(row, BadRow):
            yield f"{place}: {row.problem}"
            continue
        if row.image is None:
            yield f"{place}: the row has no 'image' (a text){row.has}"
            continue
        if row.id in first:
            yield f"{place}: id {row.id!r} was used before, in {first[row.id]}"
        first[row.id] = place
        if any("\0" in (ref.path or "") for ref in row.images):
            yield f"{place}: 'image': a path has no null character"
            continue
        # Not resolved: to follow links takes a look at every folder on the way.
        image, *others = (replace(ref, path=os.path.abspath(ref.path or "")) for ref in row.images)
        report = row.reference if row.report is None else row.report
        studies.append(
            Study(row.id, Path(image.path or ""), report, image.view, row.age, row.indication,
                  tuple(others))
        )  # fmt: skip
        places.append(place)
    if row is None:
        yield f"{path} holds no study: it needs one JSON object per line"
    known = len(studies) >= _MANY and fingerprint in (
        _found_well.get(path.resolve()),
        _remembered(path),
    )
    look = slice(_GLANCE if known else None)
    found_well = True
    for problem in _bad_images(studies[look], places[look]):
        found_well = False
        yield problem
    if fingerprint and found_well:
        _found_well[path.resolve()] = fingerprint


_CHECKED = ".checked"
_MANY = 1000  # ours: fewer studies are looked at in a second
_GLANCE = 16  # ours: studies that are looked at in any case, in case a disk is not there
_found_well: dict[Path, str] = {}
"""Files whose images this process has found well -> their fingerprints before it looked."""


def _fingerprint(path: Path) -> str:
    """Of the place, too, to which the images are relative."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(os.fsencode(path.resolve()))
    return digest.hexdigest()


def _remembered(path: Path) -> str | None:
    """The fingerprint of the file at this place when its images were found well."""
    try:
        record = json.loads(path.with_name(path.name + _CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record.get("sha256") if isinstance(record, dict) else None


def remember(path: Path, studies: int, fingerprint: str | None = None) -> None:
    """Writes down that every image of a studies file was found well, if there are many.

    Args:
        path: the studies file.
        studies: how many studies it has.
        fingerprint: of the file before its images were looked at; by default as it is.
    """
    if studies >= _MANY and _remembered(path) != (fingerprint := fingerprint or _fingerprint(path)):
        record = {"sha256": fingerprint, "studies": studies}
        with suppress(OSError):  # a folder that others own: it is looked at again
            path.with_name(path.name + _CHECKED).write_text(json.dumps(record) + "\n", "utf-8")


def _bad_images(studies: Sequence[Study], places: Sequence[str]) -> Iterator[str]:
    """What is wrong with each image that cannot be used, and its place."""

    def problem(study: Study) -> str:
        try:
            for image in (study.image_ref, *study.others):
                check_image(image)
        except ScoringError as error:
            return f"study {study.id!r}: {error}"
        return ""

    quiet = None if len(studies) >= _MANY else True  # None: unless nobody watches
    with ThreadPoolExecutor(16) as pool:
        seen = tqdm(
            pool.map(problem, studies), "looking at the images", len(studies), disable=quiet
        )
        for place, found in zip(places, seen, strict=True):
            if found:
                yield f"{place}: {found}"


def write_studies(studies: Iterable[Study], path: Path) -> None:
    """Writes a studies file whose image paths are relative to it where they can be."""
    parent = path.parent.resolve()

    def place(image: str | Path) -> str:
        inside = Path(image).is_relative_to(parent)
        return str(Path(image).relative_to(parent) if inside else image)

    with path.open("w", encoding="utf-8") as file:
        for study in studies:
            row: dict[str, Any] = {
                "id": study.id, "image": place(study.image), "report": study.report
            }  # fmt: skip
            for key in ("view", "age", "indication"):
                if (value := getattr(study, key)) is not None:
                    row[key] = value
            if study.others:
                row["images"] = [
                    {"path": place(ref.path or ""), "view": ref.view}
                    for ref in (study.image_ref, *study.others)
                ]
            file.write(json.dumps(row) + "\n")
