"""A study as its dataset has it, and how it becomes a row of a studies file by the user's choices.

Nothing is guessed: what a dataset does not say is None, and a study that cannot be used is rejected
with a reason that can be counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reward_sdk.errors import ConfigError, ScoringError, explain
from reward_sdk.images import check_image
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import OBSERVATIONS, label_of
from reward_sdk.text import MAX_TEXT, plain_reference, years_of
from reward_sdk.types import ImageRef
from valor_plugin.data.schema import RowBox, RowImage, StudyRow, split_of
from valor_plugin.data.sections import (
    Choice,
    Marks,
    NoReport,
    indication_of,
    joined,
    report_of,
    sections_of,
    without_marks,
)
from valor_plugin.data.splits import patient_key
from valor_plugin.data.views import order

NO_IMAGE = "the dataset names no image"
MANY_REPORTS = "its images have different reports"
KEPT_OUT = "kept out of training"
LEFT_OUT = frozenset({KEPT_OUT, "in no split of the file", NO_IMAGE, MANY_REPORTS})
"""Reasons that are the user's choice, or lie in the dataset as it was published: no faults."""


class Rejected(Exception):
    """A study that cannot be used. Its argument is the reason, which holds nothing of a patient, so
    that it can be counted and shown; `detail` says more, for the user's own files."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Draft:
    """One study as its dataset has it.

    Attributes:
        images: file and view of each X-ray, in the dataset's order; see `views.view_of`.
        patient: id of the patient; None where the dataset has none.
        text: the whole report, out of which sections are cut; None where the dataset has sections,
            or no report.
        sections: name -> text, as `sections.sections_of` names them, where the dataset has
            sections.
        no_report: why there is no report, where there is none, in words that can be counted.
        age: the patient's age, in any form that `reward_sdk.text.years_of` reads.
        sex: the patient's sex; what does not begin with F or M is taken as not known.
        labels: observation -> 1, 0, -1 or None; None where the dataset has no labels.
        boxes: boxes whose `image` is a position in `images`.
        split: the split by any of its usual names; None where the dataset has none.
        merged: how many rows of the dataset, beyond the first, became this one study.
    """

    images: tuple[tuple[Path, str | None], ...]
    patient: str | None = None
    text: str | None = None
    sections: Mapping[str, str | None] = field(default_factory=dict)
    no_report: str | None = None
    age: str | float | None = None
    sex: str | None = None
    labels: Mapping[str, int | None] | None = None
    boxes: tuple[RowBox, ...] = ()
    split: str | None = None
    merged: int = 0


@dataclass(frozen=True)
class Choices:
    """What the user decides of how a dataset is prepared.

    Attributes:
        report: which section is the reference.
        marks: what becomes of marks of de-identification, see `sections.without_marks`.
        splits: file whose splits stand in the place of the dataset's, see `splits.read_splits`;
            studies that it does not name are left out. None for the dataset's own.
        keep_out: file of patients who are left out of training, see `splits.read_patients`.
        check_images: whether every image is opened.
    """

    report: Choice = "findings"
    marks: Marks = "remove"  # ours
    splits: Path | None = None
    keep_out: Path | None = None
    check_images: bool = False


@dataclass(frozen=True)
class Completed:
    """A row, and what the card counts of it.

    Attributes:
        row: the row.
        no_report: why the row has no report; None where it has one.
        digest: digest of the report's words, equal for texts that differ in case and spaces alone;
            None without a report.
        said: what the rule labeler reads in the report, in the order of `OBSERVATIONS`; empty
            without a report.
        absent: how many of the study's images are not there.
        merged: see `Draft`.
    """

    row: dict[str, Any]
    no_report: str | None
    digest: str | None
    said: list[int | None]
    absent: int
    merged: int


def labels_of(values: Sequence[str | float | None]) -> dict[str, int | None]:
    """Labels in the order of `OBSERVATIONS`, in any form that `label_of` reads.

    Raises:
        Rejected: a label is of another.
    """
    try:
        return {n: label_of(value) for n, value in zip(OBSERVATIONS, values, strict=True)}
    except ValueError as error:
        raise Rejected(f"a label is {error}") from None


def only(values: Sequence[str | None], reason: str) -> str | None:
    """The one value that all rows of a study have, but for case and spaces: its first form.

    Raises:
        Rejected: they have several; with this reason.
    """
    if len({" ".join((value or "").lower().split()) for value in values}) > 1:
        raise Rejected(reason)
    return values[0]


def complete(
    study: str,
    draft: Draft,
    split: str | None,
    source: str,
    choices: Choices,
    keep_out: frozenset[str],
    folder: Path,
) -> Completed:
    """The row of a study.

    Args:
        study: id of the study.
        draft: the study as its dataset has it.
        split: the study's split in `choices.splits`; None where it has none there.
        source: name of the dataset.
        choices: what the user decided.
        keep_out: keys of the patients who are left out of training.
        folder: folder of the studies file, to which paths are relative.

    Raises:
        Rejected: the study cannot be used, or is left out.
    """
    if choices.splits is None:
        try:
            split = split_of(draft.split)
        except ValueError as error:
            raise Rejected("its split has an unknown name", str(error)) from None
    elif split is None:
        raise Rejected("in no split of the file")
    if draft.patient and split != "test" and patient_key(draft.patient) in keep_out:
        raise Rejected(KEPT_OUT)
    images, boxes, absent = _images(draft, choices.check_images, folder)
    texts = _texts(study, draft, choices.marks)
    report = report_of(texts, choices.report)
    no_report = None
    if isinstance(report, NoReport):
        report, no_report = None, draft.no_report or report.reason
    elif problem := _unreadable(report):
        report, no_report = None, problem
    try:
        age = years_of(draft.age)
    except ValueError:  # such as "> 89": not known, as far as a number goes
        age = None
    labels = (
        None if draft.labels is None else {name: draft.labels.get(name) for name in OBSERVATIONS}
    )
    sex = (draft.sex or "").strip().upper()[:1]
    sex = sex if sex in ("F", "M") else None
    row = {
        "id": study, "patient": draft.patient or None,
        "image": images[0].path, "view": images[0].view, "images": images,
        "report": report, "findings": texts.get("findings"),
        "impression": texts.get("impression"), "indication": indication_of(texts),
        "comparison": texts.get("comparison"), "age": age, "sex": sex, "labels": labels,
        "boxes": boxes, "split": split, "repeats_train": None, "source": source,
    }  # fmt: skip
    try:
        content = StudyRow.model_validate(row).model_dump(mode="json")
    except ValidationError as error:
        raise Rejected("does not fit the schema", explain(error)) from None
    if report is None:
        return Completed(content, no_report, None, [], absent, draft.merged)
    words = " ".join(report.lower().split())
    digest = hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
    [read] = label_reports([report])
    said = [read[name] for name in OBSERVATIONS]
    return Completed(content, None, digest, said, absent, draft.merged)


def _unreadable(report: str) -> str | None:
    """Why a file with this report would be refused where it is read; None if it would not."""
    if len(report) > MAX_TEXT:
        return f"more than {MAX_TEXT:,} characters"
    try:
        plain_reference(report)
    except ValueError:
        return "broken <report> tags"
    return None


def _images(draft: Draft, check: bool, folder: Path) -> tuple[list[RowImage], list[RowBox], int]:
    """The images that are there, in order, the boxes on them, and how many are not there."""
    first = {path: i for i, (path, _) in reversed(list(enumerate(draft.images)))}
    there = [i for path, i in sorted(first.items(), key=itemgetter(1)) if path.is_file()]
    if not there:
        raise Rejected("no image is there" if draft.images else NO_IMAGE)
    there = [there[i] for i in order([draft.images[i][1] for i in there])]
    if check:
        for i in there:
            try:
                check_image(ImageRef(str(draft.images[i][0])))
            except ScoringError as error:
                raise Rejected("an image cannot be read", str(error)) from None
    images = []
    for path, view in (draft.images[i] for i in there):
        path = path.resolve()
        inside = path.is_relative_to(folder)
        images.append(RowImage(path=str(path.relative_to(folder) if inside else path), view=view))
    place = {i: position for position, i in enumerate(there)}
    boxes = [
        box.model_copy(update={"image": place[box.image]})
        for box in draft.boxes
        if box.image in place
    ]
    return images, boxes, len(first) - len(there)


def _texts(study: str, draft: Draft, marks: Marks) -> dict[str, str]:
    """Section -> text, as it shall be read; without blank ones."""
    try:
        raw = sections_of(draft.text, study) if draft.text is not None else draft.sections
    except ConfigError as error:
        raise Rejected("its report is not the one that MIMIC-CXR has for it", str(error)) from None
    clean = {name: without_marks(joined(text), marks) for name, text in raw.items() if text}
    return {name: text for name, text in clean.items() if text.strip()}
