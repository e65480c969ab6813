"""Reward sets: weights, step schedule, failure policy and log keys around plain rewards."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from queue import SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from reward_sdk.config import Entry, Source, build_reward, parse_set, read_set
from reward_sdk.errors import ConfigError, ScoringError, exhausted, one_line, plain
from reward_sdk.registry import Reward
from reward_sdk.text import Tags, has_tags
from reward_sdk.types import NOT_THIS_STEP, Outcome, RewardInfo, Sample, Score, SetInfo

logger = logging.getLogger(__name__)

UNSCORED = "unscored"
"""The log key of stacks that have no other way to say that a sample has no total."""

_MOST_LATE = 16  # ours: calls of one reward past their deadline and still running, two a sample
_AT_ONCE = 4  # ours: samples that are judged alone at a time, ...
_WAVES = 4  # ours: ... and in how many waves, where these hang

T = TypeVar("T")


class Member:
    """One reward of a set and how the set uses it.

    Attributes:
        reward: the reward, which is called for its parts.
        entry: how the set uses the reward: weight, schedule, failures and settings.
        name: name of the reward, under which it is logged.
        late_calls: number of calls that were given up at their deadline.
    """

    def __init__(self, reward: Reward, entry: Entry) -> None:
        self.reward, self.entry, self.name = reward, entry, reward.name
        self.late_calls = 0
        self._late: list[_Caller] = []
        self._idle: list[_Caller] = []

    @property
    def stuck(self) -> str:
        """Why no calls are made any more; "" while they are."""
        self._late = [caller for caller in self._late if caller.is_alive()]
        late = len(self._late) >= _MOST_LATE
        return f"{_MOST_LATE} calls have not come back, no more are made" if late else ""

    @property
    def light(self) -> bool:
        """Whether the reward says that it may share a thread, see `Reward`."""
        return getattr(self.reward, "light", False)

    @property
    def info(self) -> RewardInfo:
        """The reward and its entry, in plain values."""
        return RewardInfo(
            name=self.name,
            bounds=self.reward.bounds,
            needs=tuple(sorted(self.reward.needs)),
            settings=self.entry.settings,
            **self.entry.model_dump(include=set(Entry.model_fields)),
        )

    def parts(self, samples: Sequence[Sample]) -> list[Outcome]:
        """The reward's parts, one per sample, in order; nothing that a reward raises comes through,
        but for ExhaustedError, which concerns no sample."""
        parts = [self._before(sample) for sample in samples]
        open_ = [i for i, part in enumerate(parts) if part is None]
        called = self._in_time([samples[i] for i in open_])
        for i, part in zip(open_, called, strict=True):
            parts[i] = part
        return [part for part in parts if part is not None]

    def settled(self, part: Outcome, sample: Sample) -> Outcome:
        """The part as the set's policy for failures has it; ScoringError if that is "raise"."""
        policy = self.entry.on_failure
        if part.status != "failed" or policy == "skip":
            return part
        if policy == "raise":
            raise ScoringError(f"{self.name} failed on sample {sample.id!r}: {part.reason}")
        return Outcome(float(policy), "failed", part.reason)

    def _before(self, sample: Sample) -> Outcome | None:
        """The part of a sample that the reward need not see, or None."""
        needs = self.reward.needs
        if "image" in needs and sample.image is None:
            return Outcome(None, "skipped", "no image")
        if "reference" in needs and sample.reference is None:
            return Outcome(None, "skipped", "no reference")
        if "report" in needs and sample.report is None:
            why = "no well-formed report" if has_tags(sample.response) else NO_TAGS
            return Outcome(self.reward.bounds[0], "ok", why)
        return None

    def _in_time(self, samples: Sequence[Sample]) -> list[Outcome]:
        """The reward's parts, or failed ones after the deadline.

        Of several samples one may hang: where half of the time brings nothing, each is judged
        alone, a few at a time, in the other half.
        """
        deadline = self.entry.deadline
        if deadline is None or not samples:
            return _call(self.reward, samples)
        if self.stuck:
            return [Outcome(None, "failed", f"{self.name}: {self.stuck}")] * len(samples)
        end = time.monotonic() + deadline
        several = len(samples) > 1
        call = self._begun([partial(_call, self.reward, samples)])
        _wait(call, end - deadline / 2 if several else end)
        [parts] = self._ended(call)
        if parts is not None:
            return parts
        late = f"{self.name}: no answer within its deadline of {deadline:g} s"
        found = self._alone(samples, end) if several else {}
        return [found.get(i, Outcome(None, "failed", late)) for i in range(len(samples))]

    def _alone(self, samples: Sequence[Sample], end: float) -> dict[int, Outcome]:
        """The parts of samples that are judged one by one, by their index; without those that are
        not there by the end. A few threads share the work, and more join them where these hang."""
        judged: dict[int, Outcome] = {}
        todo = iter(range(len(samples)))

        def judge() -> None:
            for i in todo:
                if time.monotonic() > end:
                    break
                [judged[i]] = _call(self.reward, [samples[i]])

        calls: list[tuple[_Caller, Future[None]]] = []
        pause = (end - time.monotonic()) / _WAVES
        for _ in range(_WAVES):
            calls += self._begun([judge] * min(_AT_ONCE, len(samples) - len(judged)))
            _wait(calls, time.monotonic() + pause)
        self._ended(calls)
        return dict(judged)

    def _begun(self, calls: Sequence[Callable[[], T]]) -> list[tuple[_Caller, Future[T]]]:
        """Calls, each in a thread."""
        callers = [self._idle.pop() if self._idle else _Caller() for _ in calls]
        return [
            (caller, caller.start_call(call)) for caller, call in zip(callers, calls, strict=True)
        ]

    def _ended(self, calls: Sequence[tuple[_Caller, Future[T]]]) -> list[T | None]:
        """What calls have given, or raised; None for one that is not back. It cannot be stopped:
        its thread goes on, its result is dropped, and the next call gets a new thread, until too
        many do not come back."""
        found = [(caller, future if future.done() else None) for caller, future in calls]
        for caller, done in found:
            if done and not self._idle:
                self._idle.append(caller)
                continue
            caller.stop()
            if not done:
                self.late_calls += 1
                self._late.append(caller)
        return [done and done.result() for _, done in found]


