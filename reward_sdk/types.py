"""What travels between data, rewards and trainers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, get_args

from reward_sdk.errors import ScoringError
from reward_sdk.text import Tags, extract_report, plain_reference, years_of

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = "ImageRef | str | Path | bytes | Image"
"""What `ImageRef.of` takes."""

Status = Literal["ok", "skipped", "not_applicable", "failed"]


@dataclass(frozen=True)
class ImageRef:
    """One chest X-ray: a file, a file's bytes, or pixels already in memory.

    Attributes:
        path: path of an image file, which is read when a reward needs it.
        data: bytes of an image file; they win over `path`.
        pixels: the opened image; it wins over `path` and `data`.
        view: how the X-ray was taken, as DICOM says it ("PA", "AP", "LATERAL", "LL", ...); None
            where that is not known, or where a DICOM file says it itself.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    pixels: Image | None = field(default=None, compare=False)
    view: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.path, Path):
            object.__setattr__(self, "path", str(self.path))
        for key, kind in (("path", str), ("data", bytes), ("view", str)):
            _be("ImageRef", key, getattr(self, key), kind | None)
        if self.pixels is not None and not _is_pixels(self.pixels):
            raise TypeError(f"ImageRef: pixels is a PIL image, not {_named(self.pixels)}")

    @classmethod
    def of(cls, image: ImageLike | None, view: str | None = None) -> ImageRef | None:
        """The X-ray that is given as a path, a file's bytes, a PIL image or an `ImageRef`; None
        for None.

        Raises:
            TypeError: the image is of another type.
        """
        if isinstance(image, ImageRef):
            return replace(image, view=view) if view and not image.view else image
        if image is None:
            return None
        if isinstance(image, str | Path):
            return cls(path=str(image), view=view)
        if isinstance(image, bytes):
            return cls(data=image, view=view)
        if _is_pixels(image):
            return cls(pixels=image, view=view)
        raise TypeError(f"an image is a path, bytes or a PIL image, not {_named(image)}")

    def open(self) -> BinaryIO:
        """The file, or one of `data`, as bytes. Pixels come from `reward_sdk.open_image`, which
        reads every kind of image.

        Raises:
            OSError: the file cannot be opened.
            ScoringError: there is neither a file nor `data`.
        """
        if self.data is not None:
            return BytesIO(self.data)
        if self.path is None:
            there = "is in memory and no file" if self.pixels else "has no path, bytes or pixels"
            raise ScoringError(f"the image {there}: reward_sdk.open_image gives its pixels")
        return open(self.path, "rb")

    @cached_property
    def digest(self) -> bytes:
        """Tells `data` apart from others; the samples of a group share it."""
        return hashlib.sha256(self.data or b"").digest()


@dataclass(frozen=True)
class Sample:
    """One response of a policy and what it is judged by.

    Attributes:
        response: the generated text, special tokens removed, tags kept.
        reference: the radiologist's report without tags, or None where a study has none. Its tags,
            if it still has them, are taken off; a text that is blank, also between its tags,
            becomes None. So does one whose tags are not well formed, since what the report is
            cannot be told: rewards that compare do not apply to the sample. Files that are read
            (`reward_sdk.jsonl`) refuse such a row.
        image: the X-ray the response describes, or None. A path, a file's bytes or a PIL image
            becomes an `ImageRef`.
        id: the study's name, used in messages only; an integer becomes a text.
        tags: whether `report` needs `<report>` tags in the response: "required", or "optional", by
            which a response without any is a report itself. A set whose `tags` are optional says so
            here.
        age: the patient's age in years, 0 to 150, or None where it is not known. A text as
            `reward_sdk.text.years_of` reads it, such as DICOM's "082Y", becomes a number.
        indication: why the study was made, or None where that is not known; a blank text becomes
            None.

    Raises:
        TypeError: a value is of another type.
        ValueError: `tags` is neither "required" nor "optional", or `age` is no age.
    """

    response: str
    reference: str | None = None
    image: ImageRef | None = None
    id: str = ""
    tags: Tags = "required"
    age: float | None = None
    indication: str | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            response: str,
            reference: str | None = None,
            image: ImageLike | None = None,
            id: str | int = "",
            tags: Tags = "required",
            age: float | str | None = None,
            indication: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        _be("Sample", "response", self.response, str)
        _be("Sample", "reference", self.reference, str | None)
        if self.reference is not None:
            reference = None
            with suppress(ValueError):
                reference = plain_reference(self.reference)
            object.__setattr__(self, "reference", reference)
        object.__setattr__(self, "image", ImageRef.of(self.image))
        if hasattr(self.id, "__index__") and not isinstance(self.id, bool):  # also numpy's
            object.__setattr__(self, "id", str(self.id))
        _be("Sample", "id", self.id, str)
        if self.tags not in get_args(Tags):
            raise ValueError(f"Sample: tags are required or optional, not {self.tags!r}")
        if self.age is not None:
            object.__setattr__(self, "age", years_of(self.age))
        _be("Sample", "indication", self.indication, str | None)
        if self.indication is not None and not self.indication.strip():
            object.__setattr__(self, "indication", None)

    @cached_property
    def report(self) -> str | None:
        """The text between the response's `<report>` tags, or, where `tags` are optional, a
        response without any; None if it is not well formed.

        Every reward reads the report here. Reasoning before it is no part of it: whether a response
        may or must reason is for the `format` reward to say.
        """
        return extract_report(self.response, self.tags)


