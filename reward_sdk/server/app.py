"""The server: a reward set behind HTTP.

The event loop reads, checks and answers; rewards run in threads of their own (`BatchedSet`). A
response is scored as in process: the server adds nothing to a score. What goes wrong with a sample
is an outcome in its answer; only what is wrong with a request is an error code.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from reward_sdk.adapters import nemo_gym, openrlhf
from reward_sdk.batching import BatchedSet
from reward_sdk.errors import (
    ConfigError,
    OverloadedError,
    RewardSDKError,
    ScoringError,
    one_line,
)
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.page import add_page
from reward_sdk.server.security import RefusedError, TokenMiddleware, open_wire_image
from reward_sdk.server.telemetry import MeasuringMiddleware, Telemetry
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import (
    MAX_BODY,
    ImageBytes,
    ImageFile,
    ScoreReply,
    ScoreRequest,
    SetInfo,
    WireSample,
    places,
    set_info,
)

logger = logging.getLogger(__name__)

LIMIT = 150.0  # ours: seconds for a request; OpenRLHF gives up after 180
DEADLINE = 100.0  # ours: seconds for a call of a reward whose entry in the set names none
_REMEMBERED = 512  # ours: answers kept for requests that come again
_RETRY = 5.0  # ours: seconds until a reward that failed to warm up is tried again


class RewardServer:
    """What the endpoints share.

    Args:
        rewards: the set.
        folders: image folders, resolved.
        max_batch: see `BatchedSet`.
        max_wait: see `BatchedSet`.
        max_queue: see `BatchedSet`.
    """

    def __init__(
        self,
        rewards: RewardSet,
        folders: Sequence[Path] = (),
        max_batch: int = 64,
        max_wait: float = 0.005,
        max_queue: int = 4096,
    ) -> None:
        self.rewards = rewards
        self.digest = rewards.digest
        self.folders = tuple(folders)
        self.needs = rewards.needs
        self.telemetry = Telemetry(rewards.names)
        self.batched = BatchedSet(
            rewards.with_deadline(DEADLINE), max_batch, max_wait, max_queue, self.telemetry.called
        )
        self.telemetry.watch(self.batched)
        self.not_ready: dict[str, str] = dict.fromkeys(rewards.names, "not called yet")
        self._images: WeakValueDictionary[ImageFile | ImageBytes, ImageRef] = WeakValueDictionary()
        self._answers: OrderedDict[str, tuple[bytes, asyncio.Task[list[Score]]]] = OrderedDict()

    async def warm_up(self) -> None:
        """Calls every reward once, again and again until none of them fails."""
        image = ImageRef(pixels=Image.linear_gradient("L"))
        sample = Sample(wrap_report("No effusion."), "No effusion.", image, "warm-up")
        while self.not_ready:
            try:
                [score] = await self.batched.score([sample], counting=frozenset(self.not_ready))
                parts = {name: score.parts[name] for name in self.not_ready}
                failed = {name: p for name, p in parts.items() if p.status == "failed"}
                self.not_ready = {name: part.reason for name, part in failed.items()}
            except RewardSDKError as error:  # failures may have to raise, the queue may be full
                self.not_ready = dict.fromkeys(self.not_ready, str(error))
            if self.not_ready:
                logger.error(
                    "not ready: %s; tried again every %g s", ", ".join(self.not_ready), _RETRY
                )
                await asyncio.sleep(_RETRY)
        logger.info("ready: %s", ", ".join(self.rewards.names))

    async def sample(self, wire: WireSample) -> Sample:
        """The sample, its image's file read if a reward looks at it; RefusedError for an image that
        may not be."""
        image = None
        if wire.image is not None and "image" in self.needs:
            # The samples of a group share an image; its bytes are held once while any is in work.
            image = self._images.get(wire.image)
            if image is None:
                image = await asyncio.to_thread(open_wire_image, wire.image, self.folders)
                self._images[wire.image] = image
        return Sample(wire.response, wire.reference, image, wire.id)

    async def score_request(self, request: ScoreRequest, body: bytes) -> list[Score]:
        """The scores of a request; those of its first coming if it has come before.

        Raises:
            HTTPException: 409 for another request under the same id.
        """
        if request.request_id is None:
            return await self._score(request)
        key, digest = request.request_id, hashlib.sha256(body).digest()
        known, task = self._answers.get(key, (digest, None))
        if known != digest:
            raise HTTPException(409, f"request_id {key!r} was that of another request")
        if task is None:
            task = asyncio.create_task(self._score(request))
            self._answers[key] = digest, task
            while len(self._answers) > _REMEMBERED and self._oldest_is_done():
                self._answers.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception()):
                self._answers.pop(key, None)

    def _oldest_is_done(self) -> bool:
        _, task = next(iter(self._answers.values()))
        return task.done()

    async def _score(self, request: ScoreRequest) -> list[Score]:
        samples = []
        for i, wire in enumerate(request.samples):
            try:
                samples.append(await self.sample(wire))
            except RefusedError as error:
                raise RefusedError(f"samples.{i}: {error}") from None
        return await self.batched.score(samples, request.step, limit=LIMIT)

    async def score_row(self, row: Sample) -> Score:
        """The score of another stack's row, which comes without its step: every reward counts.
        Waits for room. An image that may not be read fails the rewards that look at it.

        Raises:
            ScoringError: a text is too long; or a part failed whose policy is "raise".
            OverloadedError: there was no room for too long.
        """
        try:
            WireSample(response=row.response, reference=row.reference, id=row.id)  # its limits
        except ValidationError as error:
            raise ScoringError(places(error)) from None
        sample = replace(row, image=await self._row_image(row.image))
        counting, end = frozenset(self.rewards.names), time.monotonic() + LIMIT
        while True:
            left = end - time.monotonic()
            try:
                [score] = await self.batched.score([sample], counting=counting, limit=left)
                return score
            except OverloadedError:
                if left < 1:
                    raise
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def _row_image(self, image: ImageRef | None) -> ImageRef | None:
        if image is None:
            return None
        try:
            wire = (
                ImageBytes(base64=base64.b64encode(image.data).decode(), view=image.view)
                if image.data is not None
                else ImageFile(path=image.path or "", view=image.view)
            )
            return await asyncio.to_thread(open_wire_image, wire, self.folders)
        except (RefusedError, ValidationError) as error:
            message = places(error) if isinstance(error, ValidationError) else str(error)
            self.telemetry.problem("image", message)
            return ImageRef(data=b"", view=image.view)


def create_app(
    rewards: RewardSet, token: str | None = None, folders: Sequence[Path] = (), **queue: Any
) -> FastAPI:
    """The ASGI application.

    Args:
        rewards: the set.
        token: what clients must know; None lets everyone in.
        folders: image folders, resolved.
        queue: `max_batch`, `max_wait` and `max_queue` of `BatchedSet`.
    """
    server = RewardServer(rewards, folders, **queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(server.warm_up())
        yield
        warming.cancel()

    app = FastAPI(
        title="Reward server",
        version=version("valor-rrg"),
        description="Rewards for chest X-ray report generation, see `/v1/rewards`.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.server = server
    _handle_errors(app)
    _add_scoring(app, server)
    _add_state(app, server)
    add_page(app, server)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY)
    if token is not None:
        app.add_middleware(TokenMiddleware, token=token)
    app.add_middleware(MeasuringMiddleware, telemetry=server.telemetry)
    return app


def _problems(**codes: str) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object", "properties": {"detail": {"type": "string"}}}
    content = {"application/json": {"schema": schema}}
    return {int(c[1:]): {"description": text, "content": content} for c, text in codes.items()}


_REFUSED = _problems(
    _400="no JSON", _401="no token, or a wrong one", _413="the body is too large",
    _415="no Content-Type: application/json",
    _422="the request is not as it must be; says where",
)  # fmt: skip
_FAILED = _problems(
    _409="the request_id was that of another request",
    _424="a reward failed whose policy is to raise",
)
_BUSY = _problems(_429="too many samples wait; Retry-After says when to come again")


def _add_scoring(app: FastAPI, server: RewardServer) -> None:
    @app.post("/v1/score", responses=_REFUSED | _BUSY | _FAILED | {200: {"model": ScoreReply}})
    async def score(request: ScoreRequest, raw: Request) -> Response:
        """Scores samples: total, parts and logs of each, as `RewardSet.score` gives them."""
        raw.state.samples = len(request.samples)
        if logger.isEnabledFor(logging.DEBUG):
            groups = dict.fromkeys(sample.group or sample.id for sample in request.samples)
            names = ", ".join(groups)
            logger.debug("request %r, step %s: %r", request.request_id, request.step, names)
        scores = await server.score_request(request, await raw.body())
        return _json(ScoreReply(set=server.digest, request_id=request.request_id, scores=scores))

    @app.post("/get_reward", responses=_REFUSED | {200: {"model": openrlhf.Reply}})
    async def get_reward(query: openrlhf.Query, raw: Request) -> Response:
        """OpenRLHF's remote reward (`--reward.remote_url`); see `reward_sdk.adapters.openrlhf`."""
        if not len(query.query) == len(query.prompts) == len(query.labels):
            raise HTTPException(422, "query, prompts and labels differ in length")
        raw.state.samples = len(query.query)

        async def one(text: str, prompt: str, label: Any) -> Score | None:
            try:
                async with asyncio.timeout(LIMIT + 10):  # the image is read before the clock starts
                    return await server.score_row(
                        openrlhf.sample(text, prompt, label, server.needs)
                    )
            except Exception as error:  # the client would drop the sample without a word
                if not isinstance(error, RewardSDKError):
                    logger.error("/get_reward: %s", type(error).__name__)
                server.telemetry.problem("/get_reward", one_line(error))
                return None

        rows = zip(query.query, query.prompts, query.labels, strict=True)
        scores = await asyncio.gather(*(one(*row) for row in rows))
        reply = openrlhf.reply(scores, rewards_bounds, log_keys)
        return Response(json.dumps(reply, allow_nan=False), media_type="application/json")

    @app.post("/seed_session", responses=_REFUSED)
    async def seed_session(_: nemo_gym.SeedRequest) -> dict[str, str]:
        """NeMo Gym's word before a rollout; see `reward_sdk.adapters.nemo_gym`."""
        return {}

    @app.post("/verify", responses=_REFUSED, response_class=JSONResponse)
    async def verify(request: nemo_gym.VerifyRequest, raw: Request) -> Response:
        """NeMo Gym's verification of one rollout; see `reward_sdk.adapters.nemo_gym`."""
        raw.state.samples = 1
        score, problem = None, ""
        try:
            score = await server.score_row(nemo_gym.sample(request, server.needs))
        except RewardSDKError as error:
            problem = str(error)
            server.telemetry.problem("/verify", problem)
        reply = nemo_gym.reply(request, score, weights, log_keys, problem)
        try:
            # Escaped, because the request may hold what is no Unicode text, and comes back.
            return Response(json.dumps(reply, allow_nan=False), media_type="application/json")
        except ValueError:
            raise HTTPException(422, "the request holds NaN or infinity: no JSON") from None

    rewards_bounds, log_keys = server.rewards.bounds, server.rewards.log_keys
    weights = {column.name: column.entry.weight for column in server.rewards.members}


