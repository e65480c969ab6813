"""The status page: what a server is doing, for people. Rendered here, no scripts, works offline."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from reward_sdk.errors import RewardSDKError, ScoringError
from reward_sdk.images import opened, to_gray
from reward_sdk.server.service import RewardServer
from reward_sdk.templates import template
from reward_sdk.text import has_tags
from reward_sdk.types import Evidence, ImageRef, Sample, Score
from reward_sdk.wire import MAX_IMAGE, MAX_TEXT

_BINS = 32
_LIMIT = 60.0  # ours: seconds for a score, and for each reward to explain it
_SHOWN = 512  # ours: pixels of the longer side of an image on the page

_template = template(Path(__file__).parent, "status.html.jinja")


def bars(values: Iterable[float], low: float, high: float) -> list[tuple[int, float]]:
    """A histogram of values in [low, high]: (bin, height in [0, 1]) of every bin that is not empty.

    >>> bars([0.0, 0.0, 1.0], 0, 1)
    [(0, 1.0), (31, 0.5)]
    """
    counts = [0] * _BINS
    for value in values:
        place = int((value - low) / (high - low) * _BINS) if high > low else 0
        counts[min(max(place, 0), _BINS - 1)] += 1
    most = max(counts)
    return [(i, count / most) for i, count in enumerate(counts) if count]


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of the values lies; None without values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:,.1f} ms"


@dataclass
class _Tried:
    """One try of the form: what was sent, and what came of it.

    Attributes:
        response: the text, with or without tags.
        reference: the text, "" for none.
        age: the patient's age as it was typed, "" for none.
        indication: why the study was made, "" for none.
        key: by which the image that was sent is kept, "" for none.
        image: it as a data URL, "" where it cannot be shown.
        score: its score.
        evidence: (reward, what it read, why it cannot say what it read).
        bare: whether the response lacks the tags that the set requires.
        problem: why there is no score.
    """

    response: str = ""
    reference: str = ""
    age: str = ""
    indication: str = ""
    key: str = ""
    image: str = ""
    score: Score | None = None
    evidence: Sequence[tuple[str, Sequence[Evidence], str]] = ()
    bare: bool = False
    problem: str = ""


def _render(server: RewardServer, tried: _Tried | None = None) -> HTMLResponse:
    telemetry = server.telemetry
    requests, samples = telemetry.rates()
    latencies = list(telemetry.latencies)
    rewards, not_ready = [], server.not_ready
    for info in server.info.rewards:
        recent = telemetry.recent[info.name]
        values, seconds, sizes = (list(x) for x in (recent.values, recent.seconds, recent.sizes))
        longest = max(seconds, default=0.0)
        rewards.append(
            {
                "info": info,
                "not_ready": not_ready.get(info.name),
                "outcomes": recent.outcomes,
                "values": bars(values, *info.bounds),
                "mean": sum(values) / len(values) if values else None,
                "seconds": bars(seconds, 0.0, longest),
                "longest": _milliseconds(longest),
                "median": _milliseconds(quantile(seconds, 0.5)),
                "batch": sum(sizes) / len(sizes) if sizes else None,
            }
        )
    longest = max(latencies, default=0.0)
    html = _template.render(
        info=server.info,
        ready=not not_ready,
        rewards=rewards,
        pending=server.batched.pending,
        uptime=_duration(time.time() - telemetry.started),
        rates={"requests": requests, "samples": samples},
        latencies=bars(latencies, 0.0, longest),
        longest=_milliseconds(longest),
        quantiles={f"p{q:.0f}": _milliseconds(quantile(latencies, q / 100)) for q in (50, 95, 99)},
        problems=[
            (time.strftime("%H:%M:%S", time.localtime(problem.when)), problem)
            for problem in telemetry.problems()
        ],
        tried=tried or _Tried(),
    )
    # No page of another origin may frame this one, and nothing is loaded or run.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'"
    headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    return HTMLResponse(html.encode("utf-8", "xmlcharrefreplace"), headers=headers)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class _Images:
    """The images that were tried last, `MAX_IMAGE` bytes at most, so that one can be tried again: a
    browser does not send a file a second time by itself."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, ImageRef] = OrderedDict()

    def keep(self, data: bytes) -> str:
        """The key under which these bytes are kept."""
        image = ImageRef(data=data)
        key = image.digest.hex()
        self._kept[key] = image
        self._kept.move_to_end(key)
        while sum(len(kept.data or b"") for kept in self._kept.values()) > MAX_IMAGE:
            self._kept.popitem(last=False)
        return key

    def __getitem__(self, key: str) -> ImageRef:
        """Raises ScoringError if the image is not kept any more."""
        try:
            return self._kept[key]
        except KeyError:
            raise ScoringError("the image is no longer kept: choose its file again") from None


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise ScoringError(f"{name}: must be a text, not a file")
    if len(value) > MAX_TEXT:
        raise ScoringError(f"{name}: more than {MAX_TEXT:,} characters")
    return value


