"""The host's numbers of a policy step as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_sdk.reward_set import UNSCORED
from valor_plugin.host.advantage import TIED
from valor_plugin.records import RewardMeans, Step, finite, now

_PHASES = {  # ours -> the host's
    "generation": "timing/generation",
    "experience": "timing/make_experience",
    "training": "timing/ppo_train",
    "sync": "timing/broadcast",
    "total": "timing/step_total",
}


def step_record(step: int, status: Mapping[str, Any], rewards: Sequence[str]) -> Step:
    """The record of a step that has ended.

    Args:
        step: number of the policy step, counted from 1.
        status: name -> what the host logs of the step, means over its samples.
        rewards: names of the set's rewards, in the set's order.
    """
    numbers = {key: finite(value) for key, value in status.items() if _is_number(value)}
    parts = {name: _reward_means(numbers, name) for name in rewards}
    return Step(
        step=step,
        time=now(),
        reward=numbers.pop("reward", None),
        parts=parts,
        unscored=numbers.pop(UNSCORED, None),
        tied=numbers.pop(TIED, None),
        kl=numbers.pop("kl", None),
        length=numbers.pop("response_length", None),
        truncated=numbers.pop("truncated", None),
        seconds={phase: numbers.pop(key, None) for phase, key in _PHASES.items()},
        synced={what: numbers.pop(f"sync/{what}", None) for what in ("tensors", "bytes")},
        metrics=numbers,
    )


def _reward_means(numbers: dict[str, float | None], name: str) -> RewardMeans:
    """Takes a reward's numbers out of the step's. The host averages over all samples, and a reward
    logs 0 for those that it gives no value."""
    mean = numbers.pop(name, None)
    applied = numbers.pop(f"{name}/applied", None) or 0.0
    failed = numbers.pop(f"{name}/failed", None) or 0.0
    apart = numbers.pop(f"{name}/not_applicable", None) or 0.0
    mean = mean / applied if mean is not None and applied else None
    return RewardMeans(mean, applied, failed, apart)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