def _json(reply: BaseModel) -> Response:
    # Not left to FastAPI, which would validate what was made here.
    return Response(reply.model_dump_json(), media_type="application/json")


def _add_state(app: FastAPI, server: RewardServer) -> None:
    @app.get("/v1/rewards", responses=_problems(_401="no token, or a wrong one"))
    async def rewards() -> SetInfo:
        """The set: its rewards with ranges, needs, weights and settings."""
        return set_info(server.rewards, server.folders)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "some reward is not ready"}})
    async def readyz() -> Response:
        """Whether every reward has been called without failing, and none has stopped answering."""
        stuck = {c.name: c.stuck for c in server.batched.rewards.members if c.stuck}
        waiting_for = {**server.not_ready, **stuck}
        ready = not waiting_for
        content: dict[str, Any] = {"ready": ready, "set": server.digest}
        if not ready:
            content["waiting_for"] = waiting_for
        return JSONResponse(content, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        text = await asyncio.to_thread(generate_latest, server.telemetry.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _handle_errors(app: FastAPI) -> None:
    def answer(code: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": detail}, code, headers)

    @app.exception_handler(RequestValidationError)
    async def not_as_it_must_be(raw: Request, error: RequestValidationError) -> JSONResponse:
        if raw.url.path != "/try" and "json" not in raw.headers.get("content-type", ""):
            return answer(415, "the body must be JSON, with Content-Type: application/json")
        # Places and messages alone: what was sent may be a report, or anything.
        places = [
            f"{'.'.join(str(key) for key in item['loc'])}: {item['msg']}"
            for item in error.errors()[:10]
        ]
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        return answer(400 if broken else 422, "; ".join(places))

    @app.exception_handler(OverloadedError)
    async def overloaded(_: Request, error: Exception) -> JSONResponse:
        return answer(429, str(error), {"Retry-After": "1"})

    @app.exception_handler(ScoringError)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return answer(424, str(error))

    @app.exception_handler(ConfigError)
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return answer(422, str(error))
