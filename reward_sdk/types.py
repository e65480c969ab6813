"""What travels between data, rewards and trainers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from reward_sdk.errors import ScoringError
from reward_sdk.text import extract_report

if TYPE_CHECKING:
    from PIL.Image import Image

Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class ImageRef:
    """One chest X-ray: a file, a file's bytes, or pixels already in memory.

    Attributes:
        path: an image file, read when a reward needs it.
        data: what such a file holds; wins over `path`.
        pixels: the opened image; wins over both.
        view: how it was taken, as DICOM says it ("PA", "AP", "LATERAL", "LL", ...), or None where
            that is not known; a DICOM file says it itself.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    pixels: Image | None = field(default=None, compare=False)
    view: str | None = None

    def open(self) -> BinaryIO:
        """The file, or one of `data`; OSError as `open` raises it."""
        if self.data is not None:
            return BytesIO(self.data)
        if self.path is None:
            raise ScoringError("image: no path, bytes or pixels are given")
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
        reference: the radiologist's report without tags, or None where a study has none.
        image: the X-ray the response describes, or None.
        id: the study's name, used in messages only.
    """

    response: str
    reference: str | None = None
    image: ImageRef | None = None
    id: str = ""

    @cached_property
    def report(self) -> str | None:
        """The text between the response's `<report>` tags; None if it is not well formed.

        Every reward reads the report here. Reasoning before it is no part of it: whether a response
        may or must reason is for the `format` reward to say.
        """
        return extract_report(self.response)


@dataclass(frozen=True)
class Outcome:
    """One reward's outcome for one sample. A failure is an outcome of its own, never a zero.

    Attributes:
        value: finite and within the reward's bounds when status is "ok"; otherwise None, unless the
            set names a value for failures (`on_failure`).
        status: "ok"; "skipped" (not applicable: no reference, no image, not this step); "failed".
        reason: why the part is not a plain "ok", for people.
    """

    value: float | None
    status: Status = "ok"
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """What a reward set says of one sample.

    Attributes:
        total: weighted sum of the parts, or None when no part could be scored.
        parts: reward name -> outcome, for every reward of the set.
        logs: numbers under keys that never vary within a set, see `RewardSet.log_keys`.
    """

    total: float | None
    parts: Mapping[str, Outcome]
    logs: Mapping[str, float]


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
        set: the digest of its configuration.
        version: of this package, where the set was built.
        bounds: range of every total.
        needs: what some reward wants in a sample, of "image", "reference" and "report"; sorted.
        needs_step: whether the set has a schedule.
        log_keys: the keys of every score's `logs`.
        rewards: the set.
    """

    set: str
    version: str
    bounds: tuple[float, float]
    needs: tuple[str, ...]
    needs_step: bool
    log_keys: tuple[str, ...]
    rewards: tuple[RewardInfo, ...]


@dataclass(frozen=True)
class Evidence:
    """What a reward read about one finding in one sample, for people.

    Attributes:
        finding: its name.
        response: what the response says of it, such as "present, left" or "not mentioned".
        reference: what the reference says; "" where there is none, or the reward reads none.
        image: the image's evidence for it, in standard deviations over many images; None for a
            reward that does not look at images.
        agrees: whether the reward counts the response as right here; None where it does not count.
        note: what else there is to know.
    """

    finding: str
    response: str
    reference: str = ""
    image: float | None = None
    agrees: bool | None = None
    note: str = ""
