"""How often does a reward set notice that a report was spoiled?

A reward is worth what it still says when a policy games it. `audit` scores reports, scores them
again after each edit of `reward_sdk.audit.edits`, and counts how often the score fell (edits that
must lower) or stayed (edits that must not matter). A single reward need not notice everything;
what the set's total does not notice, a policy is free to do. Two numbers sum it up, with the names
of ReEvalMed (arXiv 2606.18797): discrimination, harmful edits noticed, and robustness, harmless
rewording tolerated. Ranking cases (`reward_sdk.audit.cases`) can be scored beside the edits.

The data are rows as `reward_sdk.jsonl` describes them, each with a reference. Without a response
the reference itself is judged, which is the stricter audit, because an edit may mend a response
that was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from reward_sdk.audit.cases import CaseResult, RankingCase, rank
from reward_sdk.audit.edits import EDITS, TOLERANCE, Kind
from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import BadRow, Row, read_rows
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Outcome, Sample, Score

TOTAL = "total"  # the column of the set's total
_CHUNK = 256  # ours: samples scored at a time

Chunk = Sequence[Sample]


@dataclass(frozen=True)
class Cell:
    """What one reward, or the total, made of one edit.

    Attributes:
        n: number of pairs of report and edited report that the shares and the mean are taken over.
        share_below: share of the pairs in which the edited report scored lower, 0 to 1; None if n
            is 0.
        share_equal: share of the pairs in which the edited report scored the same, within
            `TOLERANCE` of the edit's kind, 0 to 1; None if n is 0.
        share_above: share of the pairs in which the edited report scored higher, 0 to 1; None if n
            is 0.
        mean_gap: mean over the pairs of the edited report's score minus the original's; None if n
            is 0.
        at_bound: number of pairs left out because the original has the lowest score already and
            cannot fall; 0 for edits that must not matter.
        unscored: number of pairs left out because to one side the reward did not apply, or it
            failed there.
        reason: why the first of the unscored pairs has no score, and which of the two it is; "" if
            there is none.
    """

    n: int
    share_below: float | None
    share_equal: float | None
    share_above: float | None
    mean_gap: float | None
    at_bound: int
    unscored: int
    reason: str


@dataclass(frozen=True)
class EditResult:
    """What every reward, and the total, made of one edit.

    Attributes:
        edit: name of the edit, a key of `EDITS`.
        applied: number of reports that the edit applied to.
        cells: reward name or `TOTAL` -> what that score made of the edit.
    """

    edit: str
    applied: int
    cells: dict[str, Cell]

    def good(self, column: str) -> float | None:
        """Share of pairs in which the score did what it should, 0 to 1; None without pairs."""
        cell = self.cells[column]
        return cell.share_below if EDITS[self.edit].kind == "must lower" else cell.share_equal

    def verdict(self, column: str) -> float | None:
        """How right the score was, from -1 (wrong in every pair) to 1 (right in every pair); None
        without pairs. A single reward need not notice everything: where it stays instead of
        falling, it is neither right nor wrong. The total is wrong then."""
        good, above = self.good(column), self.cells[column].share_above
        if good is None or above is None:
            return None
        may_miss = column != TOTAL and EDITS[self.edit].kind == "must lower"
        return good - (above if may_miss else 1 - good)


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        reports: number of original reports.
        seed: the seed that the edits were made with.
        columns: `TOTAL`, then the names of the set's rewards.
        rows: the result of every edit, in the order of `EDITS`; that of an edit which applied
            nowhere is among them. Empty without reports.
        cases: the result of every ranking case, in their order.
    """

    reports: int
    seed: int
    columns: tuple[str, ...]
    rows: tuple[EditResult, ...]
    cases: tuple[CaseResult, ...]

    def discrimination(self, column: str) -> float | None:
        """How often harmful edits are noticed: the share of pairs whose score fell, averaged over
        the edits that must lower, 0 to 1. Every edit weighs the same; those without pairs are left
        out. None if none has any."""
        return self._mean_good("must lower", column)

    def robustness(self, column: str) -> float | None:
        """How often harmless rewording is tolerated: the share of pairs whose score stayed,
        averaged over the edits that must not matter, 0 to 1. Every edit weighs the same; those
        without pairs are left out. None if none has any."""
        return self._mean_good("must not matter", column)

    def _mean_good(self, kind: Kind, column: str) -> float | None:
        good = [row.good(column) for row in self.rows if EDITS[row.edit].kind == kind]
        shares = [share for share in good if share is not None]
        return fmean(shares) if shares else None

    @property
    def summary(self) -> dict[str, list[str]]:
        """What sums it up, as tables have it: name -> a text for every column."""
        numbers = {"discrimination": self.discrimination, "robustness": self.robustness}
        found = {
            name: [_share(number(column)) for column in self.columns]
            for name, number in numbers.items()
            if self.rows
        }
        if self.cases:
            found["cases passed"] = [passed(self.cases, column) for column in self.columns]
        return found

    @property
    def categories(self) -> dict[str, list[CaseResult]]:
        """The results of the ranking cases by the category of the case."""
        found: dict[str, list[CaseResult]] = {}
        for result in self.cases:
            found.setdefault(result.case.category, []).append(result)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON holds it: what sums it up by column, with kind and description of
        every edit, and with every case's scores."""
        return {
            "reports": self.reports,
            "seed": self.seed,
            "columns": self.columns,
            "summary": {column: self._numbers(column) for column in self.columns},
            "rows": [
                asdict(row)
                | {"kind": edit.kind, "about": edit.about, "tolerance": TOLERANCE[edit.kind]}
                for row in self.rows
                for edit in (EDITS[row.edit],)
            ],
            "cases": [
                {
                    "id": result.case.id,
                    "category": result.case.category,
                    "description": result.case.description,
                    "expected": [str(expected) for expected in result.case.expected],
                    "rankings": {
                        column: asdict(ranking) for column, ranking in result.rankings.items()
                    },
                }
                for result in self.cases
            ],
        }

    def _numbers(self, column: str) -> dict[str, float | None]:
        passed = [result.rankings[column].passed for result in self.cases]
        return {
            "discrimination": self.discrimination(column),
            "robustness": self.robustness(column),
            "cases": len(passed),
            "cases_passed": passed.count(True),
            "cases_unscored": passed.count(None),
        }

    def table(self) -> str:
        """Blocks of text: for either kind of edit the good share and the mean gap of every column;
        the ranking cases that passed, and those that failed with their scores; what could not be
        scored, and why; what sums it up."""
        width = max(map(len, (*EDITS, *self.categories)))
        widths = [max(12, len(column)) for column in self.columns]

        def line(label: str, n: object, cells: Iterable[str], notes: str = "") -> str:
            row = "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
            return f"{label:{width}}  {n:>5}{row}  {notes}".rstrip()

        lines = []
        if self.rows:
            lines.append(f"{self.reports} reports. Share as it should be, mean gap.")
        for kind, verdict in (("must lower", "fell"), ("must not matter", "stayed")):
            rows = [row for row in self.rows if EDITS[row.edit].kind == kind]
            if rows:
                lines += ["", line(f"{kind} ({verdict})", "n", self.columns)]
            for row in rows:
                cells = (self._cell(row, column) for column in self.columns)
                lines.append(line(row.edit, row.applied, cells, row_notes(row)))
        if self.cases:
            lines += ["", line("ranking cases (passed)", "n", self.columns)]
            for category, results in self.categories.items():
                cells = (passed(results, column) for column in self.columns)
                lines.append(line(category, len(results), cells, case_notes(results)))
            lines += self._failed()
        for column in self.columns:
            cells = [row.cells[column] for row in self.rows if row.cells[column].unscored]
            rankings = [result.rankings[column] for result in self.cases]
            unscored = [*cells, *(ranking for ranking in rankings if ranking.passed is None)]
            if unscored:
                what = "pairs" if cells else "cases"
                lines += ["", f"{column}: the first cause of unscored {what}: {unscored[0].reason}"]
        lines += ["", line("summary", "", self.columns)]
        lines += [line(name, "", cells) for name, cells in self.summary.items()]
        return "\n".join(lines).lstrip("\n")

    def _failed(self) -> list[str]:
        """The cases that failed, each with the scores of the columns that it failed in."""
        lines = []
        for result in self.cases:
            case = result.case
            failed = {
                c: ranking for c, ranking in result.rankings.items() if ranking.passed is False
            }
            if failed:
                lines += ["", f"{case.id} failed: {', '.join(map(str, case.expected))}"]
            for column, ranking in failed.items():
                scores = "  ".join(f"{name} {value:.4f}" for name, value in ranking.scores.items())
                lines.append(f"  {column:>12}  {scores}")
        return lines

    @staticmethod
    def _cell(row: EditResult, column: str) -> str:
        good, gap = row.good(column), row.cells[column].mean_gap
        return "-" if good is None or gap is None else f"{good:4.0%} {gap:+7.3f}"


