"""Reward for the structure of a response."""

from collections.abc import Sequence

from reward_sdk.registry import reward
from reward_sdk.text import parse_response
from reward_sdk.types import Outcome, Sample


class Format:
    """1 for a well-formed response, else 0 (paper); see `reward_sdk.text.parse_response`.

    Args:
        think: whether a `<think>` block must stand before the report. If not, none may.
    """

    name, light = "format", True
    bounds = (0.0, 1.0)
    needs: frozenset[str] = frozenset()

    def __init__(self, think: bool) -> None:
        self._think = think

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        parsed = (parse_response(sample.response) for sample in samples)
        return [
            Outcome(float(p is not None and (p.think is not None) == self._think)) for p in parsed
        ]


@reward("format")
def format_(think: bool = False) -> Format:
    """1 if the response is exactly one non-empty <report> pair with nothing outside, else 0.

    Args:
        think: whether the pair must follow exactly one non-empty <think> block, whose opening tag
            the chat template may have written already. If not, there may be none.
    """
    return Format(think)
