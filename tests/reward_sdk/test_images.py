import resource
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from support.shared import DATA

from reward_sdk import images
from reward_sdk.errors import ExhaustedError, ScoringError
from reward_sdk.images import (
    RefusedError,
    check_image,
    check_pixels,
    is_lateral,
    open_image,
    opened,
    to_gray,
)
from reward_sdk.types import ImageRef

NIH = DATA / "nih-cxr14/original"


def test_a_file_is_opened_decoded(tmp_path):
    Image.new("L", (5, 3), 7).save(tmp_path / "x.png")
    assert open_image(ImageRef(path=str(tmp_path / "x.png"))).getpixel((4, 2)) == 7


def test_pixels_win_over_the_path():
    pixels = Image.new("L", (2, 2))
    assert open_image(ImageRef(path="missing.png", pixels=pixels)) is pixels


def test_a_missing_file_is_named():
    with pytest.raises(ScoringError, match=r"missing\.png: no such file"):
        open_image(ImageRef(path="missing.png"))


def test_a_corrupt_file_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    with pytest.raises(ScoringError, match=r"x\.png: cannot be read"):
        open_image(ImageRef(path=str(path)))


def test_a_truncated_file_is_an_error_and_no_half_black_image(tmp_path):
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ScoringError, match=r"x\.png: cannot be read"):
        open_image(ImageRef(path=str(path)))


def test_too_many_pixels_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    Image.new("L", (4, 3)).save(tmp_path / "x.png")
    with pytest.raises(ScoringError, match=r"x\.png: 4 x 3 pixels, more than the limit of 10"):
        open_image(ImageRef(path=str(tmp_path / "x.png")))


@pytest.fixture
def small_room(monkeypatch):
    """Room for 100 pixels in the whole process, for which nobody waits long."""
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    monkeypatch.setattr(images, "_ROOM", images._Room(100))
    monkeypatch.setattr(images, "_PATIENCE", 0.2)


def film(path: Path, width: int, height: int) -> ImageRef:
    Image.new("L", (width, height)).save(path)
    return ImageRef(path=str(path))


def test_what_all_threads_hold_decoded_is_bounded(tmp_path, small_room):
    ref, now, most, lock = film(tmp_path / "x.png", 5, 8), [0], [0], threading.Lock()

    def look(_):
        with opened(ref):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.005)
            with lock:
                now[0] -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(look, range(64)))
    assert most == [2]


def test_an_image_waits_for_room_and_says_so_if_there_is_none(tmp_path, small_room):
    large, small = film(tmp_path / "large.png", 10, 10), film(tmp_path / "small.png", 1, 1)
    with (
        opened(large),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ExhaustedError, match=r"small\.png: other images are being decoded"),
    ):
        pool.submit(open_image, small).result()
    assert open_image(small).size == (1, 1)


def test_an_image_that_cannot_be_decoded_gives_its_room_back(tmp_path, small_room):
    broken = tmp_path / "broken.png"
    film(broken, 10, 10)
    broken.write_bytes(broken.read_bytes()[:-30])
    for _ in range(3):
        with pytest.raises(ScoringError, match=r"broken\.png: cannot be read"):
            open_image(ImageRef(path=str(broken)))


def test_what_is_raised_while_an_image_is_open_is_not_taken_for_the_images_fault(tmp_path):
    ref = film(tmp_path / "x.png", 2, 2)
    with pytest.raises(ZeroDivisionError), opened(ref):
        raise ZeroDivisionError


def test_a_machine_out_of_files_is_no_missing_image(tmp_path):
    ref = film(tmp_path / "x.png", 2, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ExhaustedError, match=r"x\.png: Too many open files"):
            open_image(ref)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_empty_reference_is_an_error():
    with pytest.raises(ScoringError, match="no path, bytes or pixels"):
        open_image(ImageRef())


def test_colour_images_give_channel_0():
    gray = to_gray(Image.new("RGB", (3, 2), (10, 20, 30)))
    assert gray.dtype == np.float32
    assert gray.shape == (2, 3)
    assert (gray == 10).all()


