"""The audit as something to look at: a heatmap, and one HTML file. Needs the extra `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reward_sdk.audit.audit import TOLERANCE, TOTAL, Audit, row_notes
from reward_sdk.audit.edits import EDITS
from reward_sdk.errors import ConfigError
from reward_sdk.templates import template

_VERDICTS = {"must lower": "fell", "must not matter": "stayed"}
# Ours: a tint over the page, light or dark, so that its text stays readable on it. The most is 0.6.
_WRONG, _NEITHER, _RIGHT = "#d95d39", "#808a95", "#2e9e6b"
_INK, _QUIET = "#1b1f24", "#5c6570"


def _colour(verdict: float | None) -> str:
    """Red for -1, wrong, to green for 1, right; a faint grey for 0 and without pairs. #rrggbbaa."""
    strength = abs(verdict or 0)
    if strength < 0.05:
        return f"{_NEITHER}28"
    return f"{_RIGHT if verdict and verdict > 0 else _WRONG}{round(255 * 0.6 * strength):02x}"


def draw(path: Path, audit: Audit) -> None:
    """Draws the heatmap as a PNG: edits by rewards, the total first, green where the score did what
    it should, red where it did not, grey where one reward alone may miss what the total must not.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ConfigError(
            f"the audit's picture: {error}: pip install 'valor-rrg[report]'"
        ) from error
    width, label, height = 1.35, 2.7, 0.34  # inches: a column, the edits' names, a row
    lines = len(audit.rows) + 2 * len(_VERDICTS) + 1.7
    figure = Figure((label + width * len(audit.columns) + 0.25, height * lines + 0.3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-label / width, len(audit.columns) + 0.25 / width), ylim=(lines + 0.4, -0.5))
    axes.axis("off")
    left = -label / width + 0.12
    title = f"Does the reward notice?  {audit.reports} reports"
    axes.text(left, 0.3, title, fontsize=12, fontweight="bold", color=_INK, va="center")
    legend = "Green: right. Red: wrong. Grey: one reward alone may miss it, the total may not."
    axes.text(left, 0.95, legend, fontsize=8, color=_QUIET, va="center")
    y = 1.2
    for kind, verdict in _VERDICTS.items():
        heading = f"{kind.capitalize()}: how often the score {verdict}"
        axes.text(left, y + 0.55, heading, fontsize=9, color=_QUIET, va="center")
        y += 1
        for x, column in enumerate(audit.columns):
            axes.text(x + 0.5, y + 0.55, column, fontsize=9, color=_INK, ha="center", va="center",
                      fontweight="bold" if column == TOTAL else "normal")  # fmt: skip
        axes.text(-0.08, y + 0.55, "n", fontsize=8, color=_QUIET, ha="right", va="center")
        y += 1
        for row in audit.rows:
            if EDITS[row.edit].kind != kind:
                continue
            axes.text(left, y + 0.5, row.edit, fontsize=9, color=_INK, va="center")
            axes.text(-0.08, y + 0.5, str(row.applied), fontsize=8, color=_QUIET, ha="right",
                      va="center")  # fmt: skip
            for x, column in enumerate(audit.columns):
                good, gap = row.good(column), row.cells[column].mean_gap
                axes.add_patch(
                    Rectangle(
                        (x + 0.02, y + 0.04), 0.96, 0.92, lw=0, color=_colour(row.verdict(column))
                    )
                )
                text = "–" if good is None or gap is None else f"{good:.0%}  {gap:+.3f}"
                axes.text(x + 0.5, y + 0.5, text, fontsize=8.5, color=_INK, ha="center",
                          va="center")  # fmt: skip
            y += 1
        y += 0.5  # between the blocks
    figure.savefig(path)


def write_page(path: Path, audit: Audit, data: str, problems: Sequence[str]) -> None:
    """Writes the audit as one HTML file without outside references or scripts.

    Args:
        path: the HTML file to write.
        audit: the audit to show.
        data: name of the audited data, such as their file's.
        problems: what is wrong with each row of the data that was left out.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    html = template(Path(__file__).parent, "page.html.jinja").render(
        audit=audit,
        data=data,
        problems=problems,
        verdicts=_VERDICTS,
        edits=EDITS,
        total=TOTAL,
        tolerance=TOLERANCE["must not matter"],
        colour=_colour,
        notes=row_notes,
    )
    # a path in a message may hold what is no Unicode
    path.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