def _wait(calls: Sequence[tuple[_Caller, Future[Any]]], end: float) -> None:
    """Until all calls are back, or it is time."""
    for _, future in calls:
        with suppress(TimeoutError):
            future.exception(max(0.0, end - time.monotonic()))


class _Caller(Thread):
    """A thread that makes calls: torch sets up its own threads per thread, so one for every call
    would be slow."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.start()

    def start_call(self, call: Callable[[], T]) -> Future[T]:
        """What the call gives or raises, once it has."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(work)
        return future

    def stop(self) -> None:
        """Ends the thread after its present call."""
        self._calls.put(None)

    def run(self) -> None:
        for call in iter(self._calls.get, None):
            call()


class RewardSet:
    """Scores samples with several rewards.

    The total is the weighted sum of the parts that are "ok". When a part that should have counted
    is missing (skipped for want of a reference or an image, or failed), the others are scaled up so
    that totals stay comparable, within the set's range; when none is left, the total is None. A
    reward that waits for its step (`every`) is not missing: it counts neither in the total nor in
    the scaling.

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
        """The keys of every `Score.logs`: per reward its value (0 where it has none), whether it
        counted and whether it failed."""
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


NO_TAGS = "no <report> tags; a set with `tags: optional` takes the whole response"
"""The reason of a part of a response without tags, where a set requires them."""


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
    }


def _compares(reward: Reward) -> bool:
    """Whether it rewards likeness to the reference; a guard only punishes."""
    return "reference" in reward.needs and reward.bounds[1] > 0


def _call(reward: Reward, samples: Sequence[Sample]) -> list[Outcome]:
    """The reward's parts; after an error sample by sample, so that one cannot spoil the others."""
    if not samples:
        return []
    try:
        parts = reward(tuple(samples))  # which it cannot change
        if not isinstance(parts, list):
            if isinstance(parts, str | Mapping | Set) or not isinstance(parts, Iterable):
                raise _Misshapen(f"gave one {type(parts).__name__}")
            parts = list(parts)
        if len(parts) != len(samples):
            raise _Misshapen(f"gave {len(parts)} values for {len(samples)} samples")
        return [_checked(reward, part) for part in parts]
    except KeyboardInterrupt as error:
        if current_thread() is main_thread():  # the only one where it is the user's
            raise
        return [Outcome(None, "failed", f"{reward.name}: {one_line(error)}")] * len(samples)
    except _Misshapen as error:  # of the reward, whatever the samples are
        return [Outcome(None, "failed", f"{reward.name} {error}")] * len(samples)
    except BaseException as error:  # the boundary where errors become failed outcomes
        if len(samples) > 1:
            return [part for sample in samples for part in _call(reward, [sample])]
        if out_of := exhausted(error):
            raise out_of from error
        return [Outcome(None, "failed", f"{reward.name}: {one_line(error)}")]


class _Misshapen(Exception):
    """What a reward gave is no list of one value for each sample."""

    def __str__(self) -> str:
        return f"{super().__str__()}: return a list of one value for each sample, in their order"


def _checked(reward: Reward, part: object) -> Outcome:
    """A part as it shall be: from an outcome, a number (also numpy's or torch's) or None."""
    if part is None:
        return Outcome(None, "skipped", "does not apply")
    if not isinstance(part, Outcome):
        if not hasattr(part, "__float__"):
            raise _Misshapen(f"gave a {type(part).__name__} for a sample, no number")
        part = Outcome(float(part))  # type: ignore[arg-type]
    if part.status in ("skipped", "failed"):
        return Outcome(None, part.status, plain(part.reason or ""))
    low, high = reward.bounds
    value = math.nan if part.value is None else float(part.value)  # a numpy or torch scalar
    if part.status != "ok":
        return Outcome(None, "failed", f"{reward.name} gave the unknown status {part.status!r}")
    if not low <= value <= high:
        what = f"{value}, outside of its range [{low}, {high}]"
        return Outcome(None, "failed", f"{reward.name} gave {what}")
    return Outcome(value, "ok", plain(part.reason or ""))
