"""The audit as something to look at: a heatmap, and one HTML file. Needs the extra `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reward_sdk.audit.audit import TOTAL, Audit, EditResult, case_notes, passed, row_notes
from reward_sdk.audit.cases import CaseResult
from reward_sdk.audit.edits import EDITS, TOLERANCE
from reward_sdk.errors import ConfigError
from reward_sdk.templates import template

_VERDICTS = {"must lower": "fell", "must not matter": "stayed"}
_ABOUT = {
    "discrimination": "Harmful edits noticed, 0 to 1: the mean over the edits that must lower.",
    "robustness": "Harmless rewording tolerated, 0 to 1: the mean over those that must not matter.",
    "cases passed": "Ranking cases whose candidates rank as expected.",
}
# Ours: a tint over the page, light or dark, so that its text stays readable on it. The most is 0.6.
_WRONG, _NEITHER, _RIGHT = "#d95d39", "#808a95", "#2e9e6b"
_INK, _QUIET = "#1b1f24", "#5c6570"


def _colour(verdict: float | None) -> str:
    """Red for -1, wrong, to green for 1, right; a faint grey for 0 and without pairs. #rrggbbaa."""
    strength = abs(verdict or 0)
    if strength < 0.05:
        return f"{_NEITHER}28"
    return f"{_RIGHT if verdict and verdict > 0 else _WRONG}{round(255 * 0.6 * strength):02x}"


def _counts(audit: Audit) -> str:
    """What was scored: "300 reports and 15 ranking cases"."""
    numbers = ((audit.reports, "report"), (len(audit.cases), "ranking case"))
    return " and ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in numbers if n)


def _ranked(results: Sequence[CaseResult], column: str) -> float:
    """From -1, no case passed, to 1, all did; cases without a score are between."""
    found = [result.rankings[column].passed for result in results]
    return (found.count(True) - found.count(False)) / len(found)


_Line = tuple[str, str, list[tuple[str, float | None]]]


def _blocks(audit: Audit) -> list[tuple[str, list[_Line]]]:
    """The picture's blocks: heading and rows; of a row its name, n, text and verdict by column."""
    summary: list[_Line] = [
        (name, "", [(text, None) for text in texts]) for name, texts in audit.summary.items()
    ]
    blocks = [("Summary", summary)]
    for kind, verdict in _VERDICTS.items():
        rows: list[_Line] = []
        for row in audit.rows:
            if EDITS[row.edit].kind == kind:
                cells = [_cell(row, column) for column in audit.columns]
                rows.append((row.edit, str(row.applied), cells))
        if rows:
            blocks.append((f"{kind.capitalize()}: how often the score {verdict}", rows))
    cases: list[_Line] = [
        (name, str(len(its)), [(passed(its, c), _ranked(its, c)) for c in audit.columns])
        for name, its in audit.categories.items()
    ]
    if cases:
        blocks.append(("Ranking cases: how many were ranked as expected", cases))
    return blocks


def _cell(row: EditResult, column: str) -> tuple[str, float | None]:
    good, gap = row.good(column), row.cells[column].mean_gap
    text = "–" if good is None or gap is None else f"{good:.0%}  {gap:+.3f}"
    return text, row.verdict(column)


def draw(path: Path, audit: Audit) -> None:
    """Draws the heatmap as a PNG: edits and ranking cases by rewards, the total first, green where
    the score did what it should, red where it did not, grey where one reward alone may miss what
    the total must not.

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
    blocks = _blocks(audit)
    width, label, height = 1.35, 2.7, 0.34  # inches: a column, the rows' names, a row
    lines = sum(len(rows) + 2.5 for _, rows in blocks) + 0.7
    figure = Figure((label + width * len(audit.columns) + 0.25, height * lines + 0.3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-label / width, len(audit.columns) + 0.25 / width), ylim=(lines + 0.4, -0.5))
    axes.axis("off")
    left = -label / width + 0.12
    title = f"Does the reward notice?  {_counts(audit)}"
    axes.text(left, 0.3, title, fontsize=12, fontweight="bold", color=_INK, va="center")
    legend = "Green: right. Red: wrong. Grey: one reward alone may miss it, the total may not."
    axes.text(left, 0.95, legend, fontsize=8, color=_QUIET, va="center")
    y = 1.2
    for heading, rows in blocks:
        axes.text(left, y + 0.55, heading, fontsize=9, color=_QUIET, va="center")
        y += 1
        for x, column in enumerate(audit.columns):
            axes.text(x + 0.5, y + 0.55, column, fontsize=9, color=_INK, ha="center", va="center",
                      fontweight="bold" if column == TOTAL else "normal")  # fmt: skip
        over_n = "n" if any(n for _, n, _ in rows) else ""
        axes.text(-0.08, y + 0.55, over_n, fontsize=8, color=_QUIET, ha="right", va="center")
        y += 1
        for name, n, cells in rows:
            axes.text(left, y + 0.5, name, fontsize=9, color=_INK, va="center")
            axes.text(-0.08, y + 0.5, n, fontsize=8, color=_QUIET, ha="right", va="center")
            for x, (text, verdict) in enumerate(cells):
                axes.add_patch(
                    Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, lw=0, color=_colour(verdict))
                )
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
        data: name of what was audited, such as that of its files.
        problems: what is wrong with each row of the data that was left out.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    html = template(Path(__file__).parent, "page.html.jinja").render(
        audit=audit,
        counts=_counts(audit),
        data=data,
        problems=problems,
        verdicts=_VERDICTS,
        edits=EDITS,
        total=TOTAL,
        tolerance=TOLERANCE["must not matter"],
        colour=_colour,
        ranked=_ranked,
        passed=passed,
        about=_ABOUT,
        notes=row_notes,
        case_notes=case_notes,
    )
    # a path in a message may hold what is no Unicode
    path.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
