from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reward_sdk import images
from reward_sdk.errors import ScoringError
from reward_sdk.images import open_image, to_gray
from reward_sdk.types import ImageRef

NIH = Path(__file__).parents[3] / "shared/data/nih-cxr14/original"


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


def test_an_empty_reference_is_an_error():
    with pytest.raises(ScoringError, match="neither a path nor pixels"):
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
