"""The evaluation as something to look at: one HTML file, and the same table for a terminal."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from markupsafe import Markup
from PIL.Image import Image

from reward_sdk.models.rule_labeler import wrong_sides
from reward_sdk.templates import template
from reward_sdk.text import extract_report, sentences
from valor_plugin.evaluation.metrics import (
    METRICS,
    Evaluation,
    FindingsComparison,
    bootstrap,
    compare_findings,
    stated_findings,
)

_COLUMNS = {
    "well_formed": "Well-formed",
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "micro_f1": "Micro-F1",
    "macro_f1": "Macro-F1",
    "similarity": "Similarity",
}
_OUTCOMES = {
    "correct": "✓ correct",
    "wrong_side": "⇄ wrong side",
    "missed": "○ missed",
    "unsupported": "✗ unsupported",
}
_LETTER = 0.6  # ours: width of an average letter, of the font's size; a little wide on purpose


@dataclass(frozen=True)
class StageRow:
    """One policy in the table.

    Attributes:
        stage: name of the training stage, such as "SFT" or "Stage 1".
        decoding: how the policy's reports were generated, such as "greedy".
        evaluation: the policy's results on held-out studies.
    """

    stage: str
    decoding: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Example:
    """One X-ray with what the radiologist and every stage wrote about it.

    Attributes:
        image: the X-ray, any mode that PNG can hold.
        reference: the radiologist's report, without tags.
        responses: stage -> generated text with its tags, in the order of the stages.
        boxes: name of a box -> (x0, y0, x1, y1) in pixels of the image, over which it is drawn.
    """

    image: Image
    reference: str
    responses: Mapping[str, str]
    boxes: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cell:
    text: str
    best: bool


@dataclass(frozen=True)
class _Box:
    """A box with its name, which starts at `label` so that it ends within the image."""

    name: str
    x: float
    y: float
    width: float
    height: float
    label: float


@dataclass(frozen=True)
class _Report:
    stage: str
    text: str
    well_formed: bool
    findings: FindingsComparison
    reference: str

    def chips(self) -> list[tuple[str, str]]:
        """(finding, outcome) of everything that the report or its reference states."""
        named = {outcome: getattr(self.findings, outcome) for outcome in _OUTCOMES}
        named["correct"] = [n for n in named["correct"] if n not in named["wrong_side"]]
        return [(name, outcome) for outcome, names in named.items() for name in names]

    def marked(self) -> list[tuple[str, str]]:
        """(sentence, "correct" | "unsupported" | "") of a well-formed report, in order.

        A sentence that states findings is correct if the reference states all of them, none on
        another side.
        """
        parts, supported = sentences(self.text), set(self.findings.correct)
        marked = []
        for part, names in zip(parts, stated_findings(parts), strict=True):
            right = supported.issuperset(names) and not wrong_sides(part, self.reference)
            marked.append((part, ("correct" if right else "unsupported") if names else ""))
        return marked


def table_text(rows: Sequence[StageRow]) -> str:
    """The table of the page as aligned plain text; a star marks the best value of a column."""
    head = ["Stage", "n", "Decoding", *_COLUMNS.values()]
    lines = [head]
    for row, cells in zip(rows, _cells(rows), strict=True):
        values = [cell.text + ("*" if cell.best else " ") for cell in cells]
        lines.append([row.stage, str(len(row.evaluation.studies)), row.decoding, *values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = {0, 2}  # words start at the left, numbers end at the right
    return "\n".join(
        "  ".join(
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_page(
    path: Path,
    title: str,
    notice: str,
    rows: Sequence[StageRow],
    curves: Sequence[tuple[str, str]],
    examples: Sequence[Example],
    links: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes the whole report page: one file without outside references or scripts.

    Args:
        path: the HTML file; its folder is made if need be.
        title: heading of the page.
        notice: what a reader must know first, such as where the images come from.
        rows: the policies of the table, one per stage, in training order.
        curves: (caption, SVG) of each chart, the SVG as `curve_svg` makes it; it is put in
            unescaped.
        examples: X-rays to show with their reports.
        links: (text, address relative to the page) of each other page that there is to read.
    """
    html = template(Path(__file__).parent, "page.html.jinja").render(
        title=title,
        notice=notice,
        columns=_COLUMNS.values(),
        rows=[
            (row, zip(_COLUMNS.values(), cells, _intervals(row.evaluation), strict=True))
            for row, cells in zip(rows, _cells(rows), strict=True)
        ],
        curves=[(caption, Markup(svg)) for caption, svg in curves],
        examples=[
            (
                example.image,
                _png_uri(example.image),
                _boxes(example),
                example.reference,
                _reports(example),
            )
            for example in examples
        ],
        outcomes=_OUTCOMES,
        label_size=_label_size,
        links=links,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def _cells(rows: Sequence[StageRow]) -> list[list[_Cell]]:
    """The metrics of every row; the best as printed are marked, unless all rows are alike."""
    columns = []
    for metric in METRICS:
        values = [row.evaluation.metrics[metric] for row in rows]
        texts = ["-" if value is None else f"{value:.3f}" for value in values]
        known = [float(text) for text in texts if text != "-"]
        telling = len(set(known)) > 1
        columns.append([_Cell(t, telling and t != "-" and float(t) == max(known)) for t in texts])
    return [list(cells) for cells in zip(*columns, strict=True)]


def _intervals(evaluation: Evaluation) -> list[str]:
    found = [bootstrap(evaluation, metric) for metric in METRICS]
    return ["" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}" for ends in found]


def _boxes(example: Example) -> list[_Box]:
    size = _label_size(example.image)
    boxes = []
    for name, (x0, y0, x1, y1) in example.boxes.items():
        latest = example.image.width - _LETTER * size * len(name)
        boxes.append(_Box(name, x0, y0, x1 - x0, y1 - y0, max(0.0, min(x0, latest))))
    return boxes


def _label_size(image: Image) -> float:
    """Of the letters in an image, in its pixels."""
    return image.width / 22


def _reports(example: Example) -> list[_Report]:
    """Every stage's report with its findings; a malformed response is shown as it came."""
    reports = [extract_report(response) for response in example.responses.values()]
    findings = compare_findings(
        [report or "" for report in reports], [example.reference] * len(reports)
    )
    return [
        _Report(stage, report or response, report is not None, found, example.reference)
        for (stage, response), report, found in zip(
            example.responses.items(), reports, findings, strict=True
        )
    ]


def _png_uri(image: Image) -> str:
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
