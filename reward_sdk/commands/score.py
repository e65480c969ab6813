"""`reward-sdk score`: a file of responses under a reward set; no row is lost or scored twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, get_args

import click
from tqdm import tqdm

from reward_sdk.commands import set_option
from reward_sdk.config import Source, read_set
from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import BadRow, Row, count_lines, read_rows
from reward_sdk.member import NO_TAGS
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import Tags
from reward_sdk.types import Sample, Status

_SHOWN = 10  # ours: lines that are told on the screen
_CHUNK = 64  # ours: rows scored and written at a time; what a stop can cost


@click.command()
@set_option
@click.option(
    "--data", required=True, type=click.Path(), help="JSONL: id, response, reference, ..."
)
@click.option("--out", required=True, type=click.Path(), help="JSONL; continued if it is there.")
@click.option("--tags", type=click.Choice(get_args(Tags)), help="Instead of the set's `tags`.")
@click.option("--step", type=click.IntRange(min=1), help="Policy step, for sets with a schedule.")
@click.option("--explain", is_flag=True, help="Say in every row what rewards read in the reports.")
def score(
    rewards: Source, data: str, out: str, tags: Tags | None, step: int | None, explain: bool
) -> None:
    """Scores the responses of a file, with every reward's part in every row.

    `reward_sdk.jsonl` describes the data. Lines that cannot be scored are named and kept apart.

    Exit codes: 0 every row scored, 1 a reward failed or lines were rejected, 2 the set or the data
    are wrong.
    """
    if tags is not None:
        rewards = read_set(rewards)[0] | {"tags": tags}
    with tqdm(total=_lines(data), desc="scoring", unit="line", disable=None) as bar:
        summaries, rejected = score_file(
            rewards, Path(data), Path(out), step=step, explain=explain,
            progress=lambda line: bar.update(line - bar.n),
            resumes=lambda rows: bar.write(f"{out} has {rows:,} rows; scoring others", sys.stderr),
        )  # fmt: skip
    heads = ("scored", "skipped", "not applicable", "failed")
    click.echo(" ".join([" " * 20, f"{'mean':>7}", *(f"{head:>7}" for head in heads)]))
    for name, summary in summaries.items():
        mean = "-" if summary.mean is None else f"{summary.mean:.3f}"
        apart = f"{summary.skipped:7} {summary.not_applicable:14}"
        counts = f"{summary.scored:7} {apart} {summary.failed:7}"
        click.echo(f"{name:20} {mean:>7} {counts}  {summary.note}".rstrip())
    for row in rejected[:_SHOWN]:
        click.echo(f"rejected: {data}, line {row.number}: {row.problem}", err=True)
    if len(rejected) > _SHOWN:
        click.echo(f"rejected: {len(rejected) - _SHOWN:,} more lines", err=True)
    click.echo(out)
    if rejected:
        click.echo(rejected_path(Path(out)))
    if rejected or any(summary.failed for summary in summaries.values()):
        sys.exit(1)


def _lines(path: str) -> int | None:
    """Lines of a file, for the bar; None if that cannot be told."""
    try:
        return count_lines(path)
    except OSError:
        return None


@dataclass(frozen=True)
class Summary:
    """What one reward, or the total, gave over a file.

    Attributes:
        mean: mean of the values; None if no row has one.
        scored: number of rows with a value.
        skipped: number of rows that the reward is left out of by the set's schedule; of the total,
            of rows without one for that alone.
        not_applicable: number of rows that the reward does not concern; of the total, of rows
            without one on which nothing failed.
        failed: number of rows that the reward failed on; of the total, of rows without one on which
            a reward failed.
        note: why the reward failed on the first of these rows, or could not explain one; for the
            total, how many rows stand on fewer rewards than the set has. "" if there is nothing to
            say.
    """

    mean: float | None
    scored: int
    skipped: int
    not_applicable: int
    failed: int
    note: str


def score_file(
    source: Source,
    data: Path,
    out: Path,
    *,
    step: int | None = None,
    explain: bool = False,
    progress: Callable[[int], object] = lambda line: None,
    resumes: Callable[[int], object] = lambda rows: None,
) -> tuple[dict[str, Summary], list[BadRow]]:
    """Scores the rows of `data` and appends one JSON object each to `out`.

    A row of `out` holds the `line` of the data, `id`, `total`, under `missing` the rewards that the
    total stands without, under `not_applicable` those of them that do not concern the row, and per
    reward `value`, `status` and `reason`. Lines that cannot be scored go to a file beside it,
    `rejected_path(out)`. If `out` is there already, from the same set, data, step and `explain`,
    the rows that it holds are not scored again; whether weights that the set names have changed is
    not looked at.

    Args:
        source: the set: a YAML file, a mapping or a list of names.
        data: JSONL file of rows, as `reward_sdk.jsonl` describes them; every row needs a
            `response`.
        out: JSONL file that the scores are appended to, made if need be.
        step: the policy step, counted from 1; needed by sets with a schedule.
        explain: whether the part of a reward that can explain the value that it gave also has
            `evidence`, a list with the fields of `reward_sdk.types.Evidence` for each finding, and
            `unexplained`, why it could not say it this time, "" if it could.
        progress: called after every chunk of rows with the number of the last line of `data` in it.
        resumes: called with the number of rows that `out` holds already, if it holds any.

    Returns:
        Reward name or "total" -> its summary over all of `out`, and the lines that were rejected.

    Raises:
        ConfigError: the set or the data cannot be read, the data have no row, the set needs a step,
            or `out` holds anything but scores of this set, data and step or is being written to by
            another process.
        ScoringError: a part failed whose policy (`on_failure`) is "raise"; what was scored before
            is in `out`.
    """
    rewards = RewardSet.from_config(source)
    if step is None and rewards.needs_step:
        raise ConfigError("the set has rewards with `every` > 1: say the policy step, --step N")
    key = _key(f"{rewards.digest} {step}{' explained' if explain else ''}", data)
    rejected: list[BadRow] = []
    rows = _usable(data, rejected)
    with _opened(out, key) as (file, done, held):
        if held:
            resumes(held)
        while chunk := list(islice(rows, _CHUNK)):
            new = [row for row in chunk if row.number > done]
            samples = [_sample(row, rewards.tags) for row in new]
            scores = rewards.score(samples, step)
            for row, sample, score in zip(new, samples, scores, strict=True):
                parts = {name: asdict(part) for name, part in score.parts.items()}
                for member in rewards.members if explain else ():
                    found = member.evidence(sample, score.parts[member.name])
                    if found is not None:
                        evidence, problem = [asdict(finding) for finding in found[0]], found[1]
                        parts[member.name] |= {"evidence": evidence, "unexplained": problem}
                line = {
                    "set": key, "line": row.number, "id": row.id, "total": score.total,
                    "missing": score.missing, "not_applicable": score.not_applicable,
                    "parts": parts,
                }  # fmt: skip
                file.write(f"{json.dumps(line)}\n".encode())
            file.flush()
            progress(chunk[-1].number)
        if not (file.tell() or rejected):
            raise ConfigError(f"{data} has no row")
        if rejected:
            text = "".join(json.dumps({"set": key} | asdict(line)) + "\n" for line in rejected)
            rejected_path(out).write_text(text, encoding="utf-8")
    return _summaries(out, rewards.names), rejected


def rejected_path(out: Path) -> Path:
    """Where the lines go that cannot be scored."""
    if not out.name:
        raise ConfigError(f"{out} is a folder: name a file")
    return out.with_name(f"{out.name}.rejected")


def _usable(data: Path, rejected: list[BadRow]) -> Iterator[Row]:
    """The rows with a response; the others are collected."""
    for row in read_rows(data):
        if isinstance(row, BadRow):
            rejected.append(row)
        elif row.response is None:
            rejected.append(
                BadRow(row.number, f"the row has no 'response' (a text){row.has}", row.id)
            )
        else:
            yield row


def _sample(row: Row, tags: Tags) -> Sample:
    return Sample(
        row.response or "", row.reference, row.image, row.id, tags, row.age, row.indication
    )


def _key(how: str, data: Path) -> str:
    """Tells apart what must not be mixed in one file of scores: how, and of what data."""
    digest = hashlib.sha256(how.encode())
    if not data.is_file():
        raise ConfigError(f"{data}: no such file, or one that can be read only once")
    with data.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    if not data.stat().st_size:
        raise ConfigError(f"{data} is empty")
    return digest.hexdigest()[:12]


_START = re.compile(rb'\{"set": "[0-9a-f]{12}", "(?:line|number)": ')


def _check_ours(path: Path) -> None:
    """ConfigError if the file may not be written to: all that ours hold begin in one way."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no regular file, as scores need one to go on: name another")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(64)
        if start and not _START.match(start):
            raise ConfigError(f"{path} is there and no file of scores: name another")


