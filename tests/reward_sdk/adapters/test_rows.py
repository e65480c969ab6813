import base64

import pytest
from PIL import Image

from reward_sdk.adapters.rows import image_ref, row_sample, url_image
from reward_sdk.errors import ConfigError

PICTURE = Image.new("L", (2, 2))


@pytest.mark.parametrize(
    ("given", "path", "data", "pixels"),
    [
        ("a.png", "a.png", None, None),
        (b"PNG", None, b"PNG", None),
        (PICTURE, None, None, PICTURE),
        ({"path": "a.png", "bytes": None}, "a.png", None, None),
        ({"path": "a.png", "bytes": b"PNG"}, None, b"PNG", None),
        (["a.png", "b.png"], "a.png", None, None),
        ([{"path": "a.png"}], "a.png", None, None),
    ],
)
def test_images_come_in_every_form_of_a_training_set(given, path, data, pixels):
    ref = image_ref(given, "AP")
    assert (ref.path, ref.data, ref.pixels, ref.view) == (path, data, pixels, "AP")


@pytest.mark.parametrize("given", [None, [], ()])
def test_no_image_is_none(given):
    assert image_ref(given) is None


def test_an_image_without_content_is_one_that_fails_and_not_none():
    assert image_ref({"path": None, "bytes": None}).data == b""


def test_an_image_of_another_type_is_an_error():
    with pytest.raises(ConfigError, match="an image is a path, bytes or a PIL image, not int"):
        image_ref(7)


def test_the_first_image_of_a_list_that_is_there_counts():
    assert image_ref([None, "b.png"]).path == "b.png"


@pytest.mark.parametrize("given", [{"url": "a"}, {"array": [1]}])
def test_a_mapping_of_another_kind_is_an_error(given):
    with pytest.raises(ConfigError, match="not dict"):
        image_ref(given)


NAN = float("nan")


@pytest.mark.parametrize("blank", [None, "", "  ", NAN])
def test_what_is_blank_is_not_there(blank):
    row = dict.fromkeys(("reference", "image", "view", "id"), blank)
    sample = row_sample("x", row, {"image"})
    assert (sample.reference, sample.image, sample.id) == (None, None, "")


def test_a_blank_name_gives_way_to_the_next():
    row = {"reference": "", "report": None, "ground_truth": "Clear.", "image": None,
           "images": ["a.png"]}  # fmt: skip
    sample = row_sample("x", row, {"image"})
    assert sample.reference == "Clear."
    assert sample.image.path == "a.png"


def test_an_image_that_no_reward_needs_is_not_looked_at():
    assert row_sample("x", {"image": 7, "view": "AP"}, {"reference"}).image is None


def test_ids_of_any_type_and_views_are_kept():
    sample = row_sample("x", {"id": 5, "image": "a.png", "view": "AP"}, {"image"})
    assert (sample.id, sample.image.view) == ("5", "AP")


@pytest.mark.parametrize("value", [3, ["a"], {"text": "a"}])
def test_a_reference_of_another_type_is_an_error(value):
    with pytest.raises(ConfigError, match="a reference is a text or None"):
        row_sample("x", {"reference": value}, ())


def test_a_data_url_is_its_image_and_others_stay_what_they_are():
    url = "data:image/png;base64," + base64.b64encode(b"PNG").decode()
    assert url_image(url) == b"PNG"
    assert url_image("https://example.org/a.png") == "https://example.org/a.png"
    assert url_image("data:image/png;base64,???") == b""
