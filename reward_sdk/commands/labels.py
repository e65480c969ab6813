"""`reward-sdk labels`: CheXpert labels of reports, and how well a labeler agrees with gold."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from reward_sdk.errors import ConfigError, nearest, one_line
from reward_sdk.jsonl import BadRow, count_lines, read_rows, study_key
from reward_sdk.metrics import Agreement, label_agreement
from reward_sdk.models import Labeler
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import (
    FINDINGS,
    OBSERVATIONS,
    RANK,
    Labels,
    Uncertain,
    label_of,
    no_finding,
)

_SHOWN = 10  # ours: lines that are told on the screen
_CHUNK = 256  # ours: reports labelled at a time


@click.command()
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, report.")
@click.option("--gold", type=click.Path(), help="CSV of labels to compare with; may be .gz.")
@click.option(
    "--labeler", type=click.Choice(("rules", "chexbert")), default="rules", show_default=True
)
@click.option(
    "--uncertain",
    type=click.Choice(get_args(Uncertain)),
    default="positive",
    show_default=True,
    help="What uncertain labels count as in the comparison, on both sides.",
)
@click.option("--out", type=click.Path(), help="The labels: a new file, .jsonl or .csv.")
def labels(
    data: str, gold: str | None, labeler: str, uncertain: Uncertain, out: str | None
) -> None:
    """Labels reports with the 14 CheXpert observations, and compares with gold labels.

    The gold is a CSV as MIMIC-CXR-JPG has it: study_id and a column for each observation, with 1,
    0, -1 (uncertain) or nothing in it; Open-i's gold is read, too. Studies are met by their id,
    with or without MIMIC's leading s. Without gold: how often each label was given.

    Exit codes: 0 every line was read, 1 lines were left out, 2 the data or the gold are wrong.
    """
    theirs = None if gold is None else read_gold(gold)
    target = None if out is None else _new_file(out)
    label = _labeler(labeler)
    with tqdm(total=count_lines(data), desc="labelling", unit="line", disable=None) as bar:
        ours, problems = label_studies(data, label, lambda line: bar.update(line - bar.n))
    for row in problems[:_SHOWN]:
        click.echo(f"left out: {data}, line {row.number}: {row.problem}", err=True)
    if len(problems) > _SHOWN:
        click.echo(f"left out: {len(problems) - _SHOWN:,} more lines", err=True)
    labelled = {study: given for study, given in ours.items() if given is not None}
    click.echo(
        f"{data}: {len(labelled):,} of {len(ours):,} studies have a report; labeler: {labeler}"
    )
    if target is not None:
        _write(target, labelled)
        click.echo(out)
    for line in (
        _prevalence(labelled)
        if theirs is None
        else _comparison(ours, theirs, uncertain, data, str(gold))
    ):
        click.echo(line)
    if problems:
        sys.exit(1)


def _labeler(name: str) -> Labeler:
    if name == "rules":
        return label_reports
    from reward_sdk.models.chexbert import load_chexbert

    return load_chexbert()


def _new_file(out: str) -> Path:
    """Where labels may be written; ConfigError for what would be lost or cannot be made."""
    path = Path(out)
    if path.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"{out}: labels are written as .jsonl or .csv: name such a file")
    if path.exists():
        raise ConfigError(f"{out} is there: name another file, or remove it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no such folder")
    return path


def label_studies(
    data: str | Path, labeler: Labeler, progress: Callable[[int], object] = lambda line: None
) -> tuple[dict[str, Labels | None], list[BadRow]]:
    """Labels the reports of a studies file.

    Args:
        data: JSONL file of rows, as `reward_sdk.jsonl` describes them.
        labeler: gives the labels.
        progress: called after every chunk of rows with the number of the last line in it.

    Returns:
        Id -> labels, None for a study without a report, in the order of the file; and the lines
        that are no rows.

    Raises:
        ConfigError: the file cannot be read, has no row, or has a study twice.
    """
    found: dict[str, Labels | None] = {}
    lines: dict[str, int] = {}
    problems = []
    rows = read_rows(data)
    while chunk := list(islice(rows, _CHUNK)):
        texts = {}
        for row in chunk:
            if isinstance(row, BadRow):
                problems.append(row)
                continue
            _note_line(lines, study_key(row.id), row.number, data)
            found[row.id] = None
            if row.reference is not None:
                texts[row.id] = row.reference
        found.update(zip(texts, labeler(list(texts.values())), strict=True))
        progress(chunk[-1].number)
    if not found:
        raise ConfigError(f"{data} has no row" + (f": {problems[0].problem}" if problems else ""))
    return found, problems


def _note_line(lines: dict[str, int], study: str, number: int, path: str | Path) -> None:
    """Notes the line of a study; ConfigError if it has one already."""
    if lines.setdefault(study, number) != number:
        raise ConfigError(
            f"{path}, line {number}: the same study as in line {lines[study]}: keep one of them"
        )


def _write(path: Path, labelled: Mapping[str, Labels]) -> None:
    """Writes JSONL with `id` and `labels`, or a CSV in the form of MIMIC-CXR-JPG's."""
    with path.open("x", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            rows = ({"id": study, "labels": given} for study, given in labelled.items())
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
            return
        table = csv.DictWriter(file, ["study_id", *sorted(OBSERVATIONS)], lineterminator="\n")
        table.writeheader()
        table.writerows({"study_id": study, **given} for study, given in labelled.items())


def _prevalence(labelled: Mapping[str, Labels]) -> Iterator[str]:
    """The table of how often each label was given."""
    yield f"{'':26} {'positive':>16} {'negative':>9} {'uncertain':>9} {'blank':>9}"
    for name in OBSERVATIONS:
        counts = Counter(given[name] for given in labelled.values())
        share = f"{counts[1] / max(len(labelled), 1):7.1%}"
        others = f"{counts[0]:9,} {counts[-1]:9,} {counts[None]:9,}"
        yield f"{name:26} {counts[1]:8,} {share} {others}"


@dataclass(frozen=True)
class Gold:
    """Labels to compare with.

    Attributes:
        labels: study, as `study_key` calls it -> labels, which have every one of `observations`.
        observations: the observations that are labelled, in the order of `OBSERVATIONS`.
        notes: what was left out or decided while reading, for people.
    """

    labels: dict[str, Labels]
    observations: tuple[str, ...]
    notes: tuple[str, ...]


_IDS = ("study id", "filename")  # MIMIC's, Open-i's
_COLUMNS = {name.lower(): name for name in OBSERVATIONS} | {
    "airspace opacity": "Lung Opacity",  # in MIMIC's 687 studies
    "effusion": "Pleural Effusion",  # this and those below in Open-i's gold
    "mass": "Lung Lesion",
    "nodule": "Lung Lesion",
    "pleural thickening": "Pleural Other",
}
_NO_OBSERVATIONS = ("infiltration", "emphysema", "fibrosis", "hernia", "normal")  # Open-i's


def read_gold(path: str | Path) -> Gold:
    """Reads a table of labels.

    * MIMIC-CXR-JPG's 687 studies that radiologists labelled, with "Airspace Opacity" for Lung
      Opacity and without patients; its `chexpert` and `negbio` tables; Open-i's gold of 14 findings
      (NegBio). Case and underscores in names of columns make no difference.
    * Of several columns of one observation (Mass, Nodule) the strongest label counts.
    * "No Finding" follows from the other 13 if the file has all of them, but not itself.
    * In a file without any empty or uncertain cell 0 may mean not mentioned, and is read as that.

    Args:
        path: the CSV, UTF-8; gzipped if it is named .gz.

    Raises:
        ConfigError: the file is no such table, a cell is none of 1, 0, -1 and empty, a study is
            there twice, or there is none. Says which line and column, and repeats no cell.
        OSError: as `open` raises it.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            return _gold(path, file)
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
        raise ConfigError(f"{path}: no CSV in UTF-8: {one_line(error)}: get it anew") from None


def _gold(path: Path, file: Iterable[str]) -> Gold:
    rows = csv.reader(file)
    header = next(rows, [])
    columns = [" ".join(name.lower().replace("_", " ").split()) for name in header]
    study = next((i for i, column in enumerate(columns) if column in _IDS), None)
    if study is None:
        raise ConfigError(f"{path} has no column study_id (nor filename, as Open-i's gold has)")
    observed = {i: _COLUMNS[column] for i, column in enumerate(columns) if column in _COLUMNS}
    notes = [
        f"column {name!r} is left out, for no observation is called so: "
        f"{nearest(name, OBSERVATIONS)}"
        for name, column in zip(header, columns, strict=True)
        if column not in (*_IDS, "subject id", *_COLUMNS, *_NO_OBSERVATIONS)
    ]
    if others := [n for n, c in zip(header, columns, strict=True) if c in _NO_OBSERVATIONS]:
        notes.append(f"left out, for CheXpert's 14 do not have them: {', '.join(others)}")
    if not observed:
        raise ConfigError(f"{path} has no column of an observation: {', '.join(OBSERVATIONS)}")
    table: dict[str, dict[str, int | None]] = {}
    lines: dict[str, int] = {}
    for row in filter(None, rows):
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(header):
            raise ConfigError(f"{where}: {len(row)} cells, where {len(header)} have a name")
        if not (key := study_key(row[study])):
            raise ConfigError(f"{where}: no {header[study]}")
        _note_line(lines, key, rows.line_num, path)
        table[key] = dict.fromkeys(name for name in OBSERVATIONS if name in observed.values())
        for i, name in observed.items():
            try:
                label = label_of(row[i])
            except ValueError as error:
                raise ConfigError(f"{where}, column {header[i]!r}: {error}") from None
            table[key][name] = max(table[key][name], label, key=RANK.__getitem__)
    if not table:
        raise ConfigError(f"{path} has no study")
    if all(label in (0, 1) for given in table.values() for label in given.values()):
        table = {k: {name: label or None for name, label in v.items()} for k, v in table.items()}
        notes.append("no cell is empty: 0 may mean not mentioned, so negatives are not compared")
    names = [name for name in OBSERVATIONS if name in observed.values()]
    if names == list(FINDINGS):
        table = {k: {**given, "No Finding": no_finding(given)} for k, given in table.items()}
        names.append("No Finding")
        notes.append("there is no column No Finding: it is where no other but devices is 1 or -1")
    return Gold({**table}, tuple(names), tuple(notes))


def _comparison(
    ours: Mapping[str, Labels | None], gold: Gold, uncertain: Uncertain, data: str, path: str
) -> Iterator[str]:
    """The table of agreement; ConfigError if no study is in both."""
    found = {study_key(study): given for study, given in ours.items()}
    both = [key for key in gold.labels if key in found]
    if not both:
        there, here = (_form(next(iter(studies))) for studies in (gold.labels, ours))
        raise ConfigError(
            f"no study of {path} is in {data}: ids there are of the form {there}, here {here}"
        )
    pairs = [(given, gold.labels[key]) for key in both if (given := found[key]) is not None]
    if not pairs:
        raise ConfigError(f"none of the {len(both):,} studies of {path} has a report in {data}")
    yield (
        f"{path}: {len(pairs):,} of {len(gold.labels):,} studies compared; "
        f"not in {data}: {len(gold.labels) - len(both):,}; without a report there: "
        f"{len(both) - len(pairs):,}; in {data} alone: {len(found) - len(both):,}"
    )
    yield from (f"gold: {note}" for note in gold.notes)
    if missing := [name for name in OBSERVATIONS if name not in gold.observations]:
        yield f"gold: not labelled: {', '.join(missing)}"
    rule = {"positive": "f1chexbert's and RadEval's rule", "negative": "LLaVA-Rad's rule rrg"}
    yield (
        f"uncertain counts as {uncertain} on both sides ({rule[uncertain]}); "
        "95 % intervals are over the choice of studies"
    )
    yield f"{'':26} {'gold':^23} {'positives':^39} {'negatives':>9}"
    heads = f"{1:>7} {0:>7} {-1:>7} {'precision':>9} {'recall':>7} {'F1':>6}  {'95 %':^13}"
    yield f"{'':26} {heads} {'F1':>9}"
    agreement = label_agreement(
        [pair[0] for pair in pairs], [pair[1] for pair in pairs], gold.observations, uncertain
    )
    for name, measured in agreement.items():
        yield f"{name:26} {_row(measured)}"


def _row(measured: Agreement) -> str:
    counts = f"{measured.positive:7,} {measured.negative:7,} {measured.uncertain:7,}"
    precision, recall, f1, negative = (
        "-" if value is None else f"{value:.3f}"
        for value in (measured.precision, measured.recall, measured.f1, measured.negative_f1)
    )
    ends = "-" if measured.interval is None else "[{:.3f}, {:.3f}]".format(*measured.interval)
    return f"{counts} {precision:>9} {recall:>7} {f1:>6} {ends:>14} {negative:>9}"


def _form(study: str) -> str:
    """The form of an id, which shows none: "s + 8 digits"."""
    parts = re.findall(r"\d+|[^\W\d_]+|[\W_]", study)[:6]
    return " + ".join(
        f"{len(part)} {'digits' if part.isdigit() else 'letters'}"
        if part.isdigit() or len(part) > 1
        else part
        for part in parts
    )