@contextmanager
def _opened(out: Path, key: str) -> Iterator[tuple[BinaryIO, int, int]]:
    """The file to append to, the last line of the data that it holds, 0 if none, and its rows.

    It is locked, and a row that broke off is cut off.
    """
    for path in (out, rejected_path(out)):
        _check_ours(path)
    with out.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another process is writing scores to it") from None
        file.seek(0)
        whole, last, rows = 0, 0, 0
        for text in file:
            if not text.endswith(b"\n"):
                break
            try:
                row = json.loads(text)
                last, made_with = row["line"], row["set"]
            except (ValueError, LookupError, TypeError):
                raise ConfigError(f"{out} is there and no file of scores: name another") from None
            if made_with != key:
                raise ConfigError(
                    f"{out} holds scores of another set, data or step, or explained otherwise: "
                    "name another file, or remove it"
                )
            whole, rows = whole + len(text), rows + 1
        file.truncate(whole)
        yield file, last, rows


def _summaries(out: Path, names: tuple[str, ...]) -> dict[str, Summary]:
    with out.open(encoding="utf-8", newline="\n") as file:
        rows = [json.loads(text) for text in file]
    summaries = {name: _summary([row["parts"][name] for row in rows]) for name in names}
    totals = [row["total"] for row in rows if row["total"] is not None]
    part = sum(bool(row["missing"]) for row in rows if row["total"] is not None)
    without = Counter(_cause(row) for row in rows if row["total"] is None)
    total = Summary(
        mean=fmean(totals) if totals else None,
        scored=len(totals),
        skipped=without["skipped"],
        not_applicable=without["not_applicable"],
        failed=without["failed"],
        note=f"{part} of them on fewer rewards than the set has" if part else "",
    )
    return summaries | {"total": total}


