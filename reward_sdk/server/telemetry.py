"""What a server knows of itself: Prometheus metrics for machines, recent numbers for people."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from reward_sdk.batching import BatchedSet, Call

_RECENT = 2048  # ours: values per reward that the page draws
_ERRORS = 20  # ours: errors that the page lists
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WINDOW = 60  # seconds over which requests and samples per second are counted


@dataclass
class Recent:
    """The latest of one reward: values, seconds per call, samples per call, and its outcomes since
    the start by status."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    sizes: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))
    outcomes: Counts[str] = field(default_factory=Counts)


@dataclass(frozen=True)
class Trouble:
    """Something that went wrong: when (seconds since the epoch), where and what."""

    when: float
    where: str
    what: str


class Telemetry:
    """Counts and remembers; every method may be called from any thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        of_reward = {"labelnames": ["reward"], "registry": registry}
        self._calls = Histogram(
            "reward_call_seconds", "Seconds of one call of a reward", buckets=_SECONDS, **of_reward
        )
        self._sizes = Histogram(
            "reward_batch_size", "Samples of one call of a reward", buckets=_SIZES, **of_reward
        )
        self._waits = Histogram(
            "reward_wait_seconds", "Seconds a sample waits for its call", buckets=_SECONDS,
            **of_reward,
        )  # fmt: skip
        self._parts = Counter(
            "reward_parts", "Outcomes per reward", ["reward", "status"], registry=registry
        )
        self._requests = Histogram(
            "http_request_seconds", "Seconds of a request", ["path", "code"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.recent = {name: Recent() for name in names}
        for name in names:  # so that a reward without calls is there, with zeros
            self._calls.labels(name)
            for status in ("ok", "skipped", "failed"):
                self._parts.labels(name, status)
        self.troubles: deque[Trouble] = deque(maxlen=_ERRORS)
        self.latencies: deque[float] = deque(maxlen=_RECENT)
        self._seconds: deque[list[int]] = deque(maxlen=_WINDOW)  # [second, requests, samples]
        self.started = time.time()

    def watch(self, batched: BatchedSet) -> None:
        """Adds what can be read at any time: the queue, and calls past their deadlines."""
        pending = Gauge("reward_pending_samples", "Samples in work", registry=self.registry)
        pending.set_function(lambda: batched.pending)
        late = Gauge(
            "reward_late_calls", "Calls given up at their deadline", ["reward"],
            registry=self.registry,
        )  # fmt: skip
        for column in batched.rewards.columns:
            late.labels(column.name).set_function(lambda column=column: column.late_calls)

    def called(self, call: Call) -> None:
        """A reward was called."""
        recent = self.recent[call.reward]
        self._calls.labels(call.reward).observe(call.seconds)
        self._sizes.labels(call.reward).observe(len(call.parts))
        waits = self._waits.labels(call.reward)
        for wait in call.waits:
            waits.observe(wait)
        for status, number in Counts(part.status for part in call.parts).items():
            self._parts.labels(call.reward, status).inc(number)
            recent.outcomes[status] += number
        recent.seconds.append(call.seconds)
        recent.sizes.append(len(call.parts))
        for part in call.parts:
            if part.value is not None:
                recent.values.append(part.value)
            elif part.status == "failed":
                self.trouble(call.reward, part.reason)

    def answered(self, path: str, code: int, seconds: float, samples: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(code)).observe(seconds)
        self.latencies.append(seconds)
        now = int(time.time())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += samples

    def trouble(self, where: str, what: str) -> None:
        """Something went wrong."""
        self.troubles.appendleft(Trouble(time.time(), where, what))

    def rates(self) -> tuple[float, float]:
        """Requests and samples per second, over the last minute."""
        now = time.time()
        window = min(_WINDOW, max(1.0, now - self.started))
        recent = [row for row in list(self._seconds) if row[0] > now - window]
        return sum(r[1] for r in recent) / window, sum(r[2] for r in recent) / window
