"""Scores from reward servers (`reward-sdk serve`), with the interface of a `RewardSet`.

    with RewardClient("http://node1:8000,http://node2:8000") as rewards:
        scores = rewards.score(samples, step=12)

Each request goes to the least busy server. One that cannot be reached, or answers 429, 502, 503 or
504, is left alone for a while and the request goes elsewhere, or comes again, until the time is up;
anything else is an error at once. A request keeps its id when it comes again, so that a server that
has seen it scores nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from reward_sdk.errors import (
    ConfigError,
    ScoringError,
    ServerError,
    TokenError,
    explain,
    one_line,
)
from reward_sdk.http import certificates, clean_token, is_url, retry_after, shown_url
from reward_sdk.reward_set import TagWatch
from reward_sdk.types import Sample, Score
from reward_sdk.wire import (
    MAX_REPLY,
    TOKEN,
    ScoreReply,
    ScoreRequest,
    ServedSet,
    WireSample,
    chunks,
    impossible,
)

logger = logging.getLogger(__name__)

_LEAST = 0.05  # ours: seconds for the last attempt, however late it is
_ATTEMPT = 170.0  # ours: seconds for one attempt; a server answers within 150
_AGAIN = frozenset({408, 429, 502, 503, 504})
_KINDS = {401: TokenError, 424: ScoringError, 500: ServerError}
_FIRST, _LONGEST = 0.1, 5.0  # ours: seconds until a server that failed is asked again
_SILENCE = 5.0  # ours: seconds after which a server that has not answered is asked whether it lives
_ALIVE = 10.0  # ours: seconds that it may take to say so

T = TypeVar("T")


@dataclass
class _Replica:
    """One server: its requests in flight, since when and until when it rests, its failures, and the
    question whether it lives, while it is asked."""

    url: str
    busy: int = 0
    rested: float = 0.0
    rests_until: float = 0.0
    failures: int = 0
    probe: asyncio.Task[bool] | None = None

    def failed(self, asked: float, retry_after: float = 0.0) -> None:
        """Gives it a rest: longer each time, of random length, so that clients do not come back
        together. What was asked before a rest began tells nothing new when it fails, too."""
        if asked < self.rested:
            return
        longest = min(_FIRST * 2 ** min(self.failures, 10), _LONGEST)
        self.failures += 1
        self.rested = time.monotonic()
        self.rests_until = self.rested + max(retry_after, random.uniform(0.5, 1.0) * longest)


class AsyncRewardClient:
    """Scores samples through one or more servers of the same reward set.

    Use it in one event loop only.

    Args:
        urls: URLs of the servers, as a list or as one text with commas.
        token: the secret that the servers ask for; by default that of $REWARD_SDK_TOKEN, if it is
            set.
        timeout: seconds that a call of `score` may take, all attempts and waiting included.
        concurrency: number of requests in flight at a time.
        expected: digest of the set that every server must serve; by default that of the first
            server that answers.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        timeout: float = 600.0,
        concurrency: int = 64,
        expected: str | None = None,
    ) -> None:
        self._expected = expected
        self._replicas = [_Replica(url) for url in parse_urls(urls)]
        self._timeout = timeout
        self._limit = asyncio.Semaphore(concurrency)
        token = token or os.environ.get(TOKEN)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {clean_token(token, TOKEN)}"} if token else {},
            timeout=httpx.Timeout(_ATTEMPT, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
            verify=certificates(),
            trust_env=False,  # a proxy for the outer world is not the way to a node of the cluster
        )
        self._info: ServedSet | None = None
        self._connecting = asyncio.Lock()

    async def connect(self, timeout: float | None = None) -> ServedSet:
        """What the servers serve; waits until one of them is ready.

        Args:
            timeout: seconds to wait for a server; by default the client's own `timeout`.

        Raises:
            ServerError: no server became ready in time.
            ConfigError: a server refuses, serves another set than is expected, or is no reward
                server.
        """
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            # A little longer than the request, which says more; for those that wait for their turn.
            async with asyncio.timeout(end - time.monotonic() + 0.5), self._connecting:
                if self._info is None:
                    await self._request("GET", "/readyz", None, end)
                    reply = await self._request("GET", "/v1/rewards", None, end)
                    info = _parsed(ServedSet, reply)
                    if not all(map(isfinite, info.bounds)):
                        raise ConfigError(f"{reply.url}: totals in {list(info.bounds)} are none")
                    self._check(info.set, str(reply.url))
                    self._tag_watch = TagWatch(info.tags, info.needs)
                    self._info = info
                return self._info
        except TimeoutError:
            raise ServerError(f"reward server {self._urls()}: none became ready in time") from None

    def _check(self, found: str, url: str) -> None:
        self._expected = self._expected or found
        if found != self._expected:
            raise ConfigError(
                f"reward server {url}: it serves the set {found}, the run began with "
                f"{self._expected}: serve one set everywhere, and start anew to change it"
            )

    def _urls(self) -> str:
        return ", ".join(replica.url for replica in self._replicas)

    async def score(self, samples: Sequence[Sample], step: int | None = None) -> list[Score]:
        """One score per sample, in order; see `RewardSet.score`.

        Images go by path where the server has one of its image folders there, else in the request.

        Raises:
            ServerError: no server answered in time, or one broke down.
            ConfigError: a server refuses, as it does without a step or a token; or two servers
                serve different sets.
            ScoringError: a part failed whose policy (`on_failure`) is "raise".
            ExhaustedError: this machine is out of files or memory.
        """
        end = time.monotonic() + self._timeout
        info = await self.connect(end - time.monotonic())
        self._tag_watch.look(samples)
        requests = await asyncio.to_thread(lambda: list(chunks(samples, info)))
        replies = await asyncio.gather(*(self._score(each, step, end, info) for each in requests))
        return [score for scores in replies for score in scores]

    async def _score(
        self, samples: list[WireSample], step: int | None, end: float, info: ServedSet
    ) -> list[Score]:
        try:
            request = ScoreRequest(samples=samples, step=step, request_id=uuid.uuid4().hex)
        except ValidationError as error:
            raise ConfigError(f"policy steps are counted from 1: {step}") from error
        body = request.model_dump_json(exclude_defaults=True).encode()
        async with self._limit:
            response = await self._request("POST", "/v1/score", body, end)
        reply = _parsed(ScoreReply, response)
        self._check(reply.set, str(response.url))
        if len(reply.scores) != len(samples):
            raise ServerError(
                f"reward server {response.url}: {len(reply.scores)} scores for {len(samples)}"
            )
        for score in reply.scores:
            if problem := impossible(score, info):
                raise ServerError(f"reward server {response.url}: {problem}, which is no score")
        return reply.scores

    async def _request(
        self, method: str, path: str, body: bytes | None, end: float
    ) -> httpx.Response:
        """The answer of some server, as soon as one has a good one."""
        problem = "it was never asked"
        while True:
            now = time.monotonic()
            replica = min(
                self._replicas, key=lambda r: (max(r.rests_until, now), r.busy, random.random())
            )
            if now >= end:
                raise ServerError(
                    f"reward server {self._urls()}: no answer in time; last: {problem}"
                )
            replica.busy += 1
            try:
                await asyncio.sleep(min(replica.rests_until, end) - now)
                asked = time.monotonic()
                async with asyncio.timeout(max(end - asked, _LEAST)):
                    response = await self._answer(replica, method, path, body)
            except TimeoutError:
                problem = f"{replica.url}: it did not answer"
                replica.failed(asked)
                continue
            except httpx.TransportError as error:
                problem = f"{replica.url}: {one_line(error)}"
                replica.failed(asked)
                continue
            finally:
                replica.busy -= 1
            if response.status_code in _AGAIN:
                problem = f"{replica.url}: {response.status_code} {_detail(response)}"
                replica.failed(asked, retry_after(response, _LONGEST))
                continue
            replica.failures = 0
            if response.status_code != 200:
                kind = _KINDS.get(response.status_code, ConfigError)
                raise kind(
                    f"reward server {replica.url}: {response.status_code} {_detail(response)}"
                )
            return response

    async def _answer(
        self, replica: _Replica, method: str, path: str, body: bytes | None
    ) -> httpx.Response:
        """The answer of one server; a transport error if it does not even say that it lives, as a
        process that was stopped or a machine that was lost: scoring may take minutes, that not."""
        asking = asyncio.create_task(self._whole(method, replica.url + path, body))
        try:
            while not (await asyncio.wait({asking}, timeout=_SILENCE))[0]:
                if replica.probe is None or replica.probe.done():
                    replica.probe = asyncio.create_task(self._lives(replica))
                if not await asyncio.shield(replica.probe) and not asking.done():
                    raise httpx.ReadTimeout(f"no answer, nor to /healthz within {_ALIVE:g} s")
            return await asking
        finally:
            asking.cancel()

    async def _whole(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        """An answer with its content, which has an end."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with self._http.stream(method, url, content=body, headers=headers) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_REPLY:
                    raise ServerError(f"reward server {url}: more than {MAX_REPLY:,} bytes")
        kept = {"retry-after": response.headers.get("retry-after", "")}
        return httpx.Response(
            response.status_code, headers=kept, content=bytes(content), request=response.request
        )

    async def _lives(self, replica: _Replica) -> bool:
        try:
            async with asyncio.timeout(_ALIVE):
                await self._whole("GET", f"{replica.url}/healthz", None)
        except TimeoutError:
            why = f"no answer to /healthz within {_ALIVE:g} s"
        except (httpx.TransportError, ServerError) as error:
            why = one_line(error)
        else:
            return True
        logger.warning("reward server %s: silent: %s", replica.url, why)
        return False

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class RewardClient:
    """`AsyncRewardClient` for code that is not asynchronous. Thread-safe.

    Args:
        urls: URLs of the servers, as a list or as one text with commas.
        token: the secret that the servers ask for; by default that of $REWARD_SDK_TOKEN, if it is
            set.
        timeout: seconds that a call of `score` may take, all attempts and waiting included.
        concurrency: number of requests in flight at a time.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        timeout: float = 600.0,
        concurrency: int = 64,
    ) -> None:
        self._client = AsyncRewardClient(urls, token, timeout, concurrency)
        self._closed = False
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if self._closed:
            call.close()
            raise ServerError("reward servers: this client is closed")
        if self._process != os.getpid():
            call.close()
            raise ServerError("reward servers: this client does not work in a fork: make a new one")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._start(call).result()
        except CancelledError:
            raise ServerError("reward servers: the client was closed meanwhile") from None

    def connect(self, timeout: float | None = None) -> ServedSet:
        """See `AsyncRewardClient.connect`."""
        return self._run(self._client.connect(timeout))

    def score(self, samples: Sequence[Sample], step: int | None = None) -> list[Score]:
        """See `AsyncRewardClient.score`."""
        return self._run(self._client.score(samples, step))

    def submit(self, samples: Sequence[Sample], step: int | None = None) -> Future[list[Score]]:
        """`score` for those who do not wait; in a loop, `await asyncio.wrap_future(...)`."""
        return self._start(self._client.score(samples, step))

    def close(self) -> None:
        """Closes the connections; calls in other threads end with an error."""
        if self._closed:
            return
        self._run(self._stop())
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_urls(urls: Any) -> list[str]:
    """The URLs of servers, from a list or from one text with commas; ConfigError if these are none,
    or hold a password: URLs are logged and kept with a run.

    >>> parse_urls("http://node1:8000/, http://node2:8000")
    ['http://node1:8000', 'http://node2:8000']
    """
    found = urls.split(",") if isinstance(urls, str) else urls
    if isinstance(found, list | tuple) and all(isinstance(url, str) for url in found):
        found = [url.strip().rstrip("/") for url in dict.fromkeys(found)]
        if found and all(map(is_url, found)):
            return found
    raise ConfigError(
        f"no URLs of reward servers: {shown_url(urls)}; e.g. [http://127.0.0.1:8000], without a "
        f"password, which is ${TOKEN}"
    )


def _parsed(kind: type[T], response: httpx.Response) -> T:
    try:
        return TypeAdapter(kind).validate_json(response.content, strict=True)
    except ValidationError as error:
        problem = explain(error, values=False)
        raise ConfigError(f"{response.url}: no answer of a reward server: {problem}") from error


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return " ".join(response.text.split())[:200]
