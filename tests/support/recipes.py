"""Recipes for the tests of what happens before the host is started."""

from pathlib import Path

from valor_plugin.recipe import Recipe

REWARDS = {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}


def recipe(model: Path | str = "m", studies: Path | str = "s.jsonl", **keys) -> Recipe:
    """A small recipe of stage grpo, with keys of its own."""
    content = {
        "name": "test",
        "stage": "grpo",
        "model": {"path": str(model), "trainable": "projector"},
        "data": {"train": str(studies)},
        "rewards": REWARDS,
        "openrlhf": {
            "actor.num_gpus_per_node": 1,
            "ref.num_gpus_per_node": 1,
            "data.max_len": 128,
            "rollout.batch_size": 2,
            "rollout.n_samples_per_prompt": 4,
            "train.batch_size": 8,
            "train.micro_batch_size": 4,
            "vllm.num_engines": 1,
        },
    }
    return Recipe.model_validate(content | keys)


def with_options(base: Recipe, **changes) -> Recipe:
    """The recipe with some of its host options changed, `a.b` given as `a__b`."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return base.model_copy(update={"openrlhf": {**base.openrlhf, **named}})
