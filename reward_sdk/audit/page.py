"""The audit as something to look at: a heatmap, and one HTML file. Needs the extra `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reward_sdk.audit.audit import TOLERANCE, Audit, row_notes
from reward_sdk.audit.edits import EDITS
from reward_sdk.errors import ConfigError
from reward_sdk.templates import template

_VERDICTS = {"must lower": "score fell", "must not matter": "score stayed"}
# Share as it should be 0, 1/2, 1. Ours: light enough for dark text, and apart in lightness too.
_BAD, _HALF, _GOOD = (224, 122, 95), (250, 236, 196), (126, 200, 160)
_INK, _QUIET, _NONE = "#1b1f24", "#5c6570", "#eceef1"


def _colour(share: float | None) -> str:
    """From bad to good through the middle, as #rrggbb; grey without pairs."""
    if share is None:
        return _NONE
    start, end, part = (_BAD, _HALF, 2 * share) if share < 0.5 else (_HALF, _GOOD, 2 * share - 1)
    mixed = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def draw(path: Path, audit: Audit) -> None:
    """Draws the heatmap as a PNG: edits by rewards, green where the score did what it should.

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
    lines = len(audit.rows) + 2 * len(_VERDICTS) + 1.5
    figure = Figure((label + width * len(audit.columns) + 0.25, height * lines + 0.3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-label / width, len(audit.columns) + 0.25 / width), ylim=(lines + 0.4, -0.5))
    axes.axis("off")
    left = -label / width + 0.12
    title = f"Does the reward notice?  {audit.reports} reports"
    axes.text(left, 0.3, title, fontsize=12, fontweight="bold", color=_INK, va="center")
    y = 1
    for kind, verdict in _VERDICTS.items():
        heading = f"{kind.capitalize()}: how often the {verdict}"
        axes.text(left, y + 0.55, heading, fontsize=9, color=_QUIET, va="center")
        y += 1
        for x, column in enumerate(audit.columns):
            axes.text(x + 0.5, y + 0.55, column, fontsize=9, color=_INK, ha="center", va="center",
                      fontweight="bold" if x == len(audit.columns) - 1 else "normal")  # fmt: skip
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
                    Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, color=_colour(good), lw=0)
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
        path: the HTML file.
        audit: what to show.
        data: what the page calls the data.
        problems: rows of the data that were left out.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    html = template(Path(__file__).parent, "page.html.jinja").render(
        audit=audit,
        data=data,
        problems=problems,
        verdicts=_VERDICTS,
        edits=EDITS,
        tolerance=TOLERANCE["must not matter"],
        colour=_colour,
        notes=row_notes,
    )
    # a path in a message may hold what is no Unicode
    path.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
