"""A reward of one's own: a report on a single study must not speak of earlier ones.

reward-sdk score --set examples/no_priors.yaml --data reports.jsonl --out scores.jsonl
"""

import re

from reward_sdk.text import sentences

PRIOR = re.compile(r"\b(unchanged|again|compar\w+|previous\w*|prior|interval|worsen\w*)\b", re.I)


def no_priors(samples, least: float = 0.0) -> list[float]:
    """Share of a report's sentences without a word about an earlier study, at least `least`."""
    found = [[PRIOR.search(one) is None for one in sentences(s.report)] for s in samples]
    return [max(least, sum(free) / len(free)) for free in found]
