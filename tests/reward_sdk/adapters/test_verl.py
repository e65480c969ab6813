import json

import pytest

from reward_sdk.adapters import verl
from reward_sdk.errors import ConfigError


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.yaml"
    path.write_text(
        json.dumps({"rewards": {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}})
    )
    return str(path)


def score(rewards, ground_truth="a", **extra):
    return verl.compute_score_sync(
        "d", "<report> a </report>", ground_truth, extra, rewards=rewards
    )


def test_a_set_is_built_once_for_all_samples(rewards, monkeypatch):
    built = []
    original = verl.Scorer
    monkeypatch.setattr(verl, "Scorer", lambda *a: built.append(a) or original(*a))
    for _ in range(3):
        assert score(rewards)["score"] == pytest.approx(1.0)
    assert len(built) == 1


@pytest.mark.parametrize("value", [{"report": "a"}, 3, ["a"]])
def test_a_ground_truth_of_another_type_ends_the_run(rewards, value):
    with pytest.raises(ConfigError, match="a reference is a text or None"):
        score(rewards, value)


def test_a_ground_truth_that_is_not_there_is_a_missing_part_and_no_zero(rewards):
    found = score(rewards, float("nan"))
    assert found["score"] == pytest.approx(1.0)
    assert found["rouge_l/applied"] == 0.0