def passed(results: Sequence[CaseResult], column: str) -> str:
    """How many of these cases passed, such as "3 of 5"; "-" if the column scored none."""
    found = [result.rankings[column].passed for result in results]
    return f"{found.count(True)} of {len(found)}" if any(p is not None for p in found) else "-"


def case_notes(results: Sequence[CaseResult]) -> str:
    """How many of these cases could not be scored, by column; "" if all could."""
    columns = results[0].rankings
    counts = {c: sum(r.rankings[c].passed is None for r in results) for c in columns}
    return "; ".join(f"{column}: {n} unscored" for column, n in counts.items() if n)


def row_notes(row: EditResult) -> str:
    """How many pairs of an edit were left out, by column and cause; "" if none was."""
    notes = []
    for column, cell in row.cells.items():
        causes = ((cell.unscored, "unscored"), (cell.at_bound, "at the lower bound"))
        if counts := [f"{n} {cause}" for n, cause in causes if n]:
            notes.append(f"{column}: {', '.join(counts)}")
    return "; ".join(notes)


def audit(
    rewards: RewardSet,
    samples: Sequence[Sample],
    seed: int = 0,
    progress: Callable[[Sequence[Chunk]], Iterable[Chunk]] = lambda chunks: chunks,
    cases: Sequence[RankingCase] = (),
) -> Audit:
    """Scores every sample as it is and after every edit that applies to it, and every candidate of
    the ranking cases.

    Args:
        rewards: the set to audit, of whose schedule nothing is left: every reward counts.
        samples: samples with a well-formed report and a reference each; their order does not
            matter.
        seed: equal seeds give equal edits.
        progress: gets the list of chunks of samples to be scored and yields them one by one, such
            as `tqdm`.
        cases: ranking cases; with them there need not be any samples.

    Raises:
        ConfigError: there is neither a sample nor a case, or a sample has no report or no
            reference.
        ScoringError: a part failed whose policy (`on_failure`) is "raise".
    """
    if not samples and not cases:
        raise ConfigError("an audit needs at least one report or ranking case")
    for sample in samples:
        if sample.report is None or sample.reference is None:
            raise ConfigError(f"sample {sample.id!r}: an audit needs its report and its reference")
    others = sorted(samples, key=lambda s: (s.id, s.reference or "", s.response))
    pairs = {
        name: [(i, new) for i, s in enumerate(samples) if (new := edit(s, others, seed))]
        for name, edit in EDITS.items()
        if samples
    }
    everything = [
        *samples,
        *(new for edited in pairs.values() for _, new in edited),
        *(candidate for case in cases for candidate in case.candidates.values()),
    ]
    chunks = [everything[i : i + _CHUNK] for i in range(0, len(everything), _CHUNK)]
    unscheduled = rewards.without_schedule()
    scored = iter(
        {**score.parts, TOTAL: _total(score)}
        for chunk in progress(chunks)
        for score in unscheduled.score(chunk)
    )
    originals = list(islice(scored, len(samples)))
    bounds = {TOTAL: rewards.bounds, **rewards.bounds_by_name}
    rows = []
    for name, edited in pairs.items():
        outcomes = [(originals[i], next(scored)) for i, _ in edited]
        cells = {
            column: _cell(
                [(before[column], after[column]) for before, after in outcomes],
                EDITS[name].kind,
                low,
            )
            for column, (low, _) in bounds.items()
        }
        rows.append(EditResult(name, len(edited), cells))
    results = []
    for case in cases:
        outcomes = {name: next(scored) for name in case.candidates}
        rankings = {
            column: rank(case, {name: parts[column] for name, parts in outcomes.items()})
            for column in bounds
        }
        results.append(CaseResult(case, rankings))
    return Audit(len(samples), seed, tuple(bounds), tuple(rows), tuple(results))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _total(score: Score) -> Outcome:
    """The total as an outcome; without a failed part it would not compare with other totals."""
    failed = [part for part in score.parts.values() if part.status == "failed"]
    if failed:
        return failed[0]
    if score.total is None:
        return Outcome(None, "not_applicable", "no reward gave a value")
    return Outcome(score.total)


