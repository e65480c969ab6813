"""Guards against texts that please other rewards by their length; off unless a set names them.

Both are 0 for an inconspicuous report and fall towards -1: a guard's weight is the price of the
worst misuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from reward_sdk.errors import ConfigError
from reward_sdk.registry import reward
from reward_sdk.text import tokens
from reward_sdk.types import Outcome, Sample

_NGRAM = 4  # ours: radiologists repeat phrases of three words ("there is no"), rarely of four


class Length:
    """How far the number of words lies outside a band, in [-1, 0].

    0 inside the band; below it n / low - 1, above it high / n - 1.

    Args:
        low: length of the shortest report that costs nothing, in words or multiples of the
            reference's.
        high: length of the longest report that costs nothing, in the same unit as `low`.
        relative: whether `low` and `high` are multiples of the reference's number of words, and not
            numbers of words.
    """

    name, light = "length", True
    bounds = (-1.0, 0.0)

    def __init__(self, low: float, high: float, relative: bool) -> None:
        self._low, self._high, self._relative = low, high, relative
        self.needs = frozenset({"report", "reference"} if relative else {"report"})

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Outcome(self._value(sample)) for sample in samples]

    def _value(self, sample: Sample) -> float:
        n = len(tokens(sample.report or ""))
        unit = max(1, len(tokens(sample.reference or ""))) if self._relative else 1
        short = n / (self._low * unit) if self._low else 1.0
        long = self._high * unit / n if n else 1.0
        return min(1.0, short, long) - 1


class Repetition:
    """Minus the share of a report's 4-grams of words that have stood in it before, in [-1, 0]."""

    name, light = "repetition", True
    bounds = (-1.0, 0.0)
    needs = frozenset({"report"})

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Outcome(self._value(tokens(sample.report or ""))) for sample in samples]

    @staticmethod
    def _value(words: list[str]) -> float:
        ngrams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


@reward("length")
def length(
    low: float = 0.5, high: float = 2.0, of: Literal["reference", "words"] = "reference"
) -> Length:
    """0 for a report whose length lies in a band, falling towards -1 outside.

    Args:
        low: lower end of the band, at least 0, in the unit that `of` names.
        high: upper end of the band, above 0 and not below `low`, in the unit that `of` names.
        of: unit of `low` and `high`: "reference" for multiples of the reference's number of words,
            "words" for numbers of words.
    """
    if not 0 <= low <= high or high == 0:
        raise ConfigError(f"the band from {low} to {high}: 0 <= low <= high and 0 < high must hold")
    return Length(low, high, of == "reference")


@reward("repetition")
def repetition() -> Repetition:
    """Minus the share of a report's 4-grams of words that have stood in it before, in [-1, 0]."""
    return Repetition()
