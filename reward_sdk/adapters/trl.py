"""TRL: reward functions of `GRPOTrainer`, one per reward of the set.

    from trl import GRPOConfig, GRPOTrainer
    from reward_sdk.adapters.trl import make_reward_funcs
    args = GRPOConfig("run", per_device_train_batch_size=8, num_generations=8)
    funcs = make_reward_funcs("rewards.yaml", args)
    GRPOTrainer(model, funcs, args, dataset).train()

Receives: completions as texts or messages; the columns `reference` (or `report`, `ground_truth`),
    `image` (or `images`, or in the prompt's messages), `view`, `id`, `age`, `indication`; the step
    from `trainer_state`.
Returns: per sample each reward's value and `missing_parts`; TRL sums them by `reward_weights`,
    which are set here, to the set's total.
Logs: `rewards/<name>/mean` and `/std`, `rewards/<name>/failed` and `/not_applicable`.
On failure: None for the part, and `missing_parts` makes up for it; None for all of a sample without
    any score, which TRL leaves out if it has no value of your own functions either. A server that
    stays away, and `on_failure: raise`, end the run.
Not applicable: None for the part, as where it failed, which TRL's mean leaves out; counted in
    `rewards/<name>/not_applicable`.
Does not: anything after the sum, such as ranks. With `normalize_then_sum` TRL normalises
    `missing_parts` like a reward: leave the last function and weight out there. An evaluation has
    the step of the training around it, so rewards of a schedule count in some evaluations only.
Run for real: trl 1.16.0, whose `GRPOTrainer` trains a LLaVA with images for four steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reward_sdk.adapters.columns import UNVALUED, Rollouts
from reward_sdk.adapters.scorer import Rewards
from reward_sdk.errors import ConfigError

if TYPE_CHECKING:
    from trl import GRPOConfig  # type: ignore[import-not-found]


class RewardFunc:
    """One reward of a set, as TRL calls it; TRL logs it under `__name__`."""

    def __init__(self, name: str, rollouts: Rollouts, args: GRPOConfig) -> None:
        self.__name__, self._rollouts, self._args = name, rollouts, args

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """Per completion the reward's value, None where it has none."""
        values = self._rollouts.values(completions, columns, self._args)
        for key in (f"{self.__name__}/{tail}" for tail in UNVALUED):
            if "log_metric" in columns and key in self._rollouts.shares:  # missing_parts has none
                columns["log_metric"](f"rewards/{key}", self._rollouts.shares[key])
        return [value[self.__name__] for value in values]


def make_reward_funcs(rewards: Rewards, args: GRPOConfig) -> list[RewardFunc]:
    """The `reward_funcs` of a set, in the order of the set, and `missing_parts`.

    Args:
        rewards: a set, its YAML file, a mapping or a list of names, a client, or the URLs of reward
            servers.
        args: the trainer's configuration, whose `reward_weights` are set here. To add a function of
            your own, append it to the result and its weight to `args.reward_weights`.

    Raises:
        ConfigError: the set cannot be built, `reward_weights` are set already, or
            `remove_unused_columns` is not False.
        ServerError: no server became ready in time.
    """
    if args.reward_weights is not None:
        raise ConfigError("GRPOConfig.reward_weights: leave it out, the weights are the set's")
    if args.remove_unused_columns:
        raise ConfigError("GRPOConfig.remove_unused_columns: must be False, rewards read columns")
    rollouts = Rollouts(rewards)
    args.reward_weights = list(rollouts.weights)
    return [RewardFunc(name, rollouts, args) for name in rollouts.names]