async def _image_key(form: FormData, images: _Images) -> str:
    """The key of the image that was sent, else of the one that is to be used again, else ""."""
    file = form.get("image")
    if isinstance(file, str) and file:
        raise ScoringError("image: must be a file")
    if not isinstance(file, UploadFile) or not file.filename:
        return _text(form, "again")
    data = await file.read(MAX_IMAGE + 1)
    if len(data) > MAX_IMAGE:
        raise ScoringError(f"image: more than {MAX_IMAGE:,} bytes")
    return images.keep(data)


def _shown(image: ImageRef) -> str:
    """The image as rewards read it, in grey and small: a PNG as a data URL."""
    with opened(image) as pixels:
        gray = np.rint(to_gray(pixels)).astype(np.uint8)
    small = Image.fromarray(gray)
    small.thumbnail((_SHOWN, _SHOWN))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


async def _evidence(
    server: RewardServer, sample: Sample, score: Score
) -> list[tuple[str, Sequence[Evidence], str]]:
    """Of every reward that has given a value and can explain it; whatever goes wrong is said."""
    found = []
    for member in server.batched.rewards.members:
        explained: tuple[Sequence[Evidence], str] | None = [], f"no answer within {_LIMIT:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(_LIMIT):
                part = score.parts[member.name]
                explained = await asyncio.to_thread(member.evidence, sample, part)
        if explained is not None:
            found.append((member.name, *explained))
    return found


def add_page(app: FastAPI, server: RewardServer) -> None:
    """Adds `/`, the page, and `/try`, where its form goes."""
    images = _Images()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return _render(server)

    @app.post("/try", response_class=HTMLResponse, include_in_schema=False)
    async def try_one(raw: Request) -> HTMLResponse:
        tried = _Tried()
        async with raw.form(max_files=1, max_fields=8) as form:
            try:
                tried.response, tried.reference = _text(form, "response"), _text(form, "reference")
                tried.age, tried.indication = _text(form, "age"), _text(form, "indication")
                tried.key = await _image_key(form, images)
                await _try(server, images, tried)
            except RewardSDKError as error:
                tried.problem = str(error)
        return _render(server, tried)


async def _try(server: RewardServer, images: _Images, tried: _Tried) -> None:
    """Fills in what comes of what was sent; raises RewardSDKError."""
    image = None
    if tried.key:
        image = images[tried.key]
        with suppress(ScoringError):  # which the rewards that look at it will say
            tried.image = await asyncio.to_thread(_shown, image)
    tried.bare = server.info.tags == "required" and not has_tags(tried.response)
    try:
        sample = Sample(
            tried.response, tried.reference, image, "tried on the page", "optional",
            tried.age, tried.indication,
        )  # fmt: skip
    except ValueError as error:
        raise ScoringError(f"age: {error}") from None
    tried.score = score = await server.score_one(sample, limit=_LIMIT)
    tried.evidence = await _evidence(server, sample, score)
