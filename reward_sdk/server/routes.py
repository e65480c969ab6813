"""The server's routes: a reward set behind HTTP.

A response is scored as in process: the server adds nothing to a score. What goes wrong with a
sample is an outcome in its answer; only what is wrong with a request is an error code.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from reward_sdk.adapters import nemo_gym, openrlhf
from reward_sdk.errors import (
    ConfigError,
    ExhaustedError,
    OverloadedError,
    RewardSDKError,
    ScoringError,
    exhausted,
    explain,
    one_line,
)
from reward_sdk.images import RefusedError
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.intake import Intake, IntakeMiddleware, come_again
from reward_sdk.server.page import add_page
from reward_sdk.server.security import SiteMiddleware, TokenMiddleware
from reward_sdk.server.service import LIMIT, RewardServer
from reward_sdk.server.telemetry import MeasuringMiddleware
from reward_sdk.types import Score
from reward_sdk.wire import MAX_BODY, MAX_VALUES, ScoreReply, ScoreRequest, ServedSet

logger = logging.getLogger(__name__)


def create_app(
    rewards: RewardSet,
    token: str | None = None,
    folders: Sequence[Path] = (),
    names: Sequence[str] = (),
    **queue: Any,
) -> FastAPI:
    """The ASGI application of a reward server, which works with its `state.server` and
    `state.intake`.

    Args:
        rewards: the set to serve.
        token: the secret that clients must send; None lets everyone in.
        folders: folders of images that clients may name by path, without symbolic links.
        names: host names by which the server may be asked, beside addresses, "localhost" and the
            machine's own names.
        queue: `max_batch`, `max_wait` and `max_queue`, as `BatchedSet` takes them.
    """
    server, intake = RewardServer(rewards, folders, **queue), Intake()

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
    app.router.route_class = BoundedRoute
    app.state.server, app.state.intake = server, intake
    _handle_errors(app, server)
    _add_scoring(app, server)
    _add_state(app, server)
    add_page(app, server)
    app.add_middleware(IntakeMiddleware, intake=intake, telemetry=server.telemetry)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY)
    if token is not None:
        app.add_middleware(TokenMiddleware, token=token)
    app.add_middleware(SiteMiddleware, names=names)
    app.add_middleware(MeasuringMiddleware, telemetry=server.telemetry)
    return app


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class BoundedRoute(APIRoute):
    """Refuses a JSON body of more than `MAX_VALUES` keys and values before anything is made of it:
    a value of two bytes can take a hundred of memory, and a message if it should not be there."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if "json" in request.headers.get("content-type", ""):
                body = await request.body()
                if len(body) > MAX_VALUES and await asyncio.to_thread(_has_too_many_values, body):
                    raise HTTPException(413, f"more than {MAX_VALUES:,} keys and values")
            return await handle(request)

        return bounded


def _has_too_many_values(body: bytes) -> bool:
    quotes = body.count(b'"') - body.count(b'\\"')
    if quotes > 2 * MAX_VALUES:  # so many strings would themselves take memory below
        return True
    rest = _STRING.sub(b"", body)
    return sum(map(rest.count, (b",", b":", b"[", b"{"))) > MAX_VALUES


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
_BUSY = _problems(
    _408="the body came too slowly",
    _429="too many samples wait; Retry-After says when to come again",
    _503="the machine is out of files, memory or disk; as for 429",
)