def _cause(row: dict[str, Any]) -> Status:
    """Why a row has no total."""
    statuses = {part["status"] for part in row["parts"].values()}
    if "failed" in statuses:
        return "failed"
    return "not_applicable" if "not_applicable" in statuses else "skipped"


def _untagged(parts: list[dict[str, Any]]) -> str:
    """That most reports were not found, for want of tags; "" if that is not so."""
    bare = sum(part["reason"] == NO_TAGS for part in parts)
    return f"{bare:,} without <report> tags: --tags optional?" if 2 * bare > len(parts) else ""


def _unexplained(parts: list[dict[str, Any]]) -> str:
    """That values could not be explained; "" if that is not so."""
    problems = [problem for part in parts if (problem := part.get("unexplained"))]
    return f"{len(problems):,} not explained: {problems[0]}" if problems else ""


def _summary(parts: list[dict[str, Any]]) -> Summary:
    values = [part["value"] for part in parts if part["value"] is not None]
    failed = [part["reason"] for part in parts if part["status"] == "failed"]
    return Summary(
        mean=fmean(values) if values else None,
        scored=len(values),
        skipped=sum(part["status"] == "skipped" for part in parts),
        not_applicable=sum(part["status"] == "not_applicable" for part in parts),
        failed=len(failed),
        note=failed[0] if failed else _unexplained(parts) or _untagged(parts),
    )
