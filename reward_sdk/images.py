"""Opening X-rays safely: DICOM, PNG, JPEG and whatever else Pillow reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reward_sdk.errors import ScoringError
from reward_sdk.types import ImageRef

if TYPE_CHECKING:
    from pydicom import Dataset

LATERAL = frozenset({"LATERAL", "LL", "RL", "LLD", "RLD"})
"""Values of DICOM's View Position (0018,5101) and of MIMIC-CXR's ViewPosition for side views."""
MAX_PIXELS = 64_000_000  # ours: three times the largest detector; a small file can claim more


def open_image(ref: ImageRef) -> Image.Image:
    """The decoded image of `ref`; of a DICOM file its grey values as a viewer shows them, 8 bits.

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
        if is_dicom(ref.path):
            return _open_dicom(ref.path)
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


def is_lateral(ref: ImageRef) -> bool:
    """Whether the image is known to be a side view: by `ref.view`, else by its DICOM header.

    Raises:
        ScoringError: the header cannot be read.
    """
    view = ref.view
    if view is None and ref.path is not None and ref.pixels is None:
        try:
            if is_dicom(ref.path):
                view = _pydicom().dcmread(ref.path, stop_before_pixels=True).get("ViewPosition")
        except ScoringError:
            raise
        except Exception as error:  # pydicom raises anything from KeyError to struct.error
            raise ScoringError(f"image {ref.path}: cannot be read: {error}") from error
    return str(view).upper() in LATERAL


def is_dicom(path: str) -> bool:
    """Whether the file starts as DICOM files do: 128 bytes of anything, then "DICM"."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _open_dicom(path: str) -> Image.Image:
    """Values through modality and VOI LUT; what those make of the stored range becomes 0..255."""
    pydicom = _pydicom()
    data = pydicom.dcmread(path)
    gray = str(data.get("PhotometricInterpretation")).startswith("MONOCHROME")
    whole = "PixelData" in data  # not floating point
    if not gray or not whole or data.get("NumberOfFrames", 1) not in (None, 1):
        raise ScoringError(
            f"image {path}: no single image of whole grey values, but DICOM of another kind: "
            "convert it to PNG"
        )
    if data.Rows * data.Columns > MAX_PIXELS:
        raise ScoringError(
            f"image {path}: {data.Columns} x {data.Rows} pixels, more than the limit of "
            f"{MAX_PIXELS:,}"
        )
    bits, signed = int(data.get("BitsStored") or data.BitsAllocated), bool(data.PixelRepresentation)
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    pixels = data.pixel_array
    black, white = sorted(_shown(np.array([lowest, highest], pixels.dtype), data))
    if black == white:
        raise ScoringError(f"image {path}: its rescaling or VOI LUT makes all pixels equal")
    gray = np.clip((_shown(pixels, data) - black) / (white - black), 0, 1)
    if data.PhotometricInterpretation == "MONOCHROME1":  # low values are bright
        gray = 1 - gray
    return Image.fromarray(np.rint(gray * 255).astype(np.uint8))


def _shown(values: np.ndarray, data: Dataset) -> np.ndarray:
    """What a viewer shows of stored values, before scaling to its screen."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    return apply_voi_lut(apply_modality_lut(values, data), data).astype(np.float64)


def _pydicom():
    try:
        import pydicom
    except ImportError as error:
        raise ScoringError(
            f"a DICOM image needs pydicom: {error}: pip install 'valor-rrg[vision]'"
        ) from error
    return pydicom


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
