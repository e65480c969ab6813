"""Reward sets: weights, step schedule, failure policy and log keys around plain rewards."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from reward_sdk.config import Entry, Source, build_reward, parse_set, read_set
from reward_sdk.errors import ConfigError
from reward_sdk.member import Member
from reward_sdk.registry import Reward
from reward_sdk.text import Tags, has_tags
from reward_sdk.types import NOT_THIS_STEP, Outcome, Sample, Score, SetInfo

logger = logging.getLogger(__name__)

UNSCORED = "unscored"
"""The log key of stacks that have no other way to say that a sample has no total."""


class RewardSet:
    """Scores samples with several rewards.

    The total is the weighted sum of the parts that are "ok". When a part that should have counted
    is missing (failed, or not applicable to the sample), the others are scaled up so that totals
    stay comparable, within the set's range; when none is left, the total is None. A reward that is
    skipped, because it waits for its step (`every`), is not missing: it counts neither in the total
    nor in the scaling.

    Args:
        rewards: (reward, how the set uses it) of each reward, in the order of the logs;
            `from_config` makes them.
        tags: whether a response needs `<report>` tags: "required", or "optional", by which a
            response without any is a report itself.

    Attributes:
        members: the rewards of the set and how it uses them, in the order of the logs.
        names: names of the rewards, in the order of the logs.
        tags: whether a response needs `<report>` tags: "required", or "optional", by which a
            response without any is a report itself.
        bounds: range (low, high) of every total.
    """

    def __init__(self, rewards: Sequence[tuple[Reward, Entry]], tags: Tags = "required") -> None:
        pairs = tuple(rewards)
        if not all(isinstance(pair, tuple) for pair in pairs):
            raise TypeError("a set is made of words by RewardSet.from_config")
        self.members = tuple(Member(reward, entry) for reward, entry in pairs)
        self.names = tuple(member.name for member in self.members)
        self.tags: Tags = tags
        self.bounds = self._bounds()
        self._tag_watch = TagWatch(tags, self.needs)

    @classmethod
    def from_config(cls, rewards: Source, where: str | None = None) -> RewardSet:
        """Builds the set that a YAML file, a mapping or a list of names describes, see
        `reward_sdk.config`.

        Args:
            rewards: path of the YAML file, or what could stand in it: a mapping, or a list of
                rewards' names.
            where: how messages name the place of the set; by default its file, or "rewards".

        Raises:
            ConfigError: a name or key is unknown, a value is wrong, or weights are missing.
        """
        mapping, place = read_set(rewards)
        where = where or place
        config = parse_set(mapping, where)
        built = [(build_reward(key, entry, where), entry) for key, entry in config.entries.items()]
        return cls(built, config.tags)

    @property
    def digest(self) -> str:
        """Tells the set's configuration apart from others: twelve hexadecimal digits. Of files that
        it names only the content of Python files is looked at."""
        entries: dict[str, Any] = {m.name: m.entry.model_dump() for m in self.members}
        code = {m.name: getattr(m.reward, "code", "") for m in self.members}
        if any(code.values()):
            entries["code"] = code
        if self.tags != "required":
            entries["tags"] = self.tags
        return hashlib.sha256(json.dumps(entries, default=str).encode()).hexdigest()[:12]

    def _bounds(self) -> tuple[float, float]:
        low = high = 0.0
        for member in self.members:
            ends = [member.entry.weight * bound for bound in member.reward.bounds]
            low, high = low + min(ends), high + max(ends)
        if not math.isfinite(high - low):
            raise ConfigError("the weights are so large that totals cannot be told apart")
        return low, high

    @property
    def bounds_by_name(self) -> dict[str, tuple[float, float]]:
        """Range of every reward's value, before its weight."""
        return {member.name: member.reward.bounds for member in self.members}

    def without_schedule(self) -> RewardSet:
        """The same rewards, each of which counts on every step."""
        always = {"every": 1, "offset": 0, "mode": "add"}
        return self._with(lambda entry: always)

    def with_deadline(self, seconds: float) -> RewardSet:
        """The same rewards; those that have no deadline get this one."""
        return self._with(lambda entry: {"deadline": entry.deadline or seconds})

    def _with(self, update: Callable[[Entry], dict[str, Any]]) -> RewardSet:
        members = [(m.reward, m.entry.model_copy(update=update(m.entry))) for m in self.members]
        return RewardSet(members, self.tags)

    @property
    def needs(self) -> frozenset[str]:
        """What some reward of the set wants in a sample, of {"report", "reference", "image"}."""
        return frozenset().union(*(member.reward.needs for member in self.members))

    @property
    def needs_step(self) -> bool:
        """Whether some reward counts on some policy steps only."""
        return any(member.entry.every > 1 for member in self.members)

    @property
    def log_keys(self) -> tuple[str, ...]:
        """The keys of every `Score.logs`: per reward its value (0 where it has none), and whether
        it counted, failed, or did not apply."""
        return tuple(key for name in self.names for key in logs_of(name, NOT_THIS_STEP))

    @property
    def info(self) -> SetInfo:
        """What the set is, in plain values."""
        return SetInfo(
            set=self.digest,
            version=version("valor-rrg"),
            bounds=self.bounds,
            needs=tuple(sorted(self.needs)),
            needs_step=self.needs_step,
            log_keys=self.log_keys,
            rewards=tuple(member.info for member in self.members),
            tags=self.tags,
        )

    def read(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples as this set reads them: by its `tags`. Says once if most have none.

        Raises:
            TypeError: these are no samples.
        """
        single = isinstance(samples, str | Sample)
        if single or not all(isinstance(sample, Sample) for sample in samples):
            raise TypeError("a set scores a list of reward_sdk.Sample")
        self._tag_watch.look(samples)
        if self.tags == "required":
            return samples
        return [replace(sample, tags=self.tags) for sample in samples]

    def score(self, samples: Sequence[Sample], step: int | None = None) -> list[Score]:
        """One score per sample, in order.

        Args:
            samples: the samples to score, in one batch.
            step: the policy step, counted from 1; needed by sets with a schedule.

        Raises:
            ConfigError: the set has a schedule and there is no step, or the step is below 1.
            ScoringError: a part failed whose policy (`on_failure`) is "raise".
            ExhaustedError: the machine is out of files, memory or disk.
        """
        counting, samples = self.counting(step), self.read(samples)
        parts = {m.name: m.parts(samples) for m in self.members if m.name in counting}
        return [
            self.combine({name: of_reward[i] for name, of_reward in parts.items()}, sample)
            for i, sample in enumerate(samples)
        ]

    def counting(self, step: int | None) -> frozenset[str]:
        """The rewards that count on a policy step; raises as `score` does."""
        if step is None and self.needs_step:
            raise ConfigError(
                "this set has rewards with `every` > 1, so every call must say its policy step"
            )
        if step is not None and step < 1:
            raise ConfigError(f"policy steps are counted from 1: {step}")
        due = [member for member in self.members if member.entry.due(step)]
        if any(member.entry.mode == "replace" for member in due):
            due = [m for m in due if m.entry.every > 1 or not _compares(m.reward)]
        return frozenset(member.name for member in due)

    def combine(self, parts: Mapping[str, Outcome], sample: Sample) -> Score:
        """The score of a sample, made of the parts of its rewards.

        Args:
            parts: reward name -> part, as `Member.parts` gives it, for each reward that counts.
            sample: the sample that was scored.

        Raises:
            ScoringError: a part failed whose policy (`on_failure`) is "raise".
        """
        total = wanted = counted = 0.0
        settled: dict[str, Outcome] = {}
        logs: dict[str, float] = {}
        for member in self.members:
            name, weight = member.name, member.entry.weight
            part = settled[name] = (
                member.settled(parts[name], sample) if name in parts else NOT_THIS_STEP
            )
            if name in parts:
                wanted += abs(weight)
            if part.value is not None:
                total += weight * part.value
                counted += abs(weight)
            logs |= logs_of(name, part)
        if not counted:
            return Score(None, settled, logs)
        low, high = self.bounds  # a guard that is scaled up would go beyond them
        return Score(min(max(total * (wanted / counted), low), high), settled, logs)


class TagWatch:
    """Says once that most responses lack their tags, where a set requires them.

    Args:
        tags: whether the set requires `<report>` tags; if they are "optional", nothing is said.
        needs: what the set needs of a sample; if "report" is not among it, nothing is said.
    """

    def __init__(self, tags: Tags, needs: Collection[str]) -> None:
        self._looks = tags == "required" and "report" in needs
        self._seen = self._bare = 0

    def look(self, samples: Sequence[Sample]) -> None:
        """Looks at a batch of samples."""
        if not self._looks:
            return
        self._seen += len(samples)
        self._bare += sum(not has_tags(s.response) for s in samples if s.tags == "required")
        if 2 * self._bare > self._seen:
            self._looks = False
            logger.warning(
                "%d of %d responses have no <report> tags, so rewards that read reports give their "
                "lowest value. If these are plain reports, write `tags: optional` in the set",
                self._bare, self._seen,
            )  # fmt: skip


def logs_of(name: str, part: Outcome) -> dict[str, float]:
    """What a reward's part adds to `Score.logs`."""
    return {
        name: 0.0 if part.value is None else part.value,
        f"{name}/applied": float(part.value is not None),
        f"{name}/failed": float(part.status == "failed"),
        f"{name}/not_applicable": float(part.status == "not_applicable"),
    }


def _compares(reward: Reward) -> bool:
    """Whether it rewards likeness to the reference; a guard only punishes."""
    return "reference" in reward.needs and reward.bounds[1] > 0
