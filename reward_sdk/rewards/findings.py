"""Rewards for the findings that report and reference assert, by the rule labeler; and what all
rewards that compare annotations of two texts have in common.

What the literature computes over a corpus is defined here for one report: the F1 of observations is
that of the sets of observations that the two texts assert. Two texts that assert none agree: 1.
(scikit-learn's 0/0 = 0 would punish each correct normal report.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from reward_sdk.errors import ConfigError, nearest
from reward_sdk.models.annotator import Annotator
from reward_sdk.models.rule_labeler import NOT_MENTIONED, in_words, label_reports, wrong_sides
from reward_sdk.observations import FINDINGS, OBSERVATIONS, Labels, Uncertain, asserted
from reward_sdk.registry import reward
from reward_sdk.types import Evidence, Outcome, Sample


def f1(found: AbstractSet[Hashable], expected: AbstractSet[Hashable]) -> float:
    """F1 of two sets, in [0, 1]; 1 if both are empty.

    >>> f1(frozenset({"Edema"}), frozenset({"Edema", "Pneumonia"}))
    0.6666666666666666
    """
    size = len(found) + len(expected)
    return 2 * len(found & expected) / size if size else 1.0


def labels_f1(
    report: Labels, reference: Labels, observations: Iterable[str], uncertain: Uncertain
) -> float:
    """F1 of the observations that two reports assert, in [0, 1]; 1 if neither asserts one.

    Args:
        report: labels of the judged report.
        reference: labels of the reference report.
        observations: names of the observations that count.
        uncertain: what an uncertain observation counts as: "positive" (asserted) or "negative" (not
            asserted).
    """
    found, expected = (
        set(asserted(labels, uncertain, observations)) for labels in (report, reference)
    )
    return f1(found, expected)


class ClinicalReward:
    """A score of two annotations as a reward.

    Args:
        name: name of the reward, under which it is logged.
        annotator: makes the annotations of report and reference.
        score: (annotation of the report, annotation of the reference) -> value within `bounds`.
        bounds: closed range (low, high) of the reward's values.
        light: whether the annotator uses no model, so that the reward may share a thread.
    """

    needs = frozenset({"report", "reference"})

    def __init__(
        self,
        name: str,
        annotator: Annotator[Any],
        score: Callable[[Any, Any], float],
        bounds: tuple[float, float] = (0.0, 1.0),
        light: bool = False,
    ) -> None:
        self.name, self.bounds, self.light = name, bounds, light
        self._annotator, self._score = annotator, score

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Outcome(self._score(*pair)) for pair in self._annotator.pairs(samples)]


def known_observations(observations: list[str]) -> tuple[str, ...]:
    """The names of a setting; ConfigError for one that is none of `OBSERVATIONS`, or for none."""
    for name in observations:
        if name not in OBSERVATIONS:
            raise ConfigError(f"observations: no {name!r}: {nearest(name, OBSERVATIONS)}")
    if not observations:
        raise ConfigError("observations: name at least one, or leave the key out for all")
    return tuple(observations)


class FindingsF1(ClinicalReward):
    """The reward `findings_f1`: F1 of asserted observations, by the rule labeler."""

    def __init__(self, observations: tuple[str, ...], uncertain: Uncertain) -> None:
        score = partial(labels_f1, observations=observations, uncertain=uncertain)
        super().__init__("findings_f1", Annotator(label_reports), score, light=True)
        self._observations = observations
        self._uncertain: Uncertain = uncertain

    def explain(self, sample: Sample) -> list[Evidence]:
        """What report and reference say of each observation that one of them mentions."""
        texts = [sample.report or "", sample.reference or ""]
        ours, theirs = map(in_words, texts)
        found, expected = (
            set(asserted(labels, self._uncertain, self._observations))
            for labels in label_reports(texts)
        )
        wrong = wrong_sides(*texts)
        return [
            Evidence(
                name,
                ours[name],
                theirs[name],
                agrees=name in found & expected if name in found | expected else None,
                note="a wrong side, which this reward does not see" if name in wrong else "",
            )
            for name in self._observations
            if not ours[name] == theirs[name] == NOT_MENTIONED
        ]


@reward("findings_f1")
def findings_f1(
    observations: list[str] | None = None, uncertain: Uncertain = "positive"
) -> FindingsF1:
    """F1 of the observations that report and reference assert, by the rule labeler, in [0, 1].

    Args:
        observations: names of `OBSERVATIONS` that count; by default `FINDINGS`, all but No Finding.
        uncertain: what an uncertain observation counts as: "positive" (asserted) or "negative" (not
            asserted).
    """
    chosen = FINDINGS if observations is None else known_observations(observations)
    return FindingsF1(chosen, uncertain)
