"""Opening X-rays safely: DICOM, and the usual formats of images.

A file of a few bytes can claim any number of pixels. `MAX_PIXELS` bounds one image by its header,
and `opened` bounds what all threads of a process hold decoded at a time: those who want to keep
something of an image make it small inside of the `with`, and let the large one go. Files whose
decoders take time or memory beyond their pixels are refused: JPEG 2000, of which 200 bytes can take
gigabytes, deflated DICOM, and those with more parts than any camera writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from reward_sdk.errors import ExhaustedError, ScoringError, exhausted
from reward_sdk.types import ImageRef

if TYPE_CHECKING:
    from pydicom import Dataset

LATERAL = frozenset({"LATERAL", "LL", "RL", "LLD", "RLD"})
"""Values of DICOM's View Position (0018,5101) and of MIMIC-CXR's ViewPosition for side views."""
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
"""What is read beside DICOM: Pillow knows formats whose readers start other programs."""
_PIXELS = 0x7FE00010  # DICOM's tag of them
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL = 4096  # ours: bytes at the end of a file in which its end mark must stand
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that may unpack to any size
MAX_PIXELS = 25_000_000  # ours: detectors of 43 cm with pixels of 0.1 mm have 18 million
_PATIENCE = 60.0  # ours: seconds that an image waits for room
_SEGMENTS = 1000  # ours: of a JPEG file before its pixels; ten are usual
_SCANS = 100  # ours: of a progressive JPEG file; ten are usual
_CHUNKS = 20_000  # ours: of a PNG file; one of 32 MB has 4,000 of libpng
_HEADER = 4 << 20  # ours: bytes of a DICOM file before its pixels; an overlay has up to 3 MB


class RefusedError(ScoringError):
    """An image that is beyond a limit, or that no one may ask for: it is not even looked at."""


class _Room:
    """So many pixels that the threads of this process may hold decoded at a time."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: tuple[int, int], name: str) -> Iterator[None]:
        """Waits until there is room for an image of this width and height.

        Raises:
            RefusedError: it has more than `MAX_PIXELS`.
            ExhaustedError: others have held the room for `_PATIENCE` seconds.
        """
        wanted = check_size(size, name)
        with self._changed:
            if not self._changed.wait_for(lambda: self._left >= wanted, _PATIENCE):
                raise ExhaustedError(f"{name}: other images are being decoded for {_PATIENCE:g} s")
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()


_ROOM = _Room(MAX_PIXELS)  # ours: three films of 8 million


@contextmanager
def opened(ref: ImageRef) -> Iterator[Image.Image]:
    """The decoded image of `ref`, to be let go at the end; of a DICOM file its grey values as a
    viewer shows them, 8 bits. One thread opens one at a time.

    All that a process holds open has at most `MAX_PIXELS` pixels together; others wait.

    Raises:
        ScoringError: there is no image, or its file is missing, corrupt, of unknown format, or
            larger than `MAX_PIXELS`, which is checked before anything is decoded. Names the file.
        ExhaustedError: the machine is out of files or memory, or no room was left for too long.
    """
    with ExitStack() as stack:
        yield _decoded(ref, stack)


def _decoded(ref: ImageRef, stack: ExitStack) -> Image.Image:
    """The image; the room that it takes is given back when the stack ends."""
    if ref.pixels is not None:
        stack.enter_context(_ROOM.of(ref.pixels.size, "image in memory"))
        return ref.pixels
    with _file(ref) as (file, name):
        if _is_dicom(file):
            data = _dicom(file, name)
            stack.enter_context(_ROOM.of(_dicom_size(data, name), name))
            return _shown_dicom(data, name)
        _check_parts(file, name)
        image = stack.enter_context(_header(file, name))
        stack.enter_context(_ROOM.of(image.size, name))
        image.load()
        return image


def open_image(ref: ImageRef) -> Image.Image:
    """The image of `opened`, for those who keep all of it; raises as that does."""
    with opened(ref) as image:
        return image


def check_image(ref: ImageRef) -> None:
    """Raises ScoringError for a file that `open_image` would refuse. Of PNG and JPEG files the
    header and the end are read, which tells at little cost that nothing was cut off; any other
    file, and one without its end mark, is decoded."""
    with _file(ref) as (file, name):
        if not _is_dicom(file):
            with _header(file, name) as image:
                check_size(image.size, name)
                end = _ENDS.get(image.format or "")
            file.seek(max(0, file.seek(0, SEEK_END) - _TAIL))
            if end is not None and end in file.read():
                return
    open_image(ref)


def check_pixels(ref: ImageRef) -> None:
    """Raises RefusedError for an image of more than `MAX_PIXELS`, of a file by its header alone,
    and for one that may not be opened; says nothing about DICOM, nor about what cannot be read."""
    if ref.pixels is not None:
        check_size(ref.pixels.size, "image in memory")
        return
    try:
        with _file(ref) as (file, name), _header(file, name) as image:
            check_size(image.size, name)
    except RefusedError:
        raise
    except ScoringError:
        return


