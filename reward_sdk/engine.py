"""Reward sets: weights, step schedule, failure policy and log keys around plain rewards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from reward_sdk.config import Entry, build_reward, parse_set, read_set
from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.reward import Reward
from reward_sdk.types import Part, Sample, Score

logger = logging.getLogger(__name__)


class RewardSet:
    """Scores samples with several rewards.

    The total is the weighted sum of the parts that are "ok". When a part that should have counted
    is missing (skipped for want of a reference or an image, or failed), the others are scaled up so
    that totals stay comparable; when none is left, the total is None. A reward that waits for its
    step (`every`) is not missing: it counts neither in the total nor in the scaling.

    Args:
        rewards: (reward, how the set uses it), in the order of the logs.
    """

    def __init__(self, rewards: Sequence[tuple[Reward, Entry]]) -> None:
        self._rewards = tuple(rewards)
        self.names = tuple(reward.name for reward, _ in self._rewards)

    @classmethod
    def from_config(cls, rewards: Mapping[str, Any], where: str = "rewards") -> RewardSet:
        """Builds the set from its mapping, see `reward_sdk.config`.

        Raises:
            ConfigError: for an unknown name or key, a wrong value, missing weights.
        """
        entries = parse_set(rewards, where)
        return cls([(build_reward(name, entry, where), entry) for name, entry in entries.items()])

    @classmethod
    def from_file(cls, path: str | Path) -> RewardSet:
        """Builds the set from a YAML file."""
        return cls.from_config(read_set(path), f"{path}: rewards")

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of every total, on steps when all rewards count."""
        low = high = 0.0
        for reward, entry in self._rewards:
            ends = [entry.weight * bound for bound in reward.bounds]
            low, high = low + min(ends), high + max(ends)
        return low, high

    @property
    def bounds_by_name(self) -> dict[str, tuple[float, float]]:
        """Range of every reward's value, before its weight."""
        return {reward.name: reward.bounds for reward, _ in self._rewards}

    def without_schedule(self) -> RewardSet:
        """The same rewards, each of which counts on every step."""
        always = {"every": 1, "offset": 0, "mode": "add"}
        return RewardSet([(r, entry.model_copy(update=always)) for r, entry in self._rewards])

    @property
    def needs(self) -> frozenset[str]:
        """What some reward of the set wants in a sample, of {"report", "reference", "image"}."""
        return frozenset().union(*(reward.needs for reward, _ in self._rewards))

    @property
    def needs_step(self) -> bool:
        """Whether some reward counts on some policy steps only."""
        return any(entry.every > 1 for _, entry in self._rewards)

    @property
    def log_keys(self) -> tuple[str, ...]:
        """The keys of every `Score.logs`: per reward its value (0 where it has none), whether it
        counted and whether it failed."""
        return tuple(f"{name}{tail}" for name in self.names for tail in ("", "/applied", "/failed"))

    def score(self, samples: Sequence[Sample], step: int | None = None) -> list[Score]:
        """One score per sample, in order.

        Args:
            samples: the batch.
            step: the policy step, counted from 1; needed by sets with a schedule.

        Raises:
            ConfigError: a schedule without a step, or a step below 1.
            ScoringError: a part failed whose policy is "raise".
        """
        if step is None and self.needs_step:
            raise ConfigError(
                "this set has rewards with `every` > 1, so every call must say its policy step"
            )
        if step is not None and step < 1:
            raise ConfigError(f"policy steps are counted from 1: {step}")
        counting = self._counting(step)
        columns = [
            self._column(reward, entry, samples)
            if reward.name in counting
            else [Part(None, "skipped", "not this step")] * len(samples)
            for reward, entry in self._rewards
        ]
        return [self._total(parts, counting) for parts in zip(*columns, strict=True)]

    def _counting(self, step: int | None) -> set[str]:
        """The rewards that count on this step."""
        due = [(reward, entry) for reward, entry in self._rewards if entry.due(step)]
        if any(entry.mode == "replace" for _, entry in due):
            due = [(r, e) for r, e in due if e.every > 1 or not _compares(r)]
        return {reward.name for reward, _ in due}

    def _column(self, reward: Reward, entry: Entry, samples: Sequence[Sample]) -> list[Part]:
        """One reward's parts for all samples."""
        parts = [_before(reward, sample) for sample in samples]
        open_ = [i for i, part in enumerate(parts) if part is None]
        called = _in_time(reward, [samples[i] for i in open_], entry.deadline)
        for i, part in zip(open_, called, strict=True):
            parts[i] = part
        return [
            self._settled(reward, entry, sample, part)
            for sample, part in zip(samples, parts, strict=True)
            if part is not None
        ]

    @staticmethod
    def _settled(reward: Reward, entry: Entry, sample: Sample, part: Part) -> Part:
        if part.status != "failed" or entry.on_failure == "skip":
            return part
        if entry.on_failure == "raise":
            raise ScoringError(f"{reward.name} failed on sample {sample.id!r}: {part.reason}")
        return Part(float(entry.on_failure), "failed", part.reason)

    def _total(self, parts: tuple[Part, ...], counting: set[str]) -> Score:
        total = wanted = counted = 0.0
        logs: dict[str, float] = {}
        for (reward, entry), part in zip(self._rewards, parts, strict=True):
            if reward.name in counting:
                wanted += abs(entry.weight)
            if part.value is not None:
                total += entry.weight * part.value
                counted += abs(entry.weight)
            logs[reward.name] = part.value if part.value is not None else 0.0
            logs[f"{reward.name}/applied"] = float(part.value is not None)
            logs[f"{reward.name}/failed"] = float(part.status == "failed")
        scaled = total * (wanted / counted) if counted else None
        return Score(scaled, dict(zip(self.names, parts, strict=True)), logs)


