"""ms-swift: ORMs of `swift rlhf --rlhf_type grpo`, one per reward of the set.

    # rewards.py, for: --external_plugins rewards.py
    #   --reward_funcs rouge_l format missing_parts --reward_weights 0.9 0.1 1
    from reward_sdk.adapters.swift import register
    register("rewards.yaml")

Receives: completions as texts; the columns `reference` (or `report`, `ground_truth`), `images`,
    `view`, `id`; the step from `trainer_state`.
Returns: per sample each reward's value and `missing_parts`; ms-swift sums them by
    `--reward_weights`, which must be the set's, to the set's total.
Logs: `rewards/<name>/mean` and `/std`; failures as warnings.
On failure: None for the part, and `missing_parts` makes up for it. A sample without any score gets
    the mean of its group, since ms-swift would count it as 0. A server that stays away ends the
    run.
Does not: log shares of failures. Names of the set replace ms-swift's own (`format`, `repetition`).
    With `--scale_rewards gdpo` leave `missing_parts` out only if no part can be missing.
Run for real: ms-swift 4.6.0, `swift rlhf` on a LLaVA, with images, CPU.
"""

from __future__ import annotations

import statistics
from typing import Any

from reward_sdk.adapters.columns import Rollouts
from reward_sdk.adapters.scorer import MISSING
from reward_sdk.client import RewardClient
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError


def register(rewards: RewardSet | RewardClient | str) -> None:
    """Registers the rewards of a set, and `missing_parts`, as ORMs.

    Args:
        rewards: a set, the path of its YAML file, a client, or the URLs of reward servers.

    Raises:
        ConfigError: the set cannot be built; and, when training begins, if `--reward_funcs` and
            `--reward_weights` are not the set's.
        ServerError: no server became ready in time.
    """
    from swift.rewards import ORM, orms  # type: ignore[import-not-found]

    rollouts = Rollouts(rewards)
    built: list[str] = []

    class Column(ORM):
        def __init__(self, args: Any = None, **_: Any) -> None:
            super().__init__(args)
            built.append(type(self).__name__)
            rollouts.args = args
            if args.reward_weights is None:
                raise ConfigError(f"without --reward_weights all would weigh 1: {flags(rollouts)}")

        def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
            check(rollouts, built, self.args.reward_weights)
            name = type(self).__name__
            values = [value[name] for value in rollouts.values(completions, columns)]
            return values if name != MISSING else self._neutral(values, completions, columns)

        def _neutral(
            self, values: list[float | None], completions: list[str], columns: dict[str, Any]
        ) -> list[float | None]:
            """What samples without a score get, too: here, where their other parts count as 0."""
            prompts = columns["prompt_id"]
            totals: dict[str, list[float]] = {}
            for prompt, value in zip(prompts, rollouts.values(completions, columns), strict=True):
                if value[MISSING] is not None:
                    parts = zip(rollouts.weights, value.values(), strict=True)
                    totals.setdefault(prompt, []).append(sum(w * v for w, v in parts if v))
            return [
                statistics.fmean(totals.get(prompt, [0.0])) if value is None else value
                for prompt, value in zip(prompts, values, strict=True)
            ]

    for name in rollouts.names:
        orms[name] = type(name, (Column,), {})


def flags(rollouts: Rollouts) -> str:
    """The options that a set needs."""
    weights = " ".join(f"{weight:g}" for weight in rollouts.weights)
    return f"--reward_funcs {' '.join(rollouts.names)} --reward_weights {weights}"


def check(rollouts: Rollouts, built: list[str], weights: list[float]) -> None:
    """ConfigError if a function of the set was left out, or has another weight; functions of the
    user's own may stand between them."""
    wanted = dict(zip(rollouts.names, rollouts.weights, strict=True))
    rest = iter(weights)
    if set(built) != set(wanted) or not all(wanted[name] in rest for name in built):
        raise ConfigError(f"the set's functions and weights are: {flags(rollouts)}")