def _cell(pairs: Sequence[tuple[Outcome, Outcome]], kind: Kind, low: float) -> Cell:
    """The result of (original, edited) outcomes of one column."""
    tolerance = TOLERANCE[kind]
    gaps, at_bound, reasons = [], 0, []
    for before, after in pairs:
        part = before if before.status != "ok" else after
        failed = part.status == "failed"  # also with a value: one for failures is no judgement
        if failed or before.value is None or after.value is None:
            reasons.append(f"{part.status.replace('_', ' ')}: {part.reason}")
        elif kind == "must lower" and before.value <= low + tolerance:
            at_bound += 1
        else:
            gaps.append(after.value - before.value)
    n = len(gaps)
    below, above = sum(gap < -tolerance for gap in gaps), sum(gap > tolerance for gap in gaps)
    return Cell(
        n=n,
        share_below=below / n if n else None,
        share_equal=(n - below - above) / n if n else None,
        share_above=above / n if n else None,
        mean_gap=fmean(gaps) if n else None,
        at_bound=at_bound,
        unscored=len(reasons),
        reason=reasons[0] if reasons else "",
    )


def read_samples(path: str | Path, limit: int | None = None) -> tuple[list[Sample], list[str]]:
    """The samples of a file of rows, and what is wrong with the lines that are none.

    Args:
        path: JSONL file of rows, as `reward_sdk.jsonl` describes them.
        limit: number of rows to read from the start; None reads them all.

    Raises:
        ConfigError: the file cannot be read, or none of its rows can be used; says what is wrong
            with the first one.
    """
    samples, problems = [], []
    for row in islice(read_rows(path), limit):
        try:
            samples.append(_sample(row))
        except ConfigError as error:
            problems.append(f"{path}, line {row.number}: {error}")
    if not samples:
        raise ConfigError(
            f"{path} holds no report to audit. {problems[0]}" if problems else f"{path} is empty"
        )
    return samples, problems


def _sample(row: Row | BadRow) -> Sample:
    if isinstance(row, BadRow):
        raise ConfigError(row.problem)
    if row.reference is None or not row.reference.strip():
        raise ConfigError("the row has no 'reference' (a text)")
    response = row.response or row.reference
    if "<report>" not in response:
        response = wrap_report(response)
    sample = Sample(
        response, row.reference, row.image, row.id, age=row.age, indication=row.indication
    )
    if sample.report is None:
        raise ConfigError("its report is empty, or its tags are not one pair around everything")
    return sample