def _compares(reward: Reward) -> bool:
    """Whether it rewards likeness to the reference; a guard only punishes."""
    return "reference" in reward.needs and reward.bounds[1] > 0


def _before(reward: Reward, sample: Sample) -> Part | None:
    """The part of a sample that the reward need not see, or None."""
    if "image" in reward.needs and sample.image is None:
        return Part(None, "skipped", "no image")
    if "reference" in reward.needs and sample.reference is None:
        return Part(None, "skipped", "no reference")
    if "report" in reward.needs and sample.report is None:
        return Part(reward.bounds[0], "ok", "no well-formed report")
    return None


def _in_time(reward: Reward, samples: Sequence[Sample], deadline: float | None) -> list[Part]:
    """The reward's parts, or failed ones after `deadline` seconds.

    A call that is late cannot be stopped; its thread goes on and its result is dropped.
    """
    if deadline is None or not samples:
        return _call(reward, samples)
    result: Future[list[Part]] = Future()
    call = Thread(target=lambda: result.set_result(_call(reward, samples)), daemon=True)
    call.start()
    try:
        return result.result(timeout=deadline)
    except TimeoutError:
        late = f"{reward.name}: no answer within its deadline of {deadline:g} s"
        return [Part(None, "failed", late)] * len(samples)


def _call(reward: Reward, samples: Sequence[Sample]) -> list[Part]:
    """The reward's parts; after an error sample by sample, so that one cannot spoil the others."""
    if not samples:
        return []
    try:
        parts = list(reward(samples))
        if len(parts) != len(samples):
            raise ScoringError(f"it gave {len(parts)} parts for {len(samples)} samples")
        return [_checked(reward, part) for part in parts]
    except Exception as error:  # the engine is the boundary where errors become failed parts
        if len(samples) == 1:
            logger.debug("%s failed", reward.name, exc_info=True)
            return [Part(None, "failed", f"{reward.name}: {type(error).__name__}: {error}")]
        return [part for sample in samples for part in _call(reward, [sample])]


def _checked(reward: Reward, part: Part) -> Part:
    if part.status in ("skipped", "failed"):
        return Part(None, part.status, part.reason)
    low, high = reward.bounds
    value = math.nan if part.value is None else float(part.value)  # a numpy or torch scalar
    if part.status != "ok":
        return Part(None, "failed", f"{reward.name} gave the unknown status {part.status!r}")
    if not low <= value <= high:
        what = f"{part.value}, outside of its range [{low}, {high}]"
        return Part(None, "failed", f"{reward.name} gave {what}")
    return Part(value, "ok", part.reason)
