from types import SimpleNamespace
from typing import get_args

import pytest
from PIL import Image

from reward_sdk.adapters.columns import Rollouts, policy_step, text_of, to_samples
from reward_sdk.config import Entry
from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Outcome, Status

TEXT, BOTH = ["reference"], ["image", "reference"]


@pytest.mark.parametrize("name", ["reference", "report", "ground_truth"])
def test_the_reference_is_found_under_each_of_its_names(name):
    [sample] = to_samples(["x"], {name: ["Clear."]}, TEXT)
    assert sample.reference == "Clear."


def test_reference_wins_where_a_set_has_two_of_them():
    [sample] = to_samples(["x"], {"report": ["old"], "reference": ["Clear."]}, TEXT)
    assert sample.reference == "Clear."


def test_a_column_that_the_set_needs_and_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"'reference' or .* has: findings, prompts"):
        to_samples(["x"], {"findings": ["a"], "prompts": ["p"], "trainer_state": None}, TEXT)


def test_a_column_that_no_reward_needs_may_be_missing():
    assert to_samples(["x"], {}, [])[0].reference is None


@pytest.mark.parametrize("value", [3, ["a"], {"text": "a"}])
def test_a_reference_of_another_type_is_an_error(value):
    with pytest.raises(ConfigError, match="a reference is a text or None"):
        to_samples(["x"], {"reference": [value]}, TEXT)


PICTURE = Image.new("L", (2, 2))


def test_images_in_the_prompt_s_messages_are_seen_if_there_is_no_column():
    prompts = [[{"role": "user", "content": [{"type": "image", "image": PICTURE}]}]]
    columns = {"prompts": prompts, "reference": ["Clear."]}
    assert to_samples(["x"], columns, BOTH)[0].image.pixels is PICTURE
    columns["image"] = ["a.png"]
    assert to_samples(["x"], columns, BOTH)[0].image.path == "a.png"


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        ([{"role": "assistant", "content": "a"}], "a"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "a"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_a_completion_is_a_text_or_messages(completion, text):
    assert text_of(completion) == text


def test_a_batch_without_images_in_its_messages_is_said_and_goes_on(caplog):
    prompts = [[{"role": "user", "content": "Read."}, {"role": "tool"}]]
    [sample] = to_samples(["x"], {"prompts": prompts, "reference": ["a"]}, BOTH)
    assert sample.image is None
    assert "no image in this batch" in caplog.text


def test_without_a_column_of_images_and_without_messages_it_is_an_error():
    with pytest.raises(ConfigError, match="'image' or 'images'"):
        to_samples(["x"], {"prompts": ["Read."], "reference": ["a"]}, BOTH)


def test_no_completions_are_no_samples():
    assert to_samples([], {"reference": []}, TEXT) == []


def arguments(steps_per_generation=1, num_iterations=1, gradient_accumulation_steps=1):
    return SimpleNamespace(
        steps_per_generation=steps_per_generation, num_iterations=num_iterations,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "optimizer_steps", "steps"),
    [
        (arguments(), [0, 1, 7], [1, 2, 8]),
        (arguments(4, 1, 4), [0, 1, 7], [1, 2, 8]),  # TRL's default
        (arguments(8, 1, 4), [0, 2, 4], [1, 2, 3]),  # two optimizer steps for each rollout
        (arguments(4, 2, 4), [0, 2, 4], [1, 2, 3]),  # two passes over it
        (arguments(1, 1, 4), [0, 1, 7], [1, 2, 8]),  # four rollouts for one optimizer step
        # Six micro steps for a rollout, four for an optimizer step: what TRL was seen to say.
        (arguments(6, 1, 4), [0, 1, 3, 4, 6, 7], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_policy_steps_count_rollouts_without_a_gap(args, optimizer_steps, steps):
    assert [policy_step(taken, args) for taken in optimizer_steps] == steps


class Counting:
    name, bounds, needs = "counting", (0.0, 1.0), frozenset()

    def __init__(self):
        self.calls = 0

    def __call__(self, samples):
        self.calls += 1
        return [
            Outcome(1.0) if s.response not in get_args(Status) else Outcome(None, s.response)
            for s in samples
        ]


STATE = {"trainer_state": SimpleNamespace(global_step=0)}


def test_a_batch_is_scored_once_for_all_functions_and_anew_for_an_equal_one():
    reward = Counting()
    rollouts = Rollouts(RewardSet([(reward, Entry())]))
    completions = ["a", "b"]
    for _ in rollouts.names:
        rollouts.values(completions, STATE, arguments())
    assert reward.calls == 1
    rollouts.values(["a", "b"], STATE, arguments())
    assert reward.calls == 2


def test_the_shares_of_a_batch_that_failed_and_to_which_a_reward_does_not_apply_are_told():
    rollouts = Rollouts(RewardSet([(Counting(), Entry())]))
    rollouts.values(["failed", "good", "not_applicable", "not_applicable"], STATE, arguments())
    assert rollouts.shares == {"counting/failed": 0.25, "counting/not_applicable": 0.5}
    assert rollouts.values([], STATE, arguments()) == []


def test_a_trainer_that_says_no_step_scores_sets_without_a_schedule_only():
    completions = ["<report> a </report>"]
    plain = Rollouts(RewardSet.from_config({"format": {}}))
    assert plain.values(completions, {}, arguments())[0]["format"] == 1.0
    late = Rollouts(RewardSet.from_config({"format": {"every": 2}}))
    with pytest.raises(ConfigError, match="must say its policy step"):
        late.values(completions, {}, arguments())
