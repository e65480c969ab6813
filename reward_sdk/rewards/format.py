"""Reward for the structure of a response."""

from collections.abc import Sequence

from reward_sdk.reward import reward
from reward_sdk.types import Part, Sample


class Format:
    """1 for exactly one non-empty `<report>` pair with nothing outside, else 0 (paper)."""

    name = "format"
    bounds = (0.0, 1.0)
    needs: frozenset[str] = frozenset()

    def __call__(self, samples: Sequence[Sample]) -> list[Part]:
        return [Part(float(sample.report is not None)) for sample in samples]


@reward("format")
def format_() -> Format:
    """1 if the response is exactly one non-empty <report> pair with nothing outside, else 0."""
    return Format()
