"""How good a set of generated reports is: per study, over a corpus, and one stage against another.

Everything about a study that a corpus metric needs is kept, so that stored evaluations can be
compared later without the texts or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reward_sdk.errors import ConfigError, explain, nearest
from reward_sdk.metrics import bleu_counts, corpus_bleu
from reward_sdk.models.rule_labeler import label_reports, wrong_sides
from reward_sdk.observations import asserted
from reward_sdk.rewards.wording import bleu_score, rouge_l_score
from reward_sdk.text import extract_report, tokens

METRICS = ("well_formed", "rouge_l", "bleu_4", "micro_f1", "macro_f1", "similarity")
"""Every corpus metric, all within [0, 1] but similarity, whose range its reward defines."""


@dataclass(frozen=True)
class FindingsComparison:
    """Findings that a report states, held against its reference, in `OBSERVATIONS` order.

    Attributes:
        correct: findings that both reports state.
        missed: findings that the reference alone states.
        unsupported: findings that the generated report alone states.
        wrong_side: findings of `correct` that the generated report puts on a side which the
            reference does not name. F1 counts them as correct, as its labels have no sides.
    """

    correct: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    wrong_side: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyResult:
    """One study's results; what needs a reference (or an image) is None where there is none.

    Attributes:
        well_formed: whether the response is one `<report>` pair with text inside.
        rouge_l: ROUGE-L of this report with its reference, in [0, 1].
        sentence_bleu_4: smoothed BLEU-4 of this report alone, in [0, 1]; its mean over studies is
            no BLEU-4.
        bleu_counts: the ten numbers that this report adds to the corpus' BLEU-4, as
            `reward_sdk.metrics.bleu_counts` gives them.
        similarity: similarity of image and report, as it was handed to `evaluate`.
        findings: findings that the report states, held against the reference's.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    well_formed: bool
    rouge_l: float | None = None
    sentence_bleu_4: float | None = None
    bleu_counts: tuple[int, ...] | None = None
    similarity: float | None = None
    findings: FindingsComparison | None = None


@dataclass(frozen=True)
class Evaluation:
    """The results of one policy on one list of studies, in the order of that list."""

    studies: tuple[StudyResult, ...]

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """Corpus value of every metric of `METRICS`; None where no study defines it.

        well_formed, rouge_l and similarity are means over the studies that have them. bleu_4 is
        that of `reward_sdk.metrics.corpus_metrics`, over the studies with a reference. The F1
        scores are corpus-level, over the observations that some reference states: micro pools their
        cells, macro is the plain mean over observations.
        """
        once = np.ones((1, len(self.studies)))
        values = {name: float(_corpus(self.studies, name, once)[0]) for name in METRICS}
        return {name: value if isfinite(value) else None for name, value in values.items()}

    def to_json(self) -> str:
        """The evaluation as JSON: a list of studies with named findings, no report text."""
        return _JSON.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Evaluation:
        """Reads what `to_json` wrote; ConfigError, with the place in it, for anything else."""
        try:
            return _JSON.validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                "not a stored evaluation, as Evaluation.to_json writes it (evaluate again): "
                f"{explain(error, False)}"
            ) from None


_JSON = TypeAdapter(Evaluation)


def stated_findings(reports: Sequence[str]) -> list[tuple[str, ...]]:
    """The observations that each report states, by the rule labeler, "No Finding" left out."""
    return [asserted(labels) for labels in label_reports(reports)]


def compare_findings(reports: Sequence[str], references: Sequence[str]) -> list[FindingsComparison]:
    """Each report's stated findings against those of its reference; lists of equal length."""
    return [
        FindingsComparison(
            correct=tuple(name for name in ours if name in theirs),
            missed=tuple(name for name in theirs if name not in ours),
            unsupported=tuple(name for name in ours if name not in theirs),
            wrong_side=wrong_sides(report, reference),
        )
        for report, reference, ours, theirs in zip(
            reports, references, stated_findings(reports), stated_findings(references), strict=True
        )
    ]


def evaluate(
    responses: Sequence[str],
    references: Sequence[str | None],
    similarity: Sequence[float | None] | None = None,
) -> Evaluation:
    """Evaluates one response per study.

    A malformed response counts as an empty report: it scores 0 in the text metrics and states
    nothing in F1, so every finding of its reference is missed and none is unsupported. Dropping
    it instead would reward a policy for failing on the hard studies.

    Args:
        responses: generated texts with their tags, one per study.
        references: reports without tags; None where a study has none. Such a study counts in
            well_formed and similarity alone.
        similarity: similarity of image and report of each study, finite, or None for a side view;
            None for all if it was not measured.

    Raises:
        ValueError: the lists are of unequal length, or a similarity is not finite.
    """
    if not np.isfinite([value for value in similarity or () if value is not None]).all():
        raise ValueError("similarity must be finite: leave it out where it could not be measured")
    reports = [extract_report(response) for response in responses]
    pairs = zip(reports, references, strict=True)
    judged = [(report or "", reference) for report, reference in pairs if reference is not None]
    findings = iter(compare_findings([pair[0] for pair in judged], [pair[1] for pair in judged]))
    similarities = [None] * len(reports) if similarity is None else similarity
    studies = []
    for report, reference, similar in zip(reports, references, similarities, strict=True):
        well_formed = report is not None
        if reference is None:
            studies.append(StudyResult(well_formed, similarity=similar))
            continue
        ours, theirs = tokens(report or ""), tokens(reference)
        rouge_l = bleu = 0.0
        if report is not None:
            rouge_l, bleu = rouge_l_score(ours, theirs), bleu_score(ours, theirs)
        counts = bleu_counts(ours, theirs)
        studies.append(StudyResult(well_formed, rouge_l, bleu, counts, similar, next(findings)))
    return Evaluation(tuple(studies))


