"""A stack takes a set however it is written."""

import asyncio
from collections import UserDict, UserList

import pytest

from reward_sdk.adapters import verl
from reward_sdk.adapters.scorer import Scorer
from reward_sdk.adapters.trl import make_reward_funcs
from reward_sdk.types import Sample

WAYS = [
    ["rouge_l", "format"],
    {"rouge_l": {"weight": 1}, "format": {}},
    {"rewards": {"rouge_l": {}, "format": {"weight": 1}}},
]


@pytest.mark.parametrize("rewards", WAYS)
def test_names_and_dicts_are_sets(rewards):
    [score] = Scorer(rewards).score([Sample("<report> a b </report>", "a b")])
    assert score.total == 2


def test_trl_needs_one_line_for_rewards_by_their_names():
    class Args:
        reward_weights = None
        remove_unused_columns = False

    funcs = make_reward_funcs(["rouge_l", "format"], Args())  # type: ignore[arg-type]
    assert [func.__name__ for func in funcs] == ["rouge_l", "format", "missing_parts"]


@pytest.mark.parametrize("rewards", [UserList(["rouge_l", "format"]), UserDict(WAYS[1])])
def test_verl_takes_mappings_and_lists_of_its_configuration_that_are_no_dicts(rewards):
    found = asyncio.run(verl.compute_score("", "<report> a </report>", "a", rewards=rewards))
    assert found["score"] == 2


def test_a_stack_warns_where_most_responses_have_no_tags(caplog):
    Scorer(["rouge_l"]).score([Sample("Clear.", "Clear.")])
    assert "`tags: optional`" in caplog.text
