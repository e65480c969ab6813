"""One reward of a set: called in time, and what it gave made into outcomes.

Nothing that a reward does comes through: what it raises, a wrong return value and a deadline that
passes are failed outcomes. Only a machine that is out of something is told to the caller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from reward_sdk.config import Entry
from reward_sdk.errors import ScoringError, exhausted, one_line, plain
from reward_sdk.registry import Reward
from reward_sdk.text import has_tags
from reward_sdk.types import Evidence, Outcome, RewardInfo, Sample

NO_TAGS = "no <report> tags; a set with `tags: optional` takes the whole response"
"""The reason of a part of a response without tags, where a set requires them."""

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

    def evidence(self, sample: Sample, part: Outcome) -> tuple[Sequence[Evidence], str] | None:
        """What the reward read about each finding, and why it cannot say it, "" if it can; None of
        a reward that explains nothing, and where there is nothing to explain: no value, or none of
        a report.

        Args:
            sample: the sample that was scored.
            part: what the reward gave it.
        """
        explain = getattr(self.reward, "explain", None)
        if explain is None or sample.report is None or part.status != "ok":
            return None
        try:
            rows = list(explain(sample))
            if not all(isinstance(row, Evidence) for row in rows):
                raise TypeError("explain gave something else than Evidence")
        except (Exception, SystemExit) as error:  # where a reward's errors become words
            return [], one_line(error)
        return rows, ""

    def _before(self, sample: Sample) -> Outcome | None:
        """The part of a sample that the reward need not see, or None."""
        needs = self.reward.needs
        if "image" in needs and sample.image is None:
            return Outcome(None, "not_applicable", "no image")
        if "reference" in needs and sample.reference is None:
            return Outcome(None, "not_applicable", "no reference")
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
        return Outcome(None, "not_applicable", "does not apply")
    if not isinstance(part, Outcome):
        if not hasattr(part, "__float__"):
            raise _Misshapen(f"gave a {type(part).__name__} for a sample, no number")
        part = Outcome(float(part))  # type: ignore[arg-type]
    if part.status in ("not_applicable", "failed"):
        return Outcome(None, part.status, plain(part.reason or ""))
    low, high = reward.bounds
    value = math.nan if part.value is None else float(part.value)  # a numpy or torch scalar
    if part.status != "ok":
        what = f"the status {part.status!r}, which is none of ok, not_applicable and failed"
        return Outcome(None, "failed", f"{reward.name} gave {what}")
    if not low <= value <= high:
        what = f"{value}, outside of its range [{low}, {high}]"
        return Outcome(None, "failed", f"{reward.name} gave {what}")
    return Outcome(value, "ok", plain(part.reason or ""))
