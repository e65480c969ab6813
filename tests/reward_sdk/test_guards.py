import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample

SENTENCE = "No pleural effusion is seen on either side."


def score(name: str, report: str, reference: str | None = None, **settings: object) -> float | None:
    response = f"<report>{report}</report>"
    (result,) = RewardSet.from_config({name: settings}).score([Sample(response, reference)])
    return result.total


def words(n: int) -> str:
    return " ".join(["word"] * n)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_a_length_inside_of_the_band_costs_nothing(n):
    assert score("length", words(n), words(10)) == 0


def test_a_report_of_half_the_shortest_or_twice_the_longest_length_costs_a_half():
    assert score("length", words(2), words(8), low=0.5) == pytest.approx(-0.5)
    assert score("length", words(32), words(8), high=2) == pytest.approx(-0.5)


def test_the_band_can_be_given_in_words_and_then_needs_no_reference():
    assert score("length", words(30), low=20, high=40, of="words") == 0
    assert score("length", words(80), low=20, high=40, of="words") == pytest.approx(-0.5)


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1), (0, 0)])
def test_a_band_that_is_none_is_refused(low, high):
    with pytest.raises(ConfigError, match="band"):
        score("length", "", "", low=low, high=high)


@given(st.text(), st.text())
def test_guards_stay_between_minus_1_and_0(report, reference):
    for name in ("length", "repetition"):
        assert -1 <= score(name, report, f"a{reference}") <= 0


def test_a_report_without_repetition_costs_nothing():
    assert score("repetition", f"{SENTENCE} The heart is enlarged.") == 0


def test_a_report_repeated_without_end_costs_nearly_everything():
    assert score("repetition", SENTENCE * 2) < -0.3
    assert score("repetition", SENTENCE * 100) < -0.98


def test_three_words_cannot_repeat():
    assert score("repetition", "no no no") == 0


def test_without_a_report_a_guard_costs_everything():
    (result,) = RewardSet.from_config({"repetition": {}}).score([Sample("no tags")])
    assert result.total == -1