def bootstrap(
    evaluation: Evaluation,
    metric: str,
    resamples: int = 1000,  # ours
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a corpus metric over the choice of studies, low and high.

    Draws as `paired_bootstrap` does, and its interval has the same limits. None where the metric
    is not defined.
    """
    if evaluation.metrics[metric] is None:
        return None
    draws = _draws(len(evaluation.studies), resamples, seed)
    low, high = np.nanpercentile(_corpus(evaluation.studies, metric, draws), (2.5, 97.5))
    return float(low), float(high)


def _draws(n: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Drawing n studies with replacement = drawing how often each occurs; (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def paired_bootstrap(
    before: Evaluation,
    after: Evaluation,
    metric: str,
    resamples: int = 1000,  # ours
    seed: int = 0,
) -> tuple[float, float, float]:
    """The change of a corpus metric between two evaluations of the same studies.

    Studies are drawn with replacement, the same ones for both sides, and the metric is computed
    anew on each draw. The interval covers the choice of studies only: neither the training seed
    nor the sampling of the responses. A draw that leaves the metric undefined is passed over.

    Returns:
        The difference (after - before) and its 95 % percentile interval, low and high.

    Raises:
        ConfigError: the metric is unknown, an evaluation lacks it, or the studies are different
            ones.
    """
    if metric not in METRICS:
        raise ConfigError(f"no metric is named {metric!r}: {nearest(metric, METRICS)}")
    references = [[_reference(study) for study in side.studies] for side in (before, after)]
    if references[0] != references[1]:
        raise ConfigError(
            "the two evaluations are of different studies: their number or the findings of "
            "their references differ; evaluate both on the same list"
        )
    ends = before.metrics[metric], after.metrics[metric]
    if ends[0] is None or ends[1] is None:
        raise ConfigError(f"{metric} is not defined in both evaluations: choose another metric")
    draws = _draws(len(before.studies), resamples, seed)
    change = _corpus(after.studies, metric, draws) - _corpus(before.studies, metric, draws)
    low, high = np.nanpercentile(change, (2.5, 97.5))
    return ends[1] - ends[0], float(low), float(high)


def _reference(study: StudyResult) -> frozenset[str] | None:
    """The findings of a study's reference; None without one."""
    if study.findings is None:
        return None
    return frozenset(study.findings.correct + study.findings.missed)


def _corpus(
    studies: Sequence[StudyResult], metric: str, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A metric over corpora in which study i occurs weights[:, i] times.

    Args:
        weights: shape (corpora, studies).

    Returns:
        Shape (corpora,); NaN where a corpus leaves the metric undefined.
    """
    with np.errstate(invalid="ignore"):
        if metric == "bleu_4":
            counts = np.array([study.bleu_counts or (0,) * 10 for study in studies], float)
            known = np.array([study.bleu_counts is not None for study in studies], float)
            summed = zip(weights @ counts, weights @ known, strict=True)
            return np.array(
                [corpus_bleu(row.astype(int).tolist()) if any_ else np.nan for row, any_ in summed]
            )
        if metric not in ("micro_f1", "macro_f1"):
            values = np.array([getattr(study, metric) for study in studies], dtype=float)
            known = ~np.isnan(values)
            return (weights @ np.where(known, values, 0)) / (weights @ known)
        found = [study.findings or FindingsComparison() for study in studies]
        names = sorted({name for each in found for name in (*each.correct, *each.missed)})
        correct, missed, unsupported = (
            weights @ np.array([[name in stated for name in names] for stated in outcome], float)
            for outcome in (
                [each.correct for each in found],
                [each.missed for each in found],
                [each.unsupported for each in found],
            )
        )
        supported = correct + missed > 0
        wrong = missed + unsupported
        if metric == "micro_f1":
            hits, misses = (np.sum(cells, axis=1, where=supported) for cells in (correct, wrong))
            return 2 * hits / (2 * hits + misses)
        f1 = 2 * correct / (2 * correct + wrong)
        return np.sum(f1, axis=1, where=supported) / supported.sum(axis=1)
