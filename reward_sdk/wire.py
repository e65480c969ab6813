"""What travels over HTTP between `reward_sdk.client` and `reward_sdk.server`.

The limits stand here because both ends keep them: the server refuses what is beyond, and the client
cuts its requests to size, and looks whether an answer can be one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reward_sdk.errors import ConfigError, ScoringError, exhausted, explain
from reward_sdk.images import check_pixels, to_gray
from reward_sdk.reward_set import logs_of
from reward_sdk.text import MAX_TEXT, years_of
from reward_sdk.types import ImageRef, Sample, Score, SetInfo

MAX_SAMPLES = 256  # ours: per request
MAX_IMAGE = 32 << 20  # ours: bytes of one image file; MIMIC-CXR's DICOM files have 10 to 20 MB
MAX_BODY = 64 << 20  # ours: bytes of one request
MAX_VALUES = 100_000  # ours: keys and values of one request
MAX_REPLY = 64 << 20  # ours: bytes of an answer
_CHUNK = 64  # ours: samples that a client sends in one request
_INLINE = MAX_BODY // 4  # ours: bytes of images in it, before base64

TOKEN = "REWARD_SDK_TOKEN"
"""The environment variable that servers and clients read their token from."""


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=1000)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageFile(_Wire):
    """An image that the server reads itself.

    Attributes:
        path: path of the image file, absolute or relative to one of the server's image folders, and
            inside of them.
        size: number of bytes that the file must have, so that a path which means another file on
            the server's machine is found out; null for any number.
        view: how the X-ray was taken, as DICOM says it ("PA", "AP", "LATERAL", "LL", ...); null
            where that is not known, or where a DICOM file says it itself.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    size: Annotated[int, Field(ge=0)] | None = None
    view: Name | None = None


