"""The status page: what a server is doing, for people. Rendered here, no scripts, works offline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Form, UploadFile
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from reward_sdk.errors import RewardSDKError
from reward_sdk.server.service import RewardServer
from reward_sdk.templates import template
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import MAX_IMAGE, MAX_TEXT

_BINS = 32

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


def _render(server: RewardServer, tried: dict[str, object] | None = None) -> HTMLResponse:
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
        tried=tried,
    )
    # No page of another origin may frame this one, and nothing is loaded or run.
    policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
    headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    return HTMLResponse(html.encode("utf-8", "xmlcharrefreplace"), headers=headers)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _image(file: UploadFile | None) -> ImageRef | None:
    if file is None or not file.filename:
        return None
    data = file.file.read(MAX_IMAGE + 1)
    if len(data) > MAX_IMAGE:
        raise HTTPException(413, f"image: more than {MAX_IMAGE:,} bytes")
    return ImageRef(data=data)


def add_page(app: FastAPI, server: RewardServer) -> None:
    """Adds `/`, the page, and `/try`, where its form goes."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return _render(server)

    @app.post("/try", response_class=HTMLResponse, include_in_schema=False)
    async def try_one(
        report: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        reference: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        image: UploadFile | None = None,
    ) -> HTMLResponse:
        score: Score | None = None
        problem = ""
        response = report if "<report>" in report else wrap_report(report)
        sample = Sample(response, reference.strip() or None, _image(image), "tried on the page")
        try:
            score = await server.score_one(sample, limit=60)
        except RewardSDKError as error:
            problem = str(error)
        tried = {"report": report, "reference": reference, "score": score, "problem": problem}
        return _render(server, tried)