def _is_pixels(value: object) -> bool:
    """Whether it is a PIL image; without loading PIL for what is none."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _named(value: object) -> str:
    return type(value).__name__


def _be(what: str, key: str, value: object, kind: Any) -> None:
    """TypeError unless the value is of this kind."""
    if not isinstance(value, kind):
        wanted = "a text" if kind is str else "a text or None" if kind == str | None else "bytes"
        raise TypeError(f"{what}: {key} is {wanted}, not {_named(value)}")


@dataclass(frozen=True)
class Outcome:
    """One reward's outcome for one sample. A failure is an outcome of its own, never a zero.

    Attributes:
        value: finite and within the reward's bounds when status is "ok"; otherwise None, unless the
            set names a value for failures (`on_failure`).
        status: "ok"; "skipped" (the set's schedule leaves this policy step out); "not_applicable"
            (the reward does not concern the sample: no reference, no image, a side view); "failed".
        reason: why the part is not a plain "ok", for people.
    """

    value: float | None
    status: Status = "ok"
    reason: str = ""


NOT_THIS_STEP = Outcome(None, "skipped", "not this step")
"""The part of a reward whose schedule leaves a policy step out."""


@dataclass(frozen=True)
class Score:
    """What a reward set says of one sample.

    Attributes:
        total: weighted sum of the parts that have a value, scaled up for those that are missing
            because they failed or do not apply, within the set's range; None when no part that
            weighs has a value.
        parts: reward name -> outcome, for every reward of the set.
        logs: numbers under keys that never vary within a set, see `RewardSet.log_keys`.
    """

    total: float | None
    parts: Mapping[str, Outcome]
    logs: Mapping[str, float]

    @property
    def missing(self) -> tuple[str, ...]:
        """The rewards that count on this step and have no value, so that the total stands on the
        others: those that failed, and those of `not_applicable`."""
        return tuple(
            name
            for name, part in self.parts.items()
            if part.value is None and part.status != "skipped"
        )

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """The rewards that do not concern the sample."""
        return tuple(n for n, part in self.parts.items() if part.status == "not_applicable")

    @property
    def coverage(self) -> str:
        """On how many rewards the total stands, and why not on the others: "1 of 3 rewards, 1
        failed, 1 not applicable"; "" if on all that count."""
        if not self.missing:
            return ""
        due = sum(part.status != "skipped" for part in self.parts.values())
        apart = len(self.not_applicable)
        causes = ((len(self.missing) - apart, "failed"), (apart, "not applicable"))
        whole = f"{due - len(self.missing)} of {due} rewards"
        return ", ".join([whole, *(f"{n} {cause}" for n, cause in causes if n)])

    def __str__(self) -> str:
        total = "no total" if self.total is None else f"{self.total:.4f}"
        return f"{total} ({self.coverage})" if self.missing else total


@dataclass(frozen=True)
class RewardInfo:
    """One reward of a set, with the keys of `reward_sdk.config.Entry`; `needs` is sorted."""

    name: str
    bounds: tuple[float, float]
    needs: tuple[str, ...]
    weight: float
    every: int
    offset: int
    mode: str
    on_failure: str | float
    deadline: float | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SetInfo:
    """What a reward set is, in plain values.

    Attributes:
        set: digest of the set's configuration.
        version: version of this package where the set was built.
        bounds: range (low, high) of every total.
        needs: what some reward of the set wants in a sample, of "image", "reference" and "report";
            sorted.
        needs_step: whether the set has a schedule, so that every call must say its policy step.
        log_keys: keys of every score's `logs`.
        rewards: each reward of the set in plain values, in the order of the logs.
        tags: whether a response needs `<report>` tags: "required", or "optional", by which a
            response without any is a report itself.
    """

    set: str
    version: str
    bounds: tuple[float, float]
    needs: tuple[str, ...]
    needs_step: bool
    log_keys: tuple[str, ...]
    rewards: tuple[RewardInfo, ...]
    tags: Tags


@dataclass(frozen=True)
class Evidence:
    """What a reward read about one finding in one sample, for people.

    Attributes:
        finding: name of the finding.
        response: what the response says of the finding, such as "present, left" or "not mentioned".
        reference: what the reference says of the finding; "" where there is none, or the reward
            reads none.
        image: the image's evidence for the finding as the reward weighs it, standardised over many
            images, so that above 0 speaks for it; None for a reward that does not look at images.
        agrees: whether the reward counts the response as right about the finding; None where the
            finding does not count.
        note: what else people should know of the finding here; "" if nothing.
    """

    finding: str
    response: str
    reference: str = ""
    image: float | None = None
    agrees: bool | None = None
    note: str = ""
