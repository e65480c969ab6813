"""What a sample takes, and what a score says of itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reward_sdk import ImageRef, Outcome, RewardSet, Sample, Score


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("x.png", ImageRef(path="x.png")),
        (Path("a/x.png"), ImageRef(path="a/x.png")),
        (b"png", ImageRef(data=b"png")),
        (ImageRef("x.png", view="PA"), ImageRef("x.png", view="PA")),
        (None, None),
    ],
)
def test_what_stands_for_an_image_becomes_one(given, wanted):
    assert Sample("", image=given).image == wanted


def test_a_pil_image_becomes_the_pixels_of_one():
    image = Image.new("L", (2, 2))
    assert Sample("", image=image).image.pixels is image  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response": None}, "response is a text, not NoneType"),
        ({"response": "", "reference": ["Clear."]}, "reference is a text or None, not list"),
        ({"response": "", "reference": float("nan")}, "reference is a text or None, not float"),
        ({"response": "", "image": np.zeros((2, 2))}, "not ndarray"),
        ({"response": "", "image": 3}, "an image is a path, bytes or a PIL image, not int"),
        ({"response": "", "id": 1.5}, "id is a text, not float"),
    ],
)
def test_a_value_of_another_type_is_a_type_error(fields, message):
    with pytest.raises(TypeError, match=message):
        Sample(**fields)


def test_an_integer_names_a_study_too():
    assert Sample("", id=50414267).id == "50414267"


@pytest.mark.parametrize(
    ("response", "tags", "report"),
    [
        ("Clear.", "required", None),
        ("Clear.", "optional", "Clear."),
        (" \n", "optional", None),
        ("<report> Clear. </report>", "optional", "Clear."),
        ("<report> Clear.", "optional", None),
        ("<think> Hm. </think> Clear.", "optional", "Clear."),
        ("<think> Hm. Clear.", "optional", None),
    ],
)
def test_a_report_is_read_by_its_tags_or_without_any(response, tags, report):
    assert Sample(response, tags=tags).report == report


def test_a_total_says_on_how_many_rewards_it_stands():
    rewards = RewardSet.from_config(["rouge_l", "format"])
    whole, part = rewards.score(
        [Sample("<report> a </report>", "a"), Sample("<report> a </report>")]
    )
    assert (str(whole), whole.missing) == ("2.0000", ())
    assert str(part) == "2.0000 (1 of 2 rewards, 1 not applicable)"
    assert part.missing == part.not_applicable == ("rouge_l",)


def test_a_reward_that_waits_for_its_step_is_not_missing():
    rewards = RewardSet.from_config({"format": {}, "findings_f1": {"every": 4}})
    [score] = rewards.score([Sample("<report> a </report>", "a")], step=1)
    assert (score.missing, score.coverage) == ((), "")


def test_what_failed_and_what_does_not_apply_are_told_apart():
    parts = {"a": Outcome(1.0), "b": Outcome(None, "failed"), "c": Outcome(None, "not_applicable"),
             "d": Outcome(None, "skipped"), "e": Outcome(0.0, "failed")}  # fmt: skip
    score = Score(1.0, parts, {})
    assert (score.missing, score.not_applicable) == (("b", "c"), ("c",))
    assert score.coverage == "2 of 4 rewards, 1 failed, 1 not applicable"


def test_a_score_of_nothing_says_so():
    assert (
        str(Score(None, {"a": Outcome(None, "failed")}, {}))
        == "no total (0 of 1 rewards, 1 failed)"
    )
