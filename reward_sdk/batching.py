"""Batches from many callers: the one micro-batcher, and a reward set behind it.

A GRPO rollout asks for a thousand scores at nearly the same time, one by one; models want them in
batches, and in one thread. `BatchedSet` stands between the two, in a server and in a rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from reward_sdk.errors import OverloadedError
from reward_sdk.member import Member
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Outcome, Sample, Score

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Collects the items of concurrent callers into batches for one owner thread.

    Args:
        function: called with a list of items, returns one result each, in order. It runs in one
            thread only, so a model behind it needs no lock. If it raises, every caller of that
            batch gets the exception.
        max_batch: largest number of items in a batch of several callers; the items of one are never
            split.
        max_wait: seconds that the first item of a batch waits for company.
    """

    def __init__(
        self,
        function: Callable[[list[Item]], Sequence[Result]],
        max_batch: int = 64,
        max_wait: float = 0.005,
    ) -> None:
        self._function = function
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._jobs: deque[_Job[Item, Result]] = deque()
        self._size = 0  # items in them
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True, name="micro-batcher").start()

    async def submit(self, items: Sequence[Item]) -> Sequence[Result]:
        """The function's results for these items."""
        job = _Job[Item, Result](items, asyncio.get_running_loop())
        with self._changed:
            self._jobs.append(job)
            self._size += len(items)
            # Only what the owner waits for wakes it: waking it for every item would cost more than
            # scoring a text does.
            if len(self._jobs) == 1 or self._size >= self._max_batch:
                self._changed.notify()
        return await job.future

    def _run(self) -> None:
        while True:
            batch = [job for job in self._next() if not job.future.cancelled()]
            if batch:
                self._call(batch)

    def _next(self) -> list[_Job[Item, Result]]:
        """The next jobs; waits for the first and, for a while, for others."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            left = self._jobs[0].since + self._max_wait - time.monotonic()
            if left > 0:
                self._changed.wait_for(lambda: self._size >= self._max_batch, left)
            batch, size = [], 0
            while self._jobs and (not batch or size + len(self._jobs[0].items) <= self._max_batch):
                batch.append(self._jobs.popleft())
                size += len(batch[-1].items)
            self._size -= size
        return batch

    def _call(self, batch: list[_Job[Item, Result]]) -> None:
        try:
            items = [item for job in batch for item in job.items]
            results = self._function(items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
            for job in batch:
                job.results, results = results[: len(job.items)], results[len(job.items) :]
        except BaseException as error:  # the boundary between this thread and its callers
            for job in batch:
                job.error = error
        for loop in {job.loop for job in batch}:
            with contextlib.suppress(RuntimeError):  # a loop that is closed has no callers
                loop.call_soon_threadsafe(_deliver, [job for job in batch if job.loop is loop])


class _Job(Generic[Item, Result]):
    """What one caller wants, and what becomes of it."""

    def __init__(self, items: Sequence[Item], loop: asyncio.AbstractEventLoop) -> None:
        self.items, self.loop = items, loop
        self.since = time.monotonic()
        self.future: asyncio.Future[Sequence[Result]] = loop.create_future()
        self.results: Sequence[Result] = ()
        self.error: BaseException | None = None


def _deliver(jobs: list[_Job[Item, Result]]) -> None:
    """Hands results over, in the callers' own thread."""
    for job in jobs:
        if job.future.done():  # the caller gave up
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.results)


@dataclass(frozen=True)
class Call:
    """One call of one reward, as an observer of a `BatchedSet` hears of it.

    Attributes:
        reward: name of the reward.
        parts: outcome of each sample of the call, in order.
        waits: seconds that each sample waited for the call, in the same order.
        seconds: seconds that the call took.
    """

    reward: str
    parts: Sequence[Outcome]
    waits: Sequence[float]
    seconds: float


@dataclass(frozen=True)
class _Wanted:
    """A sample, the rewards that count for it, and since when it waits."""

    sample: Sample
    counting: frozenset[str]
    since: float


