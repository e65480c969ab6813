from types import SimpleNamespace

import pytest
from PIL import Image

from reward_sdk.adapters.columns import Rollouts, image_ref, text_of, to_samples
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError

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


def arguments(steps_per_generation=1, num_iterations=1, gradient_accumulation_steps=1):
    return SimpleNamespace(
        steps_per_generation=steps_per_generation, num_iterations=num_iterations,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "optimizer_steps", "step"),
    [
        (arguments(), 0, 1),
        (arguments(), 7, 8),
        (arguments(4, 1, 4), 7, 8),  # as many micro steps as are accumulated: TRL's default
        (arguments(8, 1, 4), 6, 4),  # two optimizer steps for each rollout
        (arguments(4, 2, 4), 6, 4),  # two passes over it
        (arguments(1, 1, 4), 7, 8),  # four rollouts for one optimizer step
    ],
)
def test_policy_steps_count_rollouts(args, optimizer_steps, step):
    rollouts = Rollouts(RewardSet.from_config({"format": {}}), args)
    assert rollouts.step(optimizer_steps) == step


class Counting:
    name, bounds, needs = "counting", (0.0, 1.0), frozenset()

    def __init__(self):
        self.calls = 0

    def __call__(self, samples):
        from reward_sdk.types import Part

        self.calls += 1
        return [Part(1.0) for _ in samples]


def test_a_batch_is_scored_once_for_all_functions_and_anew_for_an_equal_one():
    from reward_sdk.config import Entry

    reward = Counting()
    rollouts = Rollouts(RewardSet([(reward, Entry())]), arguments())
    state = {"trainer_state": SimpleNamespace(global_step=0)}
    completions = ["a", "b"]
    for _ in rollouts.names:
        rollouts.values(completions, state)
    assert reward.calls == 1
    rollouts.values(["a", "b"], state)
    assert reward.calls == 2