def test_palette_images_give_channel_0_of_their_colours():
    palette = Image.new("RGB", (2, 2), (200, 20, 30)).quantize()
    assert (to_gray(palette) == 200).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_16_bit_values_fill_the_range_0_to_255(tmp_path, kind):
    values = np.array([[0, 257, 65535]], dtype=kind)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    assert to_gray(open_image(ImageRef(path=str(tmp_path / "x.tiff")))).tolist() == [[0, 1, 255]]


def test_a_16_bit_png_is_scaled_by_its_bit_depth(tmp_path):
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert to_gray(open_image(ImageRef(path=str(tmp_path / "x.png")))).tolist() == [[0, 255]]


@pytest.mark.parametrize("values", [np.float32([[0.5]]), np.int32([[70000]]), np.int32([[-1]])])
def test_values_without_a_known_range_are_refused(values):
    with pytest.raises(ScoringError, match="no known range"):
        to_gray(Image.fromarray(values))


@pytest.mark.skipif(not NIH.is_dir(), reason="shared data absent")
def test_real_x_rays_load_as_torchxrayvision_loads_them():
    xrv = pytest.importorskip("torchxrayvision")
    for path in sorted(NIH.glob("*.png"))[:3]:
        ours = xrv.utils.normalize(to_gray(open_image(ImageRef(path=str(path)))), 255)
        assert np.array_equal(ours[None], xrv.utils.load_image(str(path)))


