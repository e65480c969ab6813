import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import Server, free_port

from reward_sdk.adapters import scorer as module
from reward_sdk.adapters.scorer import MISSING, Scorer, values
from reward_sdk.client import RewardClient
from reward_sdk.config import Entry
from reward_sdk.errors import ConfigError, ServerError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

texts = st.none() | st.text("the heart is clear", max_size=30)


@given(st.text("the heart is clear", min_size=1, max_size=30), texts, st.booleans())
def test_the_weighted_sum_of_the_values_is_the_total(text, reference, tagged):
    rewards = RewardSet.from_config(
        {"rouge_l": {"weight": 0.7}, "bleu": {"weight": -0.4}, "format": {"weight": 0.1},
         "length": {"low": 3, "high": 5, "weight": 0.3}}
    )  # fmt: skip
    scorer = Scorer(rewards)
    [score] = rewards.score([Sample(wrap_report(text) if tagged else text, reference)])
    found = values(score, scorer.weights)
    parts = [scorer.weights.get(name, 1.0) * value for name, value in found.items() if value]
    assert sum(parts) == pytest.approx(score.total, abs=1e-12)
    if reference is not None and reference.strip():
        assert found[MISSING] == 0.0


def test_without_a_total_no_value_is_left_that_could_pass_for_a_zero():
    rewards = RewardSet.from_config({"rouge_l": {}, "format": {"weight": 0.0}})
    [score] = rewards.score([Sample("<report> a </report>")])
    assert score.parts["format"].value == 1.0
    assert set(values(score, Scorer(rewards).weights).values()) == {None}


def test_a_schedule_without_steps_counts_always_and_says_so(caplog):
    rewards = RewardSet.from_config({"rouge_l": {}, "format": {"every": 3}})
    scorer = Scorer(rewards)
    assert "format count on every call" in caplog.text
    [score] = scorer.score([Sample("<report> a </report>", "a")])
    assert score.logs["format/applied"] == 1.0


def test_failed_parts_are_logged_with_the_sample_s_name(caplog):
    class Raising:
        name, bounds, needs = "raising", (0.0, 1.0), frozenset()

        def __call__(self, samples):
            raise ValueError("no memory")

    scorer = Scorer(RewardSet([(Raising(), Entry())]))
    scorer.score([Sample("x", id="s7")])
    asyncio.run(scorer.score_one(Sample("x", id="s8")))
    assert caplog.text.count("no memory") == 2
    assert "'s7'" in caplog.text
    assert "'s8'" in caplog.text


def test_a_server_that_is_waited_for_is_named_and_then_an_error(caplog, monkeypatch):
    monkeypatch.setattr(module, "_SILENT", 0.1)
    url = f"http://127.0.0.1:{free_port()}"
    with RewardClient(url, timeout=0.5) as client, pytest.raises(ServerError, match=url):
        Scorer(client)
    assert "waiting on" in caplog.text


def test_a_served_schedule_is_an_error_where_no_step_is_said(tmp_path):
    with Server(tmp_path, {"rouge_l": {}, "format": {"every": 3}}) as server:
        with pytest.raises(ConfigError, match=r"schedule \(format\): serve a set without `every`"):
            Scorer(server.url)
        assert Scorer(server.url, has_step=True).info.needs_step
