"""Reward for the findings of a report, measured against those of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from reward_sdk.errors import ConfigError, nearest
from reward_sdk.labelers.rules import label_reports
from reward_sdk.observations import OBSERVATIONS
from reward_sdk.reward import reward
from reward_sdk.types import Part, Sample

FINDINGS = tuple(name for name in OBSERVATIONS if name != "No Finding")


def f1(found: frozenset[str], expected: frozenset[str]) -> float:
    """F1 of two sets, in [0, 1]; 1 if both are empty.

    >>> f1(frozenset({"Edema"}), frozenset({"Edema", "Pneumonia"}))
    0.6666666666666666
    """
    size = len(found) + len(expected)
    return 2 * len(found & expected) / size if size else 1.0


class FindingsF1:
    """F1 of the observations that the report and its reference assert.

    The labels come from `reward_sdk.labelers.rules`. An uncertain observation counts as asserted
    (u-ones, as in f1chexbert's mode "rrg"). Two reports without findings agree: 1.

    Args:
        observations: those that count.
    """

    name = "findings_f1"
    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})

    def __init__(self, observations: Iterable[str] = FINDINGS) -> None:
        self._observations = frozenset(observations)

    def __call__(self, samples: Sequence[Sample]) -> list[Part]:
        return [
            Part(
                f1(
                    asserted(sample.report or "") & self._observations,
                    asserted(sample.reference or "") & self._observations,
                )
            )
            for sample in samples
        ]


@lru_cache(maxsize=1 << 14)  # ours: the responses of a GRPO group share their reference
def asserted(text: str) -> frozenset[str]:
    """The observations, No Finding among them, that a text states as present or uncertain."""
    (labels,) = label_reports([text])
    return frozenset(name for name, label in labels.items() if label in (1, -1))


@reward("findings_f1")
def findings_f1(observations: list[str] | None = None) -> FindingsF1:
    """F1 of the observations that the report and its reference assert, in [0, 1].

    Args:
        observations: names of `OBSERVATIONS` that count; all but No Finding by default, because it
            is the absence of the others.
    """
    if observations is None:
        return FindingsF1()
    for name in observations:
        if name not in OBSERVATIONS:
            raise ConfigError(f"observations: no {name!r}: {nearest(name, OBSERVATIONS)}")
    if not observations:
        raise ConfigError("observations: name at least one, or leave the key out for all")
    return FindingsF1(observations)
