"""What travels over HTTP between `reward_sdk.client` and `reward_sdk.server`.

The limits stand here because both ends keep them: the server refuses what is beyond, and the client
cuts its requests to size.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.text import MAX_TEXT
from reward_sdk.types import Score, SetInfo

MAX_SAMPLES = 256  # ours: per request
MAX_IMAGE = 32 << 20  # ours: bytes of one image file; MIMIC-CXR's DICOM files have 10 to 20 MB
MAX_BODY = 64 << 20  # ours: bytes of one request
MAX_VALUES = 100_000  # ours: keys and values of one request
MAX_REPLY = 64 << 20  # ours: bytes of an answer

TOKEN = "REWARD_SDK_TOKEN"
"""The environment variable that servers and clients read their token from."""


def clean_token(text: str, source: str) -> str:
    """A token as a header can carry it; ConfigError, naming its source, if it is none."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{source}: a token is one word of printable ASCII characters")
    return token


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=1000)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageFile(_Wire):
    """An image that the server reads itself.

    Attributes:
        path: absolute, or relative to one of the server's image folders; inside of them.
        size: bytes that the file must have, so that a path which means another file on the
            server's machine is found out.
        view: see `ImageRef`.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    size: Annotated[int, Field(ge=0)] | None = None
    view: Name | None = None


class ImageBytes(_Wire):
    """An image in the request.

    Attributes:
        base64: what an image file holds (PNG, JPEG, DICOM, ...), in base64; no data URL. Empty
            for a file that is missing where the client runs: rewards fail on it.
        view: see `ImageRef`.
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
    """A `Sample`.

    Attributes:
        response: what the policy wrote, tags kept, special tokens removed.
        reference: the radiologist's report without tags.
        image: the X-ray that the response describes.
        id: the study's name.
        group: the name of the prompt group that the sample belongs to; by default its id. For the
            server's log.
    """

    response: Text
    reference: Text | None = None
    image: ImageFile | ImageBytes | None = None
    id: Name = ""
    group: Name = ""


class ScoreRequest(_Wire):
    """The body of `POST /v1/score`.

    Attributes:
        samples: what is scored.
        step: the policy step, from 1; needed by sets with a schedule.
        request_id: a request that comes again under its id, after a broken connection, is answered
            with what it has been answered with, and not scored twice.
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
    """The answer to it.

    Attributes:
        set: the digest of the reward set's configuration.
        request_id: as it came.
        scores: one per sample, in order, as `RewardSet.score` gives them.
    """

    set: str
    request_id: str | None
    scores: list[Score]


@dataclass(frozen=True)
class ServedSet(SetInfo):
    """The answer to `GET /v1/rewards`.

    Attributes:
        image_folders: where images may be that are given by path.
    """

    image_folders: tuple[str, ...]