def _add_scoring(app: FastAPI, server: RewardServer) -> None:
    info = server.info
    weights = {reward.name: reward.weight for reward in info.rewards}

    @app.post("/v1/score", responses=_REFUSED | _BUSY | _FAILED | {200: {"model": ScoreReply}})
    async def score(request: ScoreRequest, raw: Request) -> Response:
        """Scores samples: total, parts and logs of each, as `RewardSet.score` gives them."""
        raw.state.samples = len(request.samples)
        if logger.isEnabledFor(logging.DEBUG):
            groups = dict.fromkeys(sample.group or sample.id for sample in request.samples)
            names = ", ".join(groups)
            logger.debug("request %r, step %s: %r", request.request_id, request.step, names)
        scores = await server.score_request(request, await raw.body())
        reply = ScoreReply(set=info.set, request_id=request.request_id, scores=scores)
        # Not left to FastAPI, which would validate what was made here.
        return Response(reply.model_dump_json(), media_type="application/json")

    @app.post("/get_reward", responses=_REFUSED | {200: {"model": openrlhf.Reply}})
    async def get_reward(query: openrlhf.Query, raw: Request) -> Response:
        """OpenRLHF's remote reward (`--reward.remote_url`); see `reward_sdk.adapters.openrlhf`."""
        if not len(query.query) == len(query.prompts) == len(query.labels):
            raise HTTPException(422, "query, prompts and labels differ in length")
        raw.state.samples = len(query.query)

        async def one(text: str, prompt: str, label: Any) -> Score | None:
            try:
                async with asyncio.timeout(LIMIT + 10):  # the image is read before the clock starts
                    return await server.score_row(openrlhf.sample(text, prompt, label, info.needs))
            except Exception as error:  # the client would drop the sample without a word
                if not isinstance(error, RewardSDKError):
                    logger.error("/get_reward: %s", type(error).__name__)
                server.telemetry.problem("/get_reward", one_line(error))
                return None

        rows = zip(query.query, query.prompts, query.labels, strict=True)
        scores = await asyncio.gather(*(one(*row) for row in rows))
        reply = openrlhf.reply(scores, info.bounds, info.log_keys)
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
            score = await server.score_row(nemo_gym.sample(request, info.needs))
        except RewardSDKError as error:
            problem = str(error)
            server.telemetry.problem("/verify", problem)
        reply = nemo_gym.reply(request, score, weights, info.log_keys, problem)
        try:
            # Escaped, because the request may hold what is no Unicode text, and comes back.
            return Response(json.dumps(reply, allow_nan=False), media_type="application/json")
        except ValueError:
            raise HTTPException(422, "the request holds NaN or infinity: no JSON") from None


def _add_state(app: FastAPI, server: RewardServer) -> None:
    @app.get("/v1/rewards", responses=_problems(_401="no token, or a wrong one"))
    async def rewards() -> ServedSet:
        """The set: its rewards with ranges, needs, weights and settings."""
        return server.info

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "some reward is not ready"}})
    async def readyz(raw: Request) -> Response:
        """Whether every reward has been called without failing, and none has stopped answering. Why
        is told to those who know the token."""
        waiting_for = server.not_ready
        if getattr(raw.state, "stranger", False):
            waiting_for = dict.fromkeys(waiting_for, "see the server's log")
        content: dict[str, Any] = {"ready": not waiting_for, "set": server.info.set}
        if waiting_for:
            content["waiting_for"] = waiting_for
        return JSONResponse(content, 503 if waiting_for else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        text = await asyncio.to_thread(generate_latest, server.telemetry.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _handle_errors(app: FastAPI, server: RewardServer) -> None:
    def answer(code: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": detail}, code, headers)

    @app.exception_handler(RequestValidationError)
    async def not_as_it_must_be(raw: Request, error: RequestValidationError) -> JSONResponse:
        if raw.url.path != "/try" and "json" not in raw.headers.get("content-type", ""):
            return answer(415, "the body must be JSON, with Content-Type: application/json")
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        return answer(400 if broken else 422, explain(error, values=False))

    @app.exception_handler(OverloadedError)
    async def overloaded(_: Request, error: Exception) -> JSONResponse:
        return answer(429, str(error), {"Retry-After": "1"})

    @app.exception_handler(ExhaustedError)
    @app.exception_handler(OSError)
    @app.exception_handler(MemoryError)
    @app.exception_handler(HTTPException)  # into which FastAPI turns what goes wrong with a body
    async def out_of(raw: Request, error: Exception) -> Response:
        if found := exhausted(error):
            return come_again(found, server.telemetry)
        if isinstance(error, HTTPException):
            return await http_exception_handler(raw, error)
        raise error

    @app.exception_handler(ScoringError)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return answer(424, str(error))

    @app.exception_handler(ConfigError)
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return answer(422, str(error))
