"""The card of a prepared dataset: what it was made of, what is in it, what is not and why."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from reward_sdk.observations import OBSERVATIONS
from valor_plugin.data.datasets import DATASETS
from valor_plugin.data.drafts import LEFT_OUT
from valor_plugin.data.schema import FEATURES, SPLITS, UNSPLIT
from valor_plugin.data.views import FRONTAL

_QUANTILES = {"shortest": 0.0, "quarter": 0.25, "median": 0.5, "three quarters": 0.75, "95 %": 0.95,
              "longest": 1.0}  # fmt: skip
_COUNTS = (
    "studies", "patients", "images", "images that are not there", "first image frontal",
    "first image of unknown view", "first image of another view", "with a report",
    "reports that occur in train", "boxes", "rows merged",
)  # fmt: skip
"""What is counted of a split, in the order of the card."""
_BAR = 20


@dataclass
class _Part:
    """What is counted of one split."""

    counts: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    no_report: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    said: list[Counter[int]] = field(default_factory=lambda: [Counter() for _ in OBSERVATIONS])


class Tally:
    """Counts of entries, see `drafts.Completed`, as they pass by."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self._rejected: Counter[str] = Counter()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Counts a completed study."""
        row = entry["row"]
        part = self._parts.setdefault(row["split"] or UNSPLIT, _Part())
        part.counts["studies"] += 1
        part.counts["images"] += len(row["images"])
        part.counts["images that are not there"] += entry["absent"]
        part.counts["reports that occur in train"] += row["repeats_train"] is True
        part.counts["boxes"] += len(row["boxes"])
        part.counts["rows merged"] += entry["merged"]
        part.views.update(image["view"] or "unknown" for image in row["images"])
        part.counts[f"first image {_kind(row['view'])}"] += 1
        if row["report"] is None:
            part.no_report[entry["no_report"]] += 1
            return
        part.counts["with a report"] += 1
        part.words[len(row["report"].split())] += 1
        for counter, label in zip(part.said, entry["said"], strict=True):
            if label is not None:
                counter[label] += 1

    def reject(self, reason: str) -> None:
        """Counts a study that was rejected."""
        self._rejected[reason] += 1

    def card(
        self, made: dict[str, Any], hashes: dict[str, str], patients: Mapping[str, int]
    ) -> dict[str, Any]:
        """The card's content, as JSON has it.

        Args:
            made: what the result depends on: dataset, choices, files that were read, version.
            hashes: name of each file that was read -> its SHA-256.
            patients: split -> how many patients it has.

        Returns:
            Under "made" and "sha256" the arguments, under "python" its version; under "rejected"
            reason -> studies, under "faults" how many of them are not the user's choice, under
            "found" how many studies the tables name; under "splits" name of the file -> its counts.
        """
        total = sum(part.counts["studies"] for part in self._parts.values())
        rejected = self._rejected
        order = [name for name in (*SPLITS, UNSPLIT) if name in self._parts]
        return {
            "made": made,
            "sha256": hashes,
            "python": sys.version.split()[0],
            "found": total + rejected.total(),
            "rejected": dict(rejected.most_common()),
            "faults": sum(n for reason, n in rejected.items() if reason not in LEFT_OUT),
            "splits": {name: _content(self._parts[name], patients.get(name)) for name in order},
        }


def _kind(view: str | None) -> str:
    if view is None:
        return "of unknown view"
    return "frontal" if view in FRONTAL else "of another view"


def _content(part: _Part, patients: int | None) -> dict[str, Any]:
    counts = {**part.counts, "patients": patients or 0}
    return {
        **{key: counts[key] for key in _COUNTS if counts.get(key)},
        "views": dict(part.views.most_common()),
        "no_report": dict(part.no_report.most_common()),
        "words": {name: _quantile(part.words, share) for name, share in _QUANTILES.items()}
        if part.words
        else {},
        "labels": {
            name: {"present": said[1], "uncertain": said[-1], "absent": said[0]}
            for name, said in zip(OBSERVATIONS, part.said, strict=True)
        },
    }


