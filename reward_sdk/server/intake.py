"""How much may come in at a time, and how slowly.

Requests with images are large, and a rollout sends a thousand at once. A body is read when there is
room for it among those that are in work, so that what a server holds is bounded; until then it
stays in the client's machine, as TCP has it.
"""

from __future__ import annotations

import asyncio
from math import inf

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_sdk.errors import ExhaustedError
from reward_sdk.server.telemetry import Telemetry
from reward_sdk.wire import MAX_BODY

MAX_BODIES = 2 * MAX_BODY
"""Bytes of the bodies of all requests in work. Ours."""

_WAIT = 30.0  # ours: seconds that a request waits for room
_GRACE = 5.0  # ours: seconds that a body may be late ...
_RATE = 256 << 10  # ours: ... for one of so many bytes a second: who takes room must use it
_LAST = 5.0  # ours: seconds for a body that is under way when the server stops


class Intake:
    """The bodies of the requests in work. Belongs to one event loop."""

    def __init__(self) -> None:
        self._left = MAX_BODIES
        self._freed = asyncio.Event()
        self._arriving: set[asyncio.Timeout] = set()
        self._end = inf  # of what may still come

    async def take(self, size: int) -> None:
        """Takes room for so many bytes; ExhaustedError if there is none for too long."""
        if self._left < size:
            try:
                async with asyncio.timeout(_WAIT):
                    while self._left < size:
                        self._freed.clear()
                        await self._freed.wait()
            except TimeoutError:
                raise ExhaustedError(
                    f"{MAX_BODIES:,} bytes of requests are in work already"
                ) from None
        self._left -= size

    def give_back(self, size: int) -> None:
        """Gives room back."""
        self._left += size
        self._freed.set()

    async def arrival(self, receive: Receive, end: float) -> Message:
        """The next part of a body; HTTPException 408 if it is not there by the end."""
        try:
            async with asyncio.timeout_at(min(end, self._end)) as timeout:
                self._arriving.add(timeout)
                try:
                    return await receive()
                finally:
                    self._arriving.discard(timeout)
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly", {"Connection": "close"}) from None

    def drain(self) -> None:
        """The server stops, and does not wait long for bodies that are under way."""
        self._end = asyncio.get_running_loop().time() + _LAST
        for timeout in self._arriving:
            timeout.reschedule(self._end)


class IntakeMiddleware:
    """Keeps requests to an `Intake`; inside of what bounds the body of a single one."""

    def __init__(self, app: ASGIApp, intake: Intake, telemetry: Telemetry) -> None:
        self._app, self._intake, self._telemetry = app, intake, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        chunked = b"transfer-encoding" in headers
        size = MAX_BODY if chunked else int(headers.get(b"content-length", 0))
        if not size:
            return await self._app(scope, receive, send)
        began, received, whole = 0.0, 0, False

        async def timed() -> Message:
            nonlocal began, received, whole
            if whole:  # what is waited for is that the client leaves
                return await receive()
            began = began or asyncio.get_running_loop().time()
            message = await self._intake.arrival(receive, began + _GRACE + received / _RATE)
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message

        try:
            await self._intake.take(size)
        except ExhaustedError as error:
            return await come_again(error, self._telemetry)(scope, receive, send)
        try:
            await self._app(scope, timed, send)
        finally:
            self._intake.give_back(size)


def come_again(error: ExhaustedError, telemetry: Telemetry) -> Response:
    """The answer of a machine that is out of something, which is noted."""
    telemetry.exhausted(str(error))
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