def is_lateral(ref: ImageRef) -> bool:
    """Whether the image is known to be a side view: by `ref.view`, else by its DICOM header.

    Raises:
        ScoringError: the image's DICOM header cannot be read.
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
        with ref.open() as file:
            yield file, name
    except (ScoringError, ExhaustedError):
        raise
    except FileNotFoundError:
        raise ScoringError(f"{name}: no such file") from None
    except Image.DecompressionBombError as error:
        raise RefusedError(f"{name}: {error}") from None
    except UnidentifiedImageError as error:
        raise ScoringError(f"{name}: cannot be read: no image in a known format") from error
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        if out_of := exhausted(error):
            raise ExhaustedError(f"{name}: {out_of}") from error
        raise ScoringError(f"{name}: cannot be read: {error}") from error


def _header(file: BinaryIO, name: str) -> Image.Image:
    """The image, of which nothing but the header was read, and that has an end.

    Raises:
        RefusedError: more parts, or larger ones, than its pixels need.
    """
    start = file.read(8)
    if start.startswith(_JPEG):
        _walk(file, len(_JPEG), _SEGMENTS, _jpeg_segment, name)
    elif start == _PNG:
        _walk(file, len(_PNG), _CHUNKS, _png_chunk_before_pixels, name)
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    width, height = (tags.get(tag, 1) for tag in (322, 323))
    if width * height > 2 * max(image.width * image.height, 1 << 20):
        raise RefusedError(f"{name}: a TIFF file with tiles of {width} x {height}")
    return image


def _check_parts(file: BinaryIO, name: str) -> None:
    """Raises RefusedError for a file that would be decoded for very long. Looks at all of it, which
    is cheap only beside decoding it."""
    start = file.read(8)
    if start == _PNG:
        _walk(file, len(_PNG), _CHUNKS, _png_chunk, name)
    file.seek(0)
    # The mark of a scan stands nowhere among the pixels.
    if start.startswith(_JPEG) and file.read().count(b"\xff\xda") > _SCANS:
        raise RefusedError(f"{name}: a JPEG file of more than {_SCANS} scans")
    file.seek(0)


def _walk(file: BinaryIO, place: int, most: int, size: Callable[[bytes], int], name: str) -> None:
    """Goes from part to part of a file, whose first 8 bytes tell the `size` of each, 0 at the end;
    RefusedError if there are more than `most`."""
    for _ in range(most):
        file.seek(place)
        part = file.read(8)
        found = size(part) if len(part) >= 4 else 0
        if not found:
            return
        place += found
    raise RefusedError(f"{name}: more than {most:,} parts in the file")


def _jpeg_segment(part: bytes) -> int:
    """Of one before the pixels."""
    if part[0] != 0xFF or part[1] == 0xDA:
        return 0
    filling = part[1] == 0xFF or 0xD0 <= part[1] <= 0xD8 or part[1] == 1  # without a length
    return (1 if part[1] == 0xFF else 2) if filling else 2 + int.from_bytes(part[2:4])


def _png_chunk(part: bytes) -> int:
    return 12 + int.from_bytes(part[:4])


def _png_chunk_before_pixels(part: bytes) -> int:
    return 0 if part[4:] == b"IDAT" else _png_chunk(part)


def _is_dicom(file: BinaryIO) -> bool:
    """Whether the file starts as DICOM files do: 128 bytes of anything, then "DICM"."""
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def _dicom(file: BinaryIO, name: str, header: bool = False) -> Dataset:
    """What the file says up to its pixels, and these unless the `header` is asked for."""
    pydicom = _pydicom()
    from pydicom.filereader import read_partial

    beginning = file.read(_HEADER)
    file.seek(0)
    if _DEFLATED in beginning:
        raise ScoringError(f"{name}: deflated DICOM, which may unpack to any size: convert it")
    start = BytesIO(beginning)
    found = pydicom.dcmread(start, stop_before_pixels=True)
    if start.tell() == _HEADER:
        raise ScoringError(f"{name}: more than {_HEADER:,} bytes before the pixels: convert it")
    return found if header else read_partial(file, lambda tag, *_: tag > _PIXELS)


def _dicom_size(data: Dataset, name: str) -> tuple[int, int]:
    """Width and height; ScoringError unless it is one image of whole grey values whose compressed
    form, if it has one, claims the same."""
    gray = str(data.get("PhotometricInterpretation")).startswith("MONOCHROME")
    whole = "PixelData" in data  # not floating point
    if not gray or not whole or data.get("NumberOfFrames", 1) not in (None, 1):
        raise ScoringError(
            f"{name}: no single image of whole grey values, but DICOM of another kind: "
            "convert it to PNG"
        )
    size = int(data.Columns), int(data.Rows)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        from pydicom.encaps import get_frame

        frame = BytesIO(get_frame(data.PixelData, 0, number_of_frames=1))
        try:
            _check_parts(frame, name)
            with _header(frame, name) as image:
                inside = image.size
        except UnidentifiedImageError:
            raise ScoringError(
                f"{name}: DICOM compressed as {data.file_meta.TransferSyntaxUID.name}, which may "
                "unpack to any size: convert it to PNG"
            ) from None
        if inside != size:
            raise ScoringError(f"{name}: says {size} pixels and holds {inside}")
    return size


def _shown_dicom(data: Dataset, name: str) -> Image.Image:
    """Values through modality and VOI LUT; what those make of the stored range becomes 0..255."""
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
        ScoringError: the values have no defined range: floating point, or more than 16 bits.
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


def check_size(size: tuple[int, int], name: str) -> int:
    """The pixels of an image of this width and height; RefusedError if they are more than
    `MAX_PIXELS`."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise RefusedError(
            f"{name}: {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}"
        )
    return width * height
