from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from reward_sdk.errors import ConfigError
from valor_plugin.evaluation.curves import curve_svg, read_scalars, reward_curve, running_mean

NAN = float("nan")
POINTS = [(1, 0.2), (2, 0.4), (3, 0.3)]


def write_log(folder, records):
    """Writes (wall time, step, key, value) as the host's SummaryWriter does."""
    writer = EventFileWriter(str(folder))
    for wall_time, step, key, value in records:
        summary = Summary(value=[Summary.Value(tag=key, simple_value=value)])
        writer.add_event(Event(wall_time=wall_time, step=step, summary=summary))
    writer.close()


def test_scalars_are_read_by_key_and_step(tmp_path):
    write_log(
        tmp_path / "ppo_0101T10:00",
        [
            (1, 1, "train/reward", 0.5),
            (2, 2, "train/reward", 0.75),
            (2, 2, "train/findings_f1/applied", 0.25),
        ],
    )
    assert read_scalars(tmp_path) == {
        "train/findings_f1/applied": [(2, 0.25)],
        "train/reward": [(1, 0.5), (2, 0.75)],
    }


def test_the_log_of_the_hosts_own_writer_is_read(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(log_dir=str(tmp_path / "run")) as writer:
        for step in range(1, 30):
            writer.add_scalar("train/reward", step / 32, step)
        writer.add_text("train/generated_samples", "Sample", 1)
    assert read_scalars(tmp_path) == {"train/reward": [(i, i / 32) for i in range(1, 30)]}


def test_a_resumed_run_continues_the_curve_and_its_repeated_steps_stand(tmp_path):
    first = [(float(step), step, "train/reward", 0.0) for step in (1, 2, 3)]
    again = [(float(step + 10), step, "train/reward", 1.0) for step in (3, 4)]
    write_log(tmp_path / "z_first", first)
    write_log(tmp_path / "a_again", again)
    assert read_scalars(tmp_path) == {"train/reward": [(1, 0), (2, 0), (3, 1), (4, 1)]}


def test_no_step_of_a_long_log_is_dropped(tmp_path):
    write_log(tmp_path, [(i, i, "train/kl", 1.0) for i in range(12_000)])
    assert len(read_scalars(tmp_path)["train/kl"]) == 12_000


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="tensorboard_dir"):
        read_scalars(tmp_path)


def test_a_reward_that_waits_or_is_skipped_does_not_look_like_zero():
    scalars = {
        "train/bleu": [(1, 0.0), (2, 0.5), (3, 0.2)],
        "train/bleu/applied": [(1, 0.0), (2, 1.0), (3, 0.25)],
    }
    assert reward_curve(scalars, "bleu") == [(2, 0.5), (3, 0.8)]


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
    assert {"format <b> & $x$", "reward", "policy step", 'Stage 1: "rewards"'} <= texts


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
