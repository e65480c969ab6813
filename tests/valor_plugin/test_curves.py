from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valor_plugin.evaluation.curves import curve_svg, loss_curves, reward_curves, running_mean
from valor_plugin.records import RewardMeans, Step, SupervisedStep

NAN = float("nan")
POINTS = [(1, 0.2), (2, 0.4), (3, 0.3)]


def step(number: int, mean: float | None) -> Step:
    part = RewardMeans(mean, float(mean is not None), 0.0)
    return Step(number, 0.0, 0.5, {"bleu": part}, 0.0, 0.0, None, 9.0, 0.0, {}, {})


def test_a_reward_that_waits_or_does_not_apply_does_not_look_like_zero():
    steps = [step(1, None), step(2, 0.5), step(3, 0.8)]
    assert reward_curves(steps) == {"bleu": [(2, 0.5), (3, 0.8)]}


def test_losses_are_drawn_and_those_on_held_out_studies_where_there_are_any():
    steps = [SupervisedStep(1, 0.0, 2.0, 0.1, None, 9, 1.0), SupervisedStep(2, 0.0, None, 0.1, None,
             9, 1.0)]  # fmt: skip
    assert loss_curves(steps) == {"loss": [(1, 2.0)]}
    evaluated = SupervisedStep(3, 0.0, 1.0, 0.1, None, 9, 1.0, evaluation_loss=1.5)
    assert loss_curves([*steps, evaluated])["held-out loss"] == [(3, 1.5)]


def test_the_running_mean_is_centred_shortens_at_the_ends_and_skips_nan():
    assert running_mean([1, 2, 6, NAN, 4], 3).tolist() == [1.5, 3.0, 4.0, 5.0, 4.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 50))
def test_the_running_mean_keeps_length_and_range(values, window):
    mean = running_mean(values, window)
    assert len(mean) == len(values)
    assert min(values) - 1e-6 <= np.min(mean) <= np.max(mean) <= max(values) + 1e-6


def test_a_chart_is_one_svg_element_with_title_legend_and_axis():
    svg = curve_svg({"format <b> & $x$": POINTS, "reward": POINTS}, 'Stage 1: "rewards"')
    root = ElementTree.fromstring(svg)
    texts = {element.text.strip() for element in root.iter() if element.text}
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == 'Stage 1: "rewards"'
    assert {"format <b> & $x$", "reward", "step", 'Stage 1: "rewards"'} <= texts


def test_the_same_numbers_give_the_same_bytes():
    assert curve_svg({"reward": POINTS}, "Stage 1") == curve_svg({"reward": POINTS}, "Stage 1")


def test_two_charts_on_a_page_share_no_id():
    first, second = (curve_svg({"reward": POINTS}, title) for title in ("Stage 1", "Stage 2"))
    ids = [
        {element.get("id") for element in ElementTree.fromstring(svg).iter()} - {None}
        for svg in (first, second)
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_chart_takes_the_text_colour_of_its_page():
    svg = curve_svg({"reward": POINTS}, "Stage 1")
    assert "fill: currentColor" in svg
    assert "#010203" not in svg


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, NAN), (3, 0.5)]])
def test_a_single_point_or_a_gap_can_be_drawn(points):
    ElementTree.fromstring(curve_svg({"reward": points}, "Stage 1"))


@pytest.mark.parametrize("series", [{}, {"reward": []}, {str(i): POINTS for i in range(5)}])
def test_a_chart_that_cannot_be_read_is_refused(series):
    with pytest.raises(ValueError, match="Stage 1"):
        curve_svg(series, "Stage 1")
