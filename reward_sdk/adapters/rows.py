"""A row of a training set to a sample: the one place that knows what its keys are called.

    reference, report or ground_truth    the radiologist's report; the first that is not blank
    image or images                      the X-ray: a path, a PIL image, a file's bytes, a mapping
                                         with `path` or `bytes`, or a list of these, whose first
                                         counts
    view, id, age, indication            see `ImageRef` and `Sample`

None, NaN and blank texts stand for what a row does not have. Images are looked at only where a
reward needs them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any, cast

from reward_sdk.errors import ConfigError
from reward_sdk.types import ImageRef, Sample

REFERENCE = ("reference", "report", "ground_truth")
IMAGE = ("image", "images")
CONTEXT = ("view", "age", "indication")


def row_sample(response: str, row: Mapping[str, Any], needs: Collection[str]) -> Sample:
    """The sample of a row and a response to it.

    Args:
        response: the text that the policy wrote, tags kept, special tokens removed.
        row: a row of a training set, with the keys that this module lists; others are not looked
            at.
        needs: what the set needs of a sample: some of "report", "reference" and "image"; without
            "image" the row's image is not looked at.

    Raises:
        ConfigError: the reference or the indication is no text, the age is none, or the image is of
            no known type.
    """
    reference = _first(row, REFERENCE)
    if not isinstance(reference, str | None):
        raise ConfigError(f"a reference is a text or None, not {type(reference).__name__}")
    view, name = row.get("view"), row.get("id")
    image = image_ref(
        _first(row, IMAGE) if "image" in needs else None, view if isinstance(view, str) else None
    )
    try:
        return Sample(
            response=response,
            reference=reference,
            image=image,
            id="" if _absent(name) else str(name),
            age=_first(row, ["age"]),
            indication=_first(row, ["indication"]),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _first(row: Mapping[str, Any], names: Collection[str]) -> Any:
    """The first value under these names that is there."""
    return next((row[name] for name in names if not _absent(row.get(name))), None)


def _absent(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def image_ref(image: Any, view: str | None = None) -> ImageRef | None:
    """The X-ray of a row, see the module.

    Raises:
        ConfigError: the image is of none of the types that the module lists.
    """
    if isinstance(image, list | tuple):
        image = next((item for item in image if not _absent(item)), None)
    if _absent(image):
        return None
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():
        # An empty file rather than none: a row that has an image must not be taken for one without.
        image = image.get("bytes") or image.get("path") or b""
    try:
        return ImageRef.of(cast(Any, image), view)
    except TypeError as error:
        raise ConfigError(str(error)) from None


def url_image(url: str) -> bytes | str:
    """The image of a data URL, as prompts hold it; any other URL as it is, since none is fetched:
    rewards that look at it fail."""
    header, comma, data = url.partition(";base64,")
    if not comma or not header.startswith("data:image/"):
        return url
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return b""
