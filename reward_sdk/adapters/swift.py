"""ms-swift: ORMs of `swift rlhf --rlhf_type grpo`, one per reward of the set.

    # rewards.py, for: --external_plugins rewards.py
    #   --reward_funcs rouge_l format missing_parts --reward_weights 0.9 0.1 1
    from reward_sdk.adapters.swift import register
    register("rewards.yaml")

Receives: completions as texts; the columns `reference` (or `report`, `ground_truth`), `images`,
    `view`, `id`, `age`, `indication`; the step from `trainer_state`.
Returns: per sample each reward's value and `missing_parts`; ms-swift sums them by
    `--reward_weights`, which must be the set's, to the set's total.
Logs: `rewards/<name>/mean` and `/std`; failures as warnings.
On failure: None for the part, and `missing_parts` makes up for it. A sample without any score gets
    the mean of its group in this process, since ms-swift would count it as 0. A server that stays
    away, and `on_failure: raise`, end the run.
Not applicable: None for the part, as where it failed, but without a warning; ms-swift's mean leaves
    it out. A sample to which no reward applies gets the mean of its group.
Does not: log shares of failures. Functions of your own come after the set's. Names of the set
    replace ms-swift's own (`format`, `repetition`). With `--scale_rewards gdpo`, which normalises
    each function, `missing_parts` is left out.
Run for real: ms-swift 4.6.0, whose `swift rlhf` trains a LLaVA with images for four steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable
from typing import Any

from reward_sdk.adapters.columns import Rollouts
from reward_sdk.adapters.scorer import MISSING, Rewards
from reward_sdk.errors import ConfigError
from reward_sdk.types import Sample


def register(rewards: Rewards) -> None:
    """Registers the rewards of a set, and `missing_parts`, as ORMs.

    Args:
        rewards: a set, its YAML file, a mapping or a list of names, a client, or the URLs of reward
            servers.

    Raises:
        ConfigError: the set cannot be built; or, when training begins, `--reward_funcs` does not
            begin with the set's functions, or `--reward_weights` with its weights.
        ServerError: no server became ready in time.
    """
    from swift.rewards import ORM, orms  # type: ignore[import-not-found]

    rollouts = Rollouts(rewards)
    built: list[str] = []

    class RewardORM(ORM):
        def __init__(self, args: Any = None, **_: Any) -> None:
            super().__init__(args)
            if type(self).__name__ in built:  # of an earlier trainer in this process
                built.clear()
            built.append(type(self).__name__)
            if args.reward_weights is None:
                raise ConfigError(f"without --reward_weights all weigh 1: {flags(rollouts, args)}")

        def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
            name = type(self).__name__
            if name == built[0]:
                check(rollouts, built, self.args)
            found = rollouts.values(completions, columns, self.args)
            if name == MISSING:
                return neutral(found, rollouts, columns["prompt_id"])
            return [value[name] for value in found]

    for name in rollouts.names:
        orms[name] = type(name, (RewardORM,), {})


def _wanted(rollouts: Rollouts, args: Any) -> dict[str, float]:
    wanted = dict(zip(rollouts.names, rollouts.weights, strict=True))
    if args.scale_rewards == "gdpo":
        wanted.pop(MISSING)
    return wanted


def flags(rollouts: Rollouts, args: Any) -> str:
    """The options that a set needs."""
    wanted = _wanted(rollouts, args)
    weights = " ".join(f"{weight!r}" for weight in wanted.values())
    return f"--reward_funcs {' '.join(wanted)} --reward_weights {weights}"


def check(rollouts: Rollouts, built: list[str], args: Any) -> None:
    """ConfigError if a function of the set was left out, or has another weight."""
    wanted = _wanted(rollouts, args)
    given = args.reward_weights[: len(built)]
    if set(built) != wanted.keys() or not all(
        math.isclose(wanted[name], weight) for name, weight in zip(built, given, strict=True)
    ):
        raise ConfigError(f"the set's functions and weights are: {flags(rollouts, args)}")


def neutral(
    found: list[dict[str, float | None]], rollouts: Rollouts, prompts: list[str]
) -> list[float | None]:
    """The values of `missing_parts`. A sample without a score gets the mean total of its group: its
    other parts count as 0. Groups are told apart by study, because prompts of studies are alike;
    without a scored mate in this process it gets the mean of the batch."""
    groups: dict[Hashable, list[float]] = {}
    keys = [_group(*pair) for pair in zip(prompts, rollouts.samples, strict=True)]
    for key, value in zip(keys, found, strict=True):
        if value[MISSING] is not None:
            parts = zip(rollouts.weights, value.values(), strict=True)
            groups.setdefault(key, []).append(sum(w * v for w, v in parts if v))
    every = [total for totals in groups.values() for total in totals] or [0.0]
    return [
        statistics.fmean(groups.get(key, every)) if value[MISSING] is None else value[MISSING]
        for key, value in zip(keys, found, strict=True)
    ]


def _group(prompt: str, sample: Sample) -> Hashable:
    image = sample.image
    shown = image and (image.path, image.digest)
    return prompt, sample.id, sample.reference, shown
