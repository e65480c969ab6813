"""Training curves: from the records of a run to an inline SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from valor_plugin.records import Step, SupervisedStep

# Okabe and Ito's colours for colour-blind readers, those that show on white and on black alike;
# the dashes tell lines apart without any colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def reward_curves(steps: Sequence[Step]) -> dict[str, list[tuple[int, float]]]:
    """Every reward of a run: its mean over those samples of each policy step that it gave a value,
    by step. Steps at which it gave none, because it waits for its step, failed or did not apply,
    are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in steps:
        for name, part in step.parts.items():
            points = curves.setdefault(name, [])
            if part.mean is not None:
                points.append((step.step, part.mean))
    return curves


def loss_curves(steps: Sequence[SupervisedStep]) -> dict[str, list[tuple[int, float]]]:
    """The loss of supervised fine-tuning by step and, where there was an evaluation, that on
    held-out studies. Values that are not finite are left out."""
    curves = {
        "loss": [(step.step, step.loss) for step in steps if step.loss is not None],
        "held-out loss": [
            (step.step, step.evaluation_loss) for step in steps if step.evaluation_loss is not None
        ],
    }
    return {name: points for name, points in curves.items() if points}


def running_mean(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` values, fewer at the ends; NaN is left out of a mean.

    Returns:
        Shape (len(values),); NaN only where a whole window is NaN.
    """
    padded = np.pad(
        np.asarray(values, dtype=float), (window // 2, (window - 1) // 2), constant_values=np.nan
    )
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    known = ~np.isnan(views)
    with np.errstate(invalid="ignore"):
        return np.where(known, views, 0).sum(axis=1) / known.sum(axis=1)


def curve_svg(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """A line chart as one `<svg>` element, to be put into a page; the same input, the same bytes.

    Each series is drawn raw (thin) and as a running mean over a tenth of its points. Text takes
    the colour of the page around it.

    Args:
        series: name in the legend -> points (step, value), ordered by step; one to four of
            them.
        title: title above the chart, which is its accessible name, too.

    Raises:
        ValueError: there is no series, there are more than can be told apart, or one has no points.
    """
    if not 0 < len(series) <= len(_COLOURS) or not all(series.values()):
        raise ValueError(f"{title}: a chart takes 1 to {len(_COLOURS)} series that have points")
    with mpl.rc_context(_STYLE), mpl.rc_context({"svg.hashsalt": title}):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes = figure.add_subplot()
        rows = (len(series) + 1) // 2  # of the legend, which stands between title and lines
        for (name, points), colour, dashes in zip(series.items(), _COLOURS, _DASHES, strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.45)
            axes.plot(
                steps,
                running_mean(values, max(1, len(values) // 10)),  # ours
                color=colour,
                linestyle=dashes,
                linewidth=1.8,
                marker="o" if len(points) == 1 else "",  # a line of one point shows nothing
                label=name,
            )
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8 + 14 * rows)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.3, color=_INK)
        axes.legend(
            frameon=False,
            ncols=2,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
            handlelength=2.6,
        )
        buffer = StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace(_INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # several charts share a page, so no id may repeat
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
