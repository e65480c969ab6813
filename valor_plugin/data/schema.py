"""The one schema of a prepared study: what `openrlhf prepare` writes, whatever the dataset.

A row has every key; what a dataset does not say is null, so that tools which guess types from the
first rows see the same columns in every file. docs/data.md has the schema as a table,
docs/study.schema.json as JSON schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reward_sdk.observations import OBSERVATIONS

Split = Literal["train", "validate", "test"]
SPLITS: tuple[Split, ...] = ("train", "validate", "test")
UNSPLIT = "studies"
"""What stands for a split where a dataset has none, in names of files."""

_SPELLINGS = {"val": "validate", "valid": "validate", "validation": "validate", "dev": "validate"}


def split_of(name: str | None) -> Split | None:
    """A split by any of the names that datasets give it; None for a blank one.

    >>> split_of("valid")
    'validate'

    Raises:
        ValueError: the name is of no split.
    """
    if name is None or not name.strip():
        return None
    known = name.strip().lower()
    known = _SPELLINGS.get(known, known)
    for split in SPLITS:
        if split == known:
            return split
    raise ValueError(f"{name!r} is no split: train, validate or test")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowImage(_Row):
    """One X-ray of a study.

    Attributes:
        path: path of the file, relative to the studies file where it lies below its folder.
        view: how the X-ray was taken, see `valor_plugin.data.views`; None where that is not known.
    """

    path: str
    view: str | None


class RowBox(_Row):
    """Where on an X-ray something is seen.

    Attributes:
        image: position in `images` of the X-ray, counted from 0.
        box: left, top, right and bottom as shares of width and height, 0 to 1.
        label: name of the finding as the dataset has it; None where it gives none.
        sentence: sentence of the report that speaks of it; None where that is not known.
    """

    image: Annotated[int, Field(ge=0)]
    box: tuple[float, float, float, float]
    label: str | None
    sentence: str | None

    @model_validator(mode="after")
    def _inside(self) -> RowBox:
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"{self.box} is no box of left, top, right, bottom between 0 and 1")
        return self


class StudyRow(_Row):
    """One line of a studies file that was prepared.

    Attributes:
        id: id of the study, which no other in its dataset has.
        patient: id of the patient; None where the dataset has none.
        image: path of the first of `images`: the frontal one, where the study has one.
        view: view of that image.
        images: every X-ray of the study: frontal ones first, PA before AP, then those of unknown
            view, oblique ones, lateral ones; within a view in the dataset's order.
        report: the reference, of the section or sections that were chosen, without line breaks;
            None where the report lacks them.
        findings: the section of that name; None where the report has none.
        impression: the section of that name; None where the report has none.
        indication: why the study was made; None where that is not known.
        comparison: what the radiologist compared with; None where that is not known.
        age: the patient's age in years; None where it is not known.
        sex: "F" or "M"; None where it is not known.
        labels: observation -> 1 present, 0 absent, -1 uncertain, None not mentioned, as the
            dataset has them, for the fourteen of CheXpert; None where it has no labels.
        boxes: what is seen where, as the dataset has it.
        split: split of the study; None where the dataset has none.
        repeats_train: whether `report` occurs word for word in the training split, but for case
            and spaces; None for studies of that split and without a report.
        source: name of the dataset, as `openrlhf prepare` takes it.
    """

    id: Annotated[str, Field(pattern=r"\S")]
    patient: str | None
    image: str
    view: str | None
    images: Annotated[list[RowImage], Field(min_length=1)]
    report: str | None
    findings: str | None
    impression: str | None
    indication: str | None
    comparison: str | None
    age: Annotated[float, Field(ge=0, le=150)] | None
    sex: Literal["F", "M"] | None
    labels: dict[str, Literal[-1, 0, 1] | None] | None
    boxes: list[RowBox]
    split: Split | None
    repeats_train: bool | None
    source: str

    @model_validator(mode="after")
    def _whole(self) -> StudyRow:
        if self.image != self.images[0].path or self.view != self.images[0].view:
            raise ValueError("`image` and `view` are those of the first of `images`")
        if self.labels is not None and tuple(self.labels) != OBSERVATIONS:
            raise ValueError(f"labels: the keys are {', '.join(OBSERVATIONS)}")
        if any(box.image >= len(self.images) for box in self.boxes):
            raise ValueError("boxes: one is on an image that the study does not have")
        return self


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "string"}


FEATURES: list[dict[str, Any]] = [
    _text("id"), _text("patient"), _text("image"), _text("view"),
    {"name": "images", "list": [_text("path"), _text("view")]},
    *map(_text, ("report", "findings", "impression", "indication", "comparison")),
    {"name": "age", "dtype": "float64"}, _text("sex"),
    {"name": "labels", "struct": [{"name": name, "dtype": "int8"} for name in OBSERVATIONS]},
    {"name": "boxes", "list": [
        {"name": "image", "dtype": "int64"}, {"name": "box", "list": "float64"},
        _text("label"), _text("sentence"),
    ]},
    _text("split"), {"name": "repeats_train", "dtype": "bool"}, _text("source"),
]  # fmt: skip
"""The columns as the head of a dataset card tells them to Hugging Face `datasets`, which would have
to guess the types of columns that begin with nulls."""
