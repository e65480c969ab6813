"""What a server knows of itself: Prometheus metrics for machines, recent numbers for people."""

from __future__ import annotations

import logging
import time
from collections import Counter as Counts
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_sdk.batching import BatchedSet, Call
from reward_sdk.types import Status

logger = logging.getLogger(__name__)

_RECENT = 2048  # ours: values per reward that the page draws
_CALLED = tuple(status for status in get_args(Status) if status != "skipped")  # which is no call
_ERRORS = 20  # ours: errors that the page lists
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WINDOW = 60  # seconds over which requests and samples per second are counted


class Recent:
    """The latest of one reward: values, seconds per call, samples per call, and its outcomes since
    the start by status."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=_RECENT)
        self.seconds: deque[float] = deque(maxlen=_RECENT)
        self.sizes: deque[int] = deque(maxlen=_RECENT)
        self.outcomes: Counts[str] = Counts()


@dataclass
class Problem:
    """Something that went wrong: where, what, how often, and when last, in seconds since 1970."""

    where: str
    what: str
    times: int = 0
    when: float = 0.0


class Telemetry:
    """Counts and remembers; every method may be called from any thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        of_reward = {"labelnames": ["reward"], "registry": registry}
        calls = Histogram(
            "reward_call_seconds", "Seconds of one call of a reward", buckets=_SECONDS, **of_reward
        )
        sizes = Histogram(
            "reward_batch_size", "Samples of one call of a reward", buckets=_SIZES, **of_reward
        )
        waits = Histogram(
            "reward_wait_seconds", "Seconds a sample waits for its call", buckets=_SECONDS,
            **of_reward,
        )  # fmt: skip
        parts = Counter(
            "reward_parts", "Outcomes per reward", ["reward", "status"], registry=registry
        )
        self._requests = Histogram(
            "http_request_seconds", "Seconds of a request", ["path", "code"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._times_exhausted = 0
        exhausted = Gauge(
            "exhausted", "Times that the machine was out of something", registry=registry
        )
        exhausted.set_function(lambda: self._times_exhausted)
        self.recent = {name: Recent() for name in names}
        # Looked up once, because that costs more than counting; a reward without calls is there too
        self._of_reward = {n: (calls.labels(n), sizes.labels(n), waits.labels(n)) for n in names}
        self._parts = {(n, s): parts.labels(n, s) for n in names for s in _CALLED}
        self._problems: OrderedDict[tuple[str, str], Problem] = OrderedDict()
        self._lock = Lock()
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
        for member in batched.rewards.members:
            late.labels(member.name).set_function(lambda member=member: member.late_calls)

    def watch_connections(self, number: Callable[[], int]) -> None:
        """Adds how many connections are open."""
        gauge = Gauge("http_connections", "Open connections", registry=self.registry)
        gauge.set_function(number)

    def called(self, call: Call) -> None:
        """A reward was called."""
        recent = self.recent[call.reward]
        calls, sizes, waits = self._of_reward[call.reward]
        calls.observe(call.seconds)
        sizes.observe(len(call.parts))
        for wait in call.waits:
            waits.observe(wait)
        recent.seconds.append(call.seconds)
        recent.sizes.append(len(call.parts))
        for part in call.parts:
            self._parts[call.reward, part.status].inc()
            recent.outcomes[part.status] += 1
            if part.value is not None:
                recent.values.append(part.value)
            elif part.status == "failed":
                self.problem(call.reward, part.reason)

    def answered(self, path: str, code: int, seconds: float, samples: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(code)).observe(seconds)
        self.latencies.append(seconds)
        now = int(time.time())
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append([now, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += samples

    def problem(self, where: str, what: str) -> None:
        """Something went wrong."""
        what = what[:300]
        with self._lock:
            problem = self._problems.setdefault((where, what), Problem(where, what))
            problem.times, problem.when = problem.times + 1, time.time()
            self._problems.move_to_end((where, what))
            while len(self._problems) > _ERRORS:
                self._problems.popitem(last=False)

    def exhausted(self, what: str) -> None:
        """The machine was out of something: counted, and logged for the 1st, 2nd, 4th, ... time."""
        with self._lock:
            self._times_exhausted = times = self._times_exhausted + 1
        self.problem("machine", what)
        if times & (times - 1) == 0:
            logger.warning("out of something, %d times so far: %s", times, what)

    def problems(self) -> list[Problem]:
        """What went wrong, the latest first."""
        with self._lock:
            return list(reversed(self._problems.values()))

    def rates(self) -> tuple[float, float]:
        """Requests and samples per second, over the last minute."""
        now = time.time()
        window = min(_WINDOW, max(1.0, now - self.started))
        recent = [row for row in list(self._seconds) if row[0] > now - window]
        return sum(r[1] for r in recent) / window, sum(r[2] for r in recent) / window


class MeasuringMiddleware:
    """Times every request; the outermost layer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, code = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.monotonic() - began
            route = scope.get("route")
            path = getattr(route, "path", "other")
            samples = scope.get("state", {}).get("samples", 0)
            self._telemetry.answered(path, code, seconds, samples)
            logger.debug("%s %d, %d samples, %.1f ms", path, code, samples, seconds * 1000)