class BatchedSet:
    """A reward set for concurrent callers.

    Each reward has a thread of its own and sees the samples of many calls in one batch; rewards
    that say that they are `light` share one thread. The scores are those of `RewardSet.score`,
    model-backed ones up to what the composition of a batch does to rounding.

    Args:
        rewards: the set that scores.
        max_batch: largest number of samples in a batch of several calls; the samples of one are
            never split.
        max_wait: seconds that the first sample of a batch waits for company.
        max_queue: number of samples that may be waiting or in work at a time; None for any number.
            A call of more is taken when there is no other.
        observe: called with every call of a reward, in that reward's thread.
    """

    def __init__(
        self,
        rewards: RewardSet,
        max_batch: int = 64,
        max_wait: float = 0.005,
        max_queue: int | None = None,
        observe: Callable[[Call], object] = lambda call: None,
    ) -> None:
        self.rewards = rewards
        self.pending = 0
        self._max_queue, self._observe = max_queue, observe
        light = [member for member in rewards.members if member.light]
        heavy = [[member] for member in rewards.members if not member.light]
        self._owners = [
            (members, MicroBatcher(partial(self._parts, members), max_batch, max_wait))
            for members in (light, *heavy)
            if members
        ]

    async def score(
        self,
        samples: Sequence[Sample],
        step: int | None = None,
        *,
        counting: frozenset[str] | None = None,
        limit: float | None = None,
    ) -> list[Score]:
        """One score per sample, in order; see `RewardSet.score`.

        Args:
            samples: the samples to score.
            step: the policy step, counted from 1; needed by sets with a schedule unless `counting`
                is given.
            counting: names of the rewards that count; by default those that the schedule lets count
                on `step`.
            limit: seconds after which the parts that are not there yet have failed; None for no
                limit.

        Raises:
            OverloadedError: the queue has no room for these samples.
            ConfigError: the set has a schedule and there is no step, or the step is below 1.
            ScoringError: a part failed whose policy (`on_failure`) is "raise".
            ExhaustedError: the machine is out of files, memory or disk.
        """
        if counting is None:
            counting = self.rewards.counting(step)
        most = self._max_queue
        if most is not None and self.pending and self.pending + len(samples) > most:
            raise OverloadedError(f"{self.pending} samples are waiting, {most} may")
        now, samples = time.monotonic(), self.rewards.read(samples)
        wanted = [_Wanted(sample, counting, now) for sample in samples]
        calls = [
            self._submit(owner, batcher, wanted, limit)
            for owner, batcher in self._owners
            if any(member.name in counting for member in owner)
        ]
        self.pending += len(samples)
        try:
            # A task costs a tenth of what scoring a text does.
            found = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        finally:
            self.pending -= len(samples)
        scores = []
        for i, sample in enumerate(samples):
            parts = {name: part for of_owner in found for name, part in of_owner[i].items()}
            scores.append(self.rewards.combine(parts, sample))
        return scores

    async def _submit(
        self,
        members: Sequence[Member],
        batcher: MicroBatcher[_Wanted, dict[str, Outcome]],
        wanted: Sequence[_Wanted],
        limit: float | None,
    ) -> Sequence[dict[str, Outcome]]:
        try:
            async with asyncio.timeout(limit):
                return await batcher.submit(wanted)
        except TimeoutError:
            late = Outcome(None, "failed", f"no answer within {limit:g} s")
            return [{m.name: late for m in members if m.name in w.counting} for w in wanted]

    def _parts(
        self, members: Sequence[Member], wanted: Sequence[_Wanted]
    ) -> list[dict[str, Outcome]]:
        """Per sample the parts of those of these rewards that count for it."""
        found: list[dict[str, Outcome]] = [{} for _ in wanted]
        for member in members:
            due = [i for i, item in enumerate(wanted) if member.name in item.counting]
            if not due:
                continue
            began = time.monotonic()
            parts = member.parts([wanted[i].sample for i in due])
            for i, part in zip(due, parts, strict=True):
                found[i][member.name] = part
            waits = [began - wanted[i].since for i in due]
            self._observe(Call(member.name, parts, waits, time.monotonic() - began))
        return found
