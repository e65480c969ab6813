"""Opening X-rays safely. PNG, JPEG and whatever else Pillow reads; DICOM is not read."""

from __future__ import annotations

import numpy as np
from PIL import Image

from reward_sdk.errors import ScoringError
from reward_sdk.types import ImageRef

MAX_PIXELS = 64_000_000  # ours: three times the largest detector; a small file can claim more


def open_image(ref: ImageRef) -> Image.Image:
    """The decoded image of `ref`.

    Raises:
        ScoringError: no image given, file missing, corrupt or of unknown format, or larger than
            `MAX_PIXELS`, which is checked before anything is decoded. Names the file.
    """
    if ref.pixels is not None:
        check_size(ref.pixels, "image in memory")
        return ref.pixels
    if ref.path is None:
        raise ScoringError("image: neither a path nor pixels are given")
    try:
        with Image.open(ref.path) as image:
            check_size(image, ref.path)
            image.load()
            return image
    except ScoringError:
        raise
    except FileNotFoundError:
        raise ScoringError(f"image {ref.path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise ScoringError(f"image {ref.path}: cannot be read: {error}") from error


def to_gray(image: Image.Image) -> np.ndarray:
    """Pixel values as float32 (H, W) in 0..255.

    Of a colour image channel 0 is taken, as torchxrayvision's loader does. 16-bit values are
    divided by 257, so that the full range of their bit depth becomes 0..255.

    Raises:
        ScoringError: values without a defined range (floating point, or more than 16 bits).
    """
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" is 16 bits in 32
        values = np.asarray(image).astype(np.float32)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ScoringError("image: pixel values beyond 16 bits have no known range")
        return values / np.float32(257)
    if image.mode == "F":
        raise ScoringError("image: floating point pixels have no known range")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.asarray(image.getchannel(0), dtype=np.float32)


def check_size(image: Image.Image, name: str) -> None:
    """Raises ScoringError for an image of more than `MAX_PIXELS`; needs its header alone."""
    if image.width * image.height > MAX_PIXELS:
        raise ScoringError(
            f"image {name}: {image.width} x {image.height} pixels, "
            f"more than the limit of {MAX_PIXELS:,}"
        )
