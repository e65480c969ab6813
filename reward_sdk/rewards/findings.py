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
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import FINDINGS, OBSERVATIONS, Labels, Uncertain, asserted
from reward_sdk.registry import reward
from reward_sdk.types import Outcome, Sample


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
        reference: labels of the reference.
        observations: those that count.
        uncertain: what an uncertain observation counts as.
    """
    found, expected = (
        set(asserted(labels, uncertain, observations)) for labels in (report, reference)
    )
    return f1(found, expected)


class ClinicalReward:
    """A score of two annotations as a reward.

    Args:
        name: the reward's name.
        annotator: gives the annotations.
        score: (annotation of the report, annotation of the reference) -> value within bounds.
        bounds: of the score.
        light: the annotator uses no model.
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


@reward("findings_f1")
def findings_f1(
    observations: list[str] | None = None, uncertain: Uncertain = "positive"
) -> ClinicalReward:
    """F1 of the observations that report and reference assert, by the rule labeler, in [0, 1].

    Args:
        observations: names of `OBSERVATIONS` that count; by default `FINDINGS`, all but No Finding.
        uncertain: what an uncertain observation counts as.
    """
    chosen = FINDINGS if observations is None else known_observations(observations)
    score = partial(labels_f1, observations=chosen, uncertain=uncertain)
    return ClinicalReward("findings_f1", Annotator(label_reports), score, light=True)