def dicom(path: Path, values, bits=12, photometric="MONOCHROME2", **tags) -> ImageRef:
    """A DICOM file of grey values."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import DigitalXRayImageStorageForPresentation as Storage
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    values = np.asarray(values)
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = Storage, generate_uid()
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
    data.BitsStored, data.HighBit = bits, bits - 1
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.PixelRepresentation = int(values.dtype.kind == "i" and values.min() < 0)
    kind = {8: "u1", 16: "i2" if data.PixelRepresentation else "u2"}[data.BitsAllocated]
    data.PixelData = values.astype(f"<{kind}").tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return ImageRef(path=str(path))


def gray_of(ref: ImageRef):
    return np.asarray(open_image(ref)).tolist()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_dicom_image_is_scaled_by_its_bit_depth_and_not_by_its_content(tmp_path, bits):
    top = (1 << bits) - 1
    values = np.array([[0, top // 4, top // 2]])
    assert abs(np.array(gray_of(dicom(tmp_path / "x", values, bits))) - [0, 64, 127]).max() <= 1


def test_low_values_of_monochrome1_are_bright(tmp_path):
    assert gray_of(dicom(tmp_path / "x", [[0, 4095]], photometric="MONOCHROME1")) == [[255, 0]]


def test_the_window_of_a_dicom_image_is_what_a_viewer_shows(tmp_path):
    values = np.array([[0, 1000, 2000, 3000, 4095]])
    shown = gray_of(dicom(tmp_path / "x", values, WindowCenter=2000, WindowWidth=2000))[0]
    assert shown[:2] == [0, 0]
    assert shown[3:] == [255, 255]
    assert abs(shown[2] - 128) <= 1


def test_a_rescaled_window_is_in_rescaled_units(tmp_path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1900, "WindowWidth": 2}
    shown = gray_of(dicom(tmp_path / "x", [[900, 1100]], **tags))[0]
    assert shown == [0, 255]


def test_signed_values_are_shown_from_the_lowest_to_the_highest(tmp_path):
    assert gray_of(dicom(tmp_path / "x", np.array([[-2048, 0, 2047]])))[0] == [0, 128, 255]


def test_a_dicom_lookup_table_is_applied(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.LUTData = np.array([0, 10, 200, 255], "<u2").tobytes()
    tags = {"VOILUTSequence": pydicom.Sequence([table])}
    assert gray_of(dicom(tmp_path / "x", [[0, 1, 2, 3]], bits=8, **tags)) == [[0, 10, 200, 255]]


def test_dicom_files_that_are_no_grey_image_and_broken_ones_are_named(tmp_path):
    ref = dicom(tmp_path / "frames.dcm", np.zeros((2, 3, 3), int), NumberOfFrames=2)
    with pytest.raises(ScoringError, match=r"frames\.dcm: no single image of whole grey values"):
        open_image(ref)
    whole = Path(dicom(tmp_path / "x.dcm", np.zeros((30, 30), int)).path).read_bytes()
    (tmp_path / "broken.dcm").write_bytes(whole[:-900])
    with pytest.raises(ScoringError, match=r"broken\.dcm: cannot be read"):
        open_image(ImageRef(path=str(tmp_path / "broken.dcm")))


def test_a_huge_dicom_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    ref = dicom(tmp_path / "x.dcm", [[0, 1, 2, 3]])
    monkeypatch.setattr(images, "MAX_PIXELS", 3)
    with pytest.raises(ScoringError, match=r"x\.dcm: 4 x 1 pixels, more than the limit of 3"):
        open_image(ref)


def compressed(path: Path, inside: tuple[int, int], syntax: str) -> ImageRef:
    """A DICOM file of 30 x 30 pixels by its header, compressed, with an image of another size."""
    ref = dicom(path, np.zeros((30, 30), int), bits=8)
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    data, frame = dcmread(path), BytesIO()
    Image.new("L", inside).save(frame, "JPEG2000" if syntax == JPEG2000 else "JPEG")
    if syntax == RUNS:
        frame = BytesIO(bytes(64) + b"\x81\x00" * 100)
    data.PixelData = encapsulate([frame.getvalue()])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.save_as(path)
    return ref


JPEG, JPEG2000, RUNS = (f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.90", "5"))


def test_a_compressed_dicom_image_is_read(tmp_path):
    assert np.shape(gray_of(compressed(tmp_path / "x.dcm", (30, 30), JPEG))) == (30, 30)


def test_a_compressed_dicom_image_that_claims_to_be_smaller_is_refused(tmp_path):
    with pytest.raises(ScoringError, match=r"x\.dcm: says \(30, 30\) pixels and holds \(400, 40"):
        open_image(compressed(tmp_path / "x.dcm", (400, 400), JPEG))


@pytest.mark.parametrize(("syntax", "name"), [(RUNS, "RLE Lossless"), (JPEG2000, "JPEG 2000")])
def test_dicom_that_may_unpack_to_any_size_is_refused(tmp_path, syntax, name):
    with pytest.raises(ScoringError, match=rf"x\.dcm: DICOM compressed as {name}"):
        open_image(compressed(tmp_path / "x.dcm", (30, 30), syntax))


def test_a_deflated_dicom_file_is_refused_wherever_it_says_so(tmp_path):
    ref = dicom(tmp_path / "x.dcm", [[0, 1]])
    data = Path(str(ref.path)).read_bytes()
    long = b"\x02\0\x01\0OB\0\0" + (100_000).to_bytes(4, "little") + bytes(100_000)
    syntax = b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99"
    for read in (open_image, is_lateral):
        with pytest.raises(ScoringError, match="deflated DICOM"):
            read(ImageRef(data=data[:132] + long + syntax + data[132:]))


def test_a_dicom_file_of_endless_elements_is_refused_before_its_pixels_and_not_read_behind(
    tmp_path,
):
    ref = dicom(tmp_path / "x.dcm", [[0, 4095]])
    data = Path(str(ref.path)).read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00")

    def elements(group):
        return b"".join(
            group + i.to_bytes(2, "little") + b"LO\0\0"
            for i in range(0x1000, 0x1000 + 60_000 % 61_000)
        )

    before = data[:pixels] + 10 * elements(b"\x0b\x00") + data[pixels:]
    with pytest.raises(ScoringError, match="more than 4,194,304 bytes before the pixels"):
        open_image(ImageRef(data=before))
    behind = ImageRef(data=data + 20 * elements(b"\xf1\x7f"))
    began = time.process_time()
    assert np.asarray(open_image(behind)).tolist() == [[0, 255]]
    assert time.process_time() - began < 1


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def endless_png() -> bytes:
    file = BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    data = file.getvalue()
    return data[:33] + chunk(b"prVt", b"x") * 1_000_000 + data[33:]


def endless_jpeg(part: bytes, times: int, place: int) -> bytes:
    file = BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    place = place if place >= 0 else data.rindex(b"\xff\xda")
    return data[:place] + part * times + data[place:]


def large_tile() -> bytes:
    file = BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (65_000, 65_001):  # of nobody; then they are those of a tile's sides
        tags[tag], tags.tagtype[tag] = 30_000, 4
    Image.new("L", (16, 16)).save(file, "TIFF", tiffinfo=tags)
    data = file.getvalue()
    for tag, side in ((65_000, 322), (65_001, 323)):
        data = data.replace(
            struct.pack("<HHII", tag, 4, 1, 30_000), struct.pack("<HHII", side, 4, 1, 30_000)
        )
    return data


EXIF = b"\xff\xe1" + (1002).to_bytes(2, "big") + b"Exif\0\0" + bytes(994)
ENDLESS = {
    "PNG of endless chunks": endless_png,
    "JPEG of endless segments": lambda: endless_jpeg(EXIF, 30_000, 2),
    "JPEG of endless scans": lambda: endless_jpeg(b"\xff\xda\0\x08\1\1\0\1\x3f\0", 20_000, -1),
    "TIFF of a large tile": large_tile,
}


@pytest.mark.parametrize("made", ENDLESS)
def test_a_file_that_takes_more_than_its_pixels_say_is_soon_refused(made):
    ref = ImageRef(data=ENDLESS[made]())
    began = time.process_time()
    with pytest.raises(RefusedError, match=r"parts in the file|scans|tiles of 30000"):
        open_image(ref)
    assert time.process_time() - began < 1


def test_a_header_without_an_end_is_refused_where_nothing_but_headers_is_read():
    for made in ("PNG of endless chunks", "JPEG of endless segments", "TIFF of a large tile"):
        with pytest.raises(RefusedError):
            check_pixels(ImageRef(data=ENDLESS[made]()))


class Counting(ImageRef):
    """A file that notes how many bytes are read of it."""

    def open(self):
        self.__dict__["file"] = file = CountingFile(Path(str(self.path)).read_bytes())
        return file


class CountingFile(BytesIO):
    count = 0

    def read(self, size=-1):
        found = super().read(size)
        self.count += len(found)
        return found


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("check", [check_image, check_pixels])
def test_checks_read_little_of_a_file(tmp_path, form, check):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x", form)
    ref = Counting(str(tmp_path / "x"))
    check(ref)
    assert ref.__dict__["file"].count < 20_000


@pytest.mark.parametrize("options", [{"format": "JPEG", "progressive": True},
                                     {"format": "JPEG", "exif": bytes(2000)},
                                     {"format": "PNG"}, {"format": "TIFF"},
                                     {"format": "TIFF", "compression": "tiff_lzw"}])  # fmt: skip
def test_large_films_of_every_usual_kind_are_read(options):
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2000), dtype=np.uint8)
    Image.fromarray(noise).save(file, **options)
    assert open_image(ImageRef(data=file.getvalue())).size == (2000, 2500)


@pytest.mark.parametrize(
    ("view", "lateral"), [("LL", True), ("LATERAL", True), ("PA", False), ("AP", False)]
)
def test_a_view_is_read_from_the_dicom_header_or_said(tmp_path, view, lateral):
    assert is_lateral(dicom(tmp_path / "x.dcm", [[0]], ViewPosition=view)) == lateral
    assert is_lateral(ImageRef(path="never opened.png", view=view.lower())) == lateral


def test_an_image_of_unknown_view_counts_as_frontal(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "x.png")
    assert not is_lateral(ImageRef(path=str(tmp_path / "x.png")))
    assert not is_lateral(dicom(tmp_path / "x.dcm", [[0]]))
    assert not is_lateral(ImageRef(pixels=Image.new("L", (2, 2))))
