from types import SimpleNamespace

import pytest

from reward_sdk.adapters.trl import make_reward_funcs
from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet

SET = {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}


def arguments(**more):
    return SimpleNamespace(**{
        "reward_weights": None, "remove_unused_columns": False, "steps_per_generation": 1,
        "num_iterations": 1, "gradient_accumulation_steps": 1, **more,
    })  # fmt: skip


def test_functions_have_names_and_the_trainer_gets_the_weights():
    args = arguments()
    funcs = make_reward_funcs(RewardSet.from_config(SET), args)
    assert [func.__name__ for func in funcs] == ["rouge_l", "format", "missing_parts"]
    assert args.reward_weights == [0.9, 0.1, 1.0]


@pytest.mark.parametrize(
    "more", [{"reward_weights": [1.0]}, {"remove_unused_columns": True}], ids=str
)
def test_arguments_that_contradict_the_set_are_an_error(more):
    [name] = more
    with pytest.raises(ConfigError, match=name):
        make_reward_funcs(RewardSet.from_config(SET), arguments(**more))


def test_a_sample_without_any_score_is_none_everywhere():
    funcs = make_reward_funcs(RewardSet.from_config({"rouge_l": {}}), arguments())
    state = SimpleNamespace(global_step=0)
    completions = ["<report> a </report>"] * 2
    found = [f(completions, reference=["a", None], trainer_state=state) for f in funcs]
    assert found == [[1.0, None], [0.0, None]]