class ImageBytes(_Wire):
    """An image in the request.

    Attributes:
        base64: bytes of an image file (PNG, JPEG, DICOM, ...) in base64; no data URL. Empty for a
            file that is missing where the client runs: rewards fail on it.
        view: how the X-ray was taken, as DICOM says it ("PA", "AP", "LATERAL", "LL", ...); null
            where that is not known, or where a DICOM file says it itself.
    """

    base64: Annotated[str, Field(max_length=(MAX_IMAGE + 2) // 3 * 4)]
    view: Name | None = None

    def data(self) -> bytes:
        """The file's bytes; ScoringError if this is no base64."""
        try:
            return base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ScoringError(f"image: no base64: {error}") from None


class WireSample(_Wire):
    """A `Sample` as it travels.

    Attributes:
        response: the text that the policy wrote, tags kept, special tokens removed.
        reference: the radiologist's report; null where a study has none, as for a blank one. Tags
            that it still has are taken off, see `reward_sdk.Sample`.
        image: the X-ray that the response describes; null where a study has none.
        id: the study's name, used in messages only.
        age: the patient's age in years, 0 to 150, or a text as DICOM has it ("082Y"); null where it
            is not known.
        indication: why the study was made; null where that is not known.
        group: name of the prompt group that the sample belongs to, for the server's log; by default
            its id.
    """

    response: Text
    reference: Text | None = None
    image: ImageFile | ImageBytes | None = None
    id: Name = ""
    age: Annotated[float | None, BeforeValidator(years_of)] = None
    indication: Text | None = None
    group: Name = ""


class ScoreRequest(_Wire):
    """The body of `POST /v1/score`.

    Attributes:
        samples: the samples to score.
        step: the policy step, counted from 1; needed by sets with a schedule.
        request_id: id of the request, for one that may come again after a broken connection: it is
            then answered with what it has been answered with, and not scored twice.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "samples": [
                        {
                            "id": "s1",
                            "response": "<report> No effusion. </report>",
                            "reference": "No pleural effusion.",
                        }
                    ],
                    "step": 1,
                }
            ]
        }
    )

    samples: Annotated[list[WireSample], Field(min_length=1, max_length=MAX_SAMPLES)]
    step: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class ScoreReply(BaseModel):
    """The answer to `POST /v1/score`.

    Attributes:
        set: the digest of the reward set's configuration.
        request_id: id of the request that is answered; null if it had none.
        scores: one per sample, in order, as `RewardSet.score` gives them.
    """

    set: str
    request_id: str | None
    scores: list[Score]


@dataclass(frozen=True)
class ServedSet(SetInfo):
    """The answer to `GET /v1/rewards`.

    Attributes:
        image_folders: folders of the server's machine in which images may lie that a request gives
            by path.
    """

    image_folders: tuple[str, ...]


def chunks(samples: Sequence[Sample], info: ServedSet) -> Iterator[list[WireSample]]:
    """The samples as they travel, so many at a time as a request holds."""
    chunk: list[WireSample] = []
    inline = 0
    for sample in samples:
        image = sample.image
        wire = _image(image, info) if image is not None and "image" in info.needs else None
        size = len(wire.base64) if isinstance(wire, ImageBytes) else 0
        if chunk and (len(chunk) == _CHUNK or inline + size > _INLINE):
            yield chunk
            chunk, inline = [], 0
        try:
            chunk.append(
                WireSample(
                    response=sample.response,
                    reference=sample.reference,
                    image=wire,
                    id=sample.id,
                    age=sample.age,
                    indication=sample.indication,
                )
            )
        except ValidationError as error:
            raise ConfigError(f"sample {sample.id!r}: {explain(error, values=False)}") from None
        inline += size
    if chunk:
        yield chunk


def _image(image: ImageRef, info: ServedSet) -> ImageFile | ImageBytes:
    """The image as it travels; empty, so that rewards fail on it, if it cannot."""
    try:
        check_pixels(image)
        data = image.data
        if image.pixels is not None:
            data = _png(image.pixels)
        elif data is None and image.path is not None:
            path = Path(image.path).resolve()
            size = path.stat().st_size if path.is_file() else None
            if size is not None and size > MAX_IMAGE:
                raise ValueError(f"{size} bytes")
            if any(path.is_relative_to(folder) for folder in info.image_folders):
                return ImageFile(path=str(path), size=size, view=image.view)
            data = b"" if size is None else path.read_bytes()
        return ImageBytes(base64=base64.b64encode(data or b"").decode(), view=image.view)
    except Exception as error:  # Pillow and the file system raise anything; one image is no call
        if out_of := exhausted(error):
            raise out_of from error
        return ImageBytes(base64="")


def _png(image: Image.Image) -> bytes:
    """The image in a format without loss, with the values that rewards see."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray((to_gray(image) * 257).round().astype("uint16"))
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def impossible(score: Score, info: ServedSet) -> str:
    """What of a score cannot be, by what the server says of its set; "" if all can."""
    if set(score.parts) != {reward.name for reward in info.rewards}:
        return f"parts {sorted(score.parts)[:20]}"
    logs: dict[str, float] = {}
    counted = False
    for reward in info.rewards:
        part = score.parts[reward.name]
        if not _within(part.value, reward.bounds):
            return f"{reward.name} {part.value} ({part.status}), outside of {list(reward.bounds)}"
        if part.status != "failed" and (part.value is not None) != (part.status == "ok"):
            return f"{reward.name} {part.value}, which is {part.status}"
        counted |= part.value is not None and reward.weight != 0
        logs |= logs_of(reward.name, part)
    if score.logs != logs:
        return f"logs {dict(list(score.logs.items())[:20])}"
    if not _within(score.total, info.bounds) or (score.total is not None) != counted:
        return f"a total of {score.total}, outside of {list(info.bounds)} or of no part"
    return ""


def _within(value: float | None, bounds: tuple[float, float]) -> bool:
    return value is None or bounds[0] <= value <= bounds[1]  # NaN is not
