"""What the model is shown: one way from a file to the picture that the image processor gets."""

from __future__ import annotations

import numpy as np
from PIL import Image

from reward_sdk.images import open_image, to_gray
from reward_sdk.types import ImageRef


def open_rgb(path: str) -> Image.Image:
    """The X-ray as an RGB picture.

    Pillow clips 16-bit values to 255, which turns such an X-ray white; here the range of 16 bits
    becomes that of 8, as for the X-ray expert.

    Raises:
        ScoringError: the file cannot be read, or is too large.
    """
    image = open_image(ImageRef(path=path))
    if image.mode.startswith("I"):
        image = Image.fromarray(to_gray(image).round().astype(np.uint8))
    return image.convert("RGB")
