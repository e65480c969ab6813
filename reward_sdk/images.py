"""Opening X-rays safely: DICOM, and the usual formats of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from reward_sdk.errors import ScoringError
from reward_sdk.types import ImageRef

if TYPE_CHECKING:
    from pydicom import Dataset

LATERAL = frozenset({"LATERAL", "LL", "RL", "LLD", "RLD"})
"""Values of DICOM's View Position (0018,5101) and of MIMIC-CXR's ViewPosition for side views."""
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""What is read beside DICOM: Pillow knows formats whose readers start other programs."""
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL = 4096  # ours: bytes at the end of a file in which its end mark must stand
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that may unpack to any size
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
    with _file(ref) as (file, name):
        if _is_dicom(file):
            return _open_dicom(file, name)
        with Image.open(file, formats=FORMATS) as image:
            check_size(image, name)
            image.load()
            return image


def check_image(ref: ImageRef) -> None:
    """Raises ScoringError for a file that `open_image` would refuse. Of PNG and JPEG files the
    header and the end are read, which tells at little cost that nothing was cut off; any other
    file, and one without its end mark, is decoded."""
    with _file(ref) as (file, name):
        if not _is_dicom(file):
            with Image.open(file, formats=FORMATS) as image:
                check_size(image, name)
                end = _ENDS.get(image.format or "")
            file.seek(max(0, file.seek(0, SEEK_END) - _TAIL))
            if end is not None and end in file.read():
                return
    open_image(ref)


def check_pixels(ref: ImageRef) -> None:
    """Raises ScoringError for an image of more than `MAX_PIXELS`, of a file by its header alone;
    says nothing about DICOM, nor about what cannot be read."""
    if ref.pixels is not None:
        return check_size(ref.pixels, "image in memory")
    try:
        with _file(ref) as (file, name), Image.open(file, formats=FORMATS) as image:
            size = image.size
    except ScoringError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        return
    if size[0] * size[1] > MAX_PIXELS:
        raise ScoringError(f"{name}: {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}")


def is_lateral(ref: ImageRef) -> bool:
    """Whether the image is known to be a side view: by `ref.view`, else by its DICOM header.

    Raises:
        ScoringError: the header cannot be read.
    """
    view = ref.view
    if view is None and ref.pixels is None and (ref.data or ref.path) is not None:
        with _file(ref) as (file, name):
            if _is_dicom(file):
                view = _dicom(file, name, header=True).get("ViewPosition")
    return str(view).upper() in LATERAL


@contextmanager
def _file(ref: ImageRef) -> Iterator[tuple[BinaryIO, str]]:
    """The image's file and its name; whatever goes wrong with it is a ScoringError."""
    name = f"image {ref.path or 'in memory'}"
    try:
        if ref.data == b"":
            raise ScoringError(f"{name}: no such file, or nothing in it")
        if ref.data is not None:
            yield BytesIO(ref.data), name
        elif ref.path is not None:
            with open(ref.path, "rb") as file:
                yield file, name
        else:
            raise ScoringError("image: no path, bytes or pixels are given")
    except ScoringError:
        raise
    except FileNotFoundError:
        raise ScoringError(f"{name}: no such file") from None
    except UnidentifiedImageError as error:
        raise ScoringError(f"{name}: cannot be read: no image in a known format") from error
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        raise ScoringError(f"{name}: cannot be read: {error}") from error


def _is_dicom(file: BinaryIO) -> bool:
    """Whether the file starts as DICOM files do: 128 bytes of anything, then "DICM"."""
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def _dicom(file: BinaryIO, name: str, header: bool = False) -> Dataset:
    start = file.read(1 << 16)
    file.seek(0)
    if _DEFLATED in start:
        raise ScoringError(f"{name}: deflated DICOM, which may unpack to any size: convert it")
    return _pydicom().dcmread(file, stop_before_pixels=header)


def _open_dicom(file: BinaryIO, name: str) -> Image.Image:
    """Values through modality and VOI LUT; what those make of the stored range becomes 0..255."""
    data = _dicom(file, name)
    gray = str(data.get("PhotometricInterpretation")).startswith("MONOCHROME")
    whole = "PixelData" in data  # not floating point
    if not gray or not whole or data.get("NumberOfFrames", 1) not in (None, 1):
        raise ScoringError(
            f"{name}: no single image of whole grey values, but DICOM of another kind: "
            "convert it to PNG"
        )
    if data.Rows * data.Columns > MAX_PIXELS:
        raise ScoringError(
            f"{name}: {data.Columns} x {data.Rows} pixels, more than the limit of {MAX_PIXELS:,}"
        )
    bits, signed = int(data.get("BitsStored") or data.BitsAllocated), bool(data.PixelRepresentation)
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    pixels = data.pixel_array
    black, white = sorted(_shown(np.array([lowest, highest], pixels.dtype), data))
    if black == white:
        raise ScoringError(f"{name}: its rescaling or VOI LUT makes all pixels equal")
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
            f"{name}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}"
        )
