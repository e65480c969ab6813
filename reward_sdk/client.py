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
import base64
import logging
import os
import random
import re
import ssl
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import PIL.Image
from PIL.Image import Image
from pydantic import TypeAdapter, ValidationError

from reward_sdk.errors import (
    ConfigError,
    ScoringError,
    ServerError,
    TokenError,
    exhausted,
    explain,
    one_line,
)
from reward_sdk.images import check_pixels, to_gray
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import (
    MAX_BODY,
    MAX_IMAGE,
    MAX_REPLY,
    TOKEN,
    ImageBytes,
    ImageFile,
    ScoreReply,
    ScoreRequest,
    ServedSet,
    WireSample,
    clean_token,
)

logger = logging.getLogger(__name__)

_CHUNK = 64  # ours: samples per request
_INLINE = MAX_BODY // 4  # ours: bytes of images in one request, before base64
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
        urls: the servers: URLs, or one text with commas.
        token: what the servers want to know; by default $REWARD_SDK_TOKEN.
        timeout: seconds for a call of `score`, all attempts and waiting included.
        concurrency: requests in flight at a time.
        expected: the digest of the set; by default that of the first server that answers.
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
            verify=_certificates(),
            trust_env=False,  # a proxy for the outer world is not the way to a node of the cluster
        )
        self._info: ServedSet | None = None
        self._connecting = asyncio.Lock()

    async def connect(self, timeout: float | None = None) -> ServedSet:
        """What the servers serve; waits until one of them is ready.

        Args:
            timeout: seconds; by default those of the client.

        Raises:
            ServerError: none became ready in time.
            ConfigError: a server refuses, or is none of ours.
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
            ScoringError: a part failed whose policy is "raise".
        """
        end = time.monotonic() + self._timeout
        info = await self.connect(end - time.monotonic())
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
            if problem := _wrong(score, info):
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
                replica.failed(asked, _seconds(response.headers.get("retry-after")))
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
            await self._http.get(f"{replica.url}/healthz", timeout=_ALIVE)
        except httpx.TransportError as error:
            why = one_line(error) if str(error) else f"no answer to /healthz within {_ALIVE:g} s"
            logger.warning("reward server %s: silent: %s", replica.url, why)
            return False
        return True

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _certificates() -> ssl.SSLContext:
    """Whom to trust: the usual authorities and the machine's own, $SSL_CERT_FILE among them."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


class RewardClient:
    """`AsyncRewardClient` for code that is not asynchronous. Thread-safe.

    Args: those of `AsyncRewardClient`.
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
        if found and all(map(_is_url, found)):
            return found
    given = "not shown, for they may hold a password" if "@" in str(urls) else repr(urls)
    raise ConfigError(
        f"no URLs of reward servers: {given}; e.g. [http://127.0.0.1:8000], without a password, "
        f"which is ${TOKEN}"
    )


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.host)
        and not url.userinfo
        and (url.port or 80) < 1 << 16
    )


def chunks(samples: Sequence[Sample], info: ServedSet) -> Iterator[list[WireSample]]:
    """The samples as they travel, so many at a time as a request holds."""
    chunk: list[WireSample] = []
    inline = 0
    for sample in samples:
        image = sample.image
        wire = _image(image, info) if image is not None and "image" in info.needs else None
        size = len(wire.base64) if isinstance(wire, ImageBytes) else 0
        if chunk and (len(chunk) == _CHUNK or inline + size > _INLINE):
            yield chunk
            chunk, inline = [], 0
        try:
            chunk.append(
                WireSample(
                    response=sample.response, reference=sample.reference, image=wire, id=sample.id
                )
            )
        except ValidationError as error:
            raise ConfigError(f"sample {sample.id!r}: {explain(error, values=False)}") from None
        inline += size
    if chunk:
        yield chunk


def _image(image: ImageRef, info: ServedSet) -> ImageFile | ImageBytes:
    """The image as it travels; empty, so that rewards fail on it, if it cannot."""
    try:
        check_pixels(image)
        data = image.data
        if image.pixels is not None:
            data = _png(image.pixels)
        elif data is None and image.path is not None:
            path = Path(image.path).resolve()
            size = path.stat().st_size if path.is_file() else None
            if size is not None and size > MAX_IMAGE:
                raise ValueError(f"{size} bytes")
            if any(path.is_relative_to(folder) for folder in info.image_folders):
                return ImageFile(path=str(path), size=size, view=image.view)
            data = b"" if size is None else path.read_bytes()
        return ImageBytes(base64=base64.b64encode(data or b"").decode(), view=image.view)
    except Exception as error:  # Pillow and the file system raise anything; one image is no call
        if out_of := exhausted(error):
            raise out_of from error
        return ImageBytes(base64="")


def _png(image: Image) -> bytes:
    """The image in a format without loss, with the values that rewards see."""
    if image.mode.startswith("I") or image.mode == "F":
        image = PIL.Image.fromarray((to_gray(image) * 257).round().astype("uint16"))
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _parsed(kind: type[T], response: httpx.Response) -> T:
    try:
        return TypeAdapter(kind).validate_json(response.content, strict=True)
    except ValidationError as error:
        problem = explain(error, values=False)
        raise ConfigError(f"{response.url}: no answer of a reward server: {problem}") from error


def _wrong(score: Score, info: ServedSet) -> str:
    """What of a score cannot be, by what the server says of its set; "" if all can."""
    if set(score.parts) != {reward.name for reward in info.rewards}:
        return f"parts {sorted(score.parts)[:20]}"
    logs: dict[str, float] = {}
    counted = False
    for reward in info.rewards:
        part = score.parts[reward.name]
        if not _within(part.value, reward.bounds) or (part.status == "ok" and part.value is None):
            return f"{reward.name} {part.value} ({part.status}), outside of {list(reward.bounds)}"
        counted |= part.value is not None and reward.weight != 0
        logs |= {
            reward.name: 0.0 if part.value is None else part.value,
            f"{reward.name}/applied": float(part.value is not None),
            f"{reward.name}/failed": float(part.status == "failed"),
        }
    if score.logs != logs:
        return f"logs {dict(list(score.logs.items())[:20])}"
    if not _within(score.total, info.bounds) or (score.total is not None) != counted:
        return f"a total of {score.total}, outside of {list(info.bounds)} or of no part"
    return ""


def _within(value: float | None, bounds: tuple[float, float]) -> bool:
    return value is None or bounds[0] <= value <= bounds[1]  # NaN is not


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return " ".join(response.text.split())[:200]


def _seconds(text: str | None) -> float:
    """What `Retry-After` asks for, at most `_LONGEST`; 0, so that our own rest counts, for a date
    and for nonsense."""
    return min(float(text), _LONGEST) if text and re.fullmatch(r"[0-9]{1,9}", text) else 0.0