def _quantile(values: Counter[int], share: float) -> int:
    """The smallest value that at least this share of the values do not exceed."""
    rank, seen = share * values.total(), 0
    for value in sorted(values):
        seen += values[value]
        if seen >= rank:
            return value
    raise ValueError("no values")


CARD = "card.json"
"""The file whose presence says that a folder is finished."""


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Writes README.md and, last, `CARD`."""
    (folder / "README.md").write_text(markdown(card), encoding="utf-8")
    part = folder / f"{CARD}.part"
    part.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    part.rename(folder / CARD)


_HF_NAMES = {"validate": "validation", UNSPLIT: "train"}


def markdown(card: dict[str, Any]) -> str:
    """The card as a Hugging Face dataset card, whose head says where the splits are and what the
    columns are."""
    splits, made = card["splits"], card["made"]
    head = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": _HF_NAMES.get(name, name), "path": f"{name}.jsonl"} for name in splits
                ],
            }
        ],
        "dataset_info": {"features": FEATURES},
    }
    choices = dict(made["choices"])
    for key in made["read"].keys() & {"splits", "keep_out"}:
        choices[key] = Path(made["read"][key][0]).name
    lines = [
        "---", yaml.safe_dump(head, sort_keys=False).rstrip(), "---", "",
        f"# {made['dataset']}, prepared", "",
        f"{DATASETS[made['dataset']]}; prepared by valor-rrg {made['version']}. The data's own "
        "terms hold for everything here. Every number is in `card.json`.", "",
        "Choices: " + ", ".join(f"{key} {value}" for key, value in choices.items() if value) + ".",
        "", *_table("", splits, _counts(splits)),
        *_section("Studies without a report", splits, "no_report"),
        *_section("Views", splits, "views"),
        *_section("Words of a report", splits, "words"),
    ]  # fmt: skip
    if card["rejected"]:
        lines += ["## Not here", "", f"Of {card['found']:,} studies; each with its id in "
                  "`rejected.jsonl`.", "", "| reason | studies |", "| --- | ---: |"]  # fmt: skip
        lines += [f"| {reason} | {count:,} |" for reason, count in card["rejected"].items()] + [""]
    lines += [
        "## What the reports say", "",
        "Share of the reports that state it, by the rule labeler; in brackets what they leave "
        "uncertain; the bar is the first column's.", "",
        f"| | {' | '.join(splits)} | |", f"| --- |{' ---: |' * len(splits)} --- |",
    ]  # fmt: skip
    for name in OBSERVATIONS:
        cells, first = [], 0.0
        for i, split in enumerate(splits.values()):
            count = split.get("with a report", 0)
            said = split["labels"][name]
            present, uncertain = (said[k] / count if count else 0 for k in ("present", "uncertain"))
            first = present if i == 0 else first
            cells.append(f"{present:.1%} ({uncertain:.1%})" if count else "")
        lines.append(f"| {name} | {' | '.join(cells)} | {'█' * round(_BAR * first)} |")
    files = {Path(made["read"][key][0]).name: digest for key, digest in card["sha256"].items()}
    files |= {f"{name}.jsonl, written": digest for name, digest in card["written"].items()}
    lines += ["", "## Files", "", "| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| {name} | `{digest}` |" for name, digest in files.items()]
    return "\n".join(lines) + "\n"


def _counts(splits: Mapping[str, dict[str, Any]]) -> list[str]:
    """The keys of plain counts, in the order in which they come up."""
    return list(
        dict.fromkeys(
            key for split in splits.values() for key, value in split.items() if type(value) is int
        )
    )


def _table(title: str, splits: Mapping[str, dict[str, Any]], keys: list[str]) -> list[str]:
    if not keys:
        return []
    lines = [f"| {title} | {' | '.join(splits)} |", f"| --- |{' ---: |' * len(splits)}"]
    for key in keys:
        cells = (f"{split[key]:,}" if key in split else "" for split in splits.values())
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return [*lines, ""]


def _section(title: str, splits: Mapping[str, dict[str, Any]], key: str) -> list[str]:
    inner = {name: split[key] for name, split in splits.items()}
    table = _table("", inner, _counts(inner))
    return [f"## {title}", "", *table] if table else []
