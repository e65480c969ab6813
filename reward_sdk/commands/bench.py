"""`reward-sdk bench`: what each reward of a set costs on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_sdk.config import parse_set, read_set
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample


@dataclass(frozen=True)
class Cost:
    """What one reward costs.

    Attributes:
        name: the reward.
        load: seconds until it is built, imports and weights included.
        new: seconds per 1,000 samples that it has not seen.
        seen: seconds per 1,000 samples that it has just seen.
        memory: MB that it adds to the process, after the rewards before it.
    """

    name: str
    load: float
    new: float
    seen: float
    memory: float


def measure(set_file: Path, samples: Sequence[Sample]) -> Iterator[Cost]:
    """The cost of every reward of a set, one after the other; what rewards share counts once.

    Args:
        set_file: the reward set's YAML.
        samples: what is scored, in one batch; a schedule (`every`) is left out of account.

    Raises:
        ConfigError: a set that cannot be built.
        ScoringError: a reward that scores none of the samples.
    """
    where = f"{set_file}: rewards"
    for name, entry in parse_set(read_set(set_file), where).items():
        before, began = _megabytes(), time.perf_counter()
        rewards = RewardSet.from_config({name: entry.settings}, where)
        seconds = [time.perf_counter() - began]
        for _ in range(2):
            began = time.perf_counter()
            scores = rewards.score(samples)
            seconds.append(time.perf_counter() - began)
            if all(score.total is None for score in scores):
                raise ScoringError(f"{name} scores no sample: {scores[0].parts[name].reason}")
        load, new, seen = seconds
        thousand = 1000 / len(samples)
        yield Cost(name, load, new * thousand, seen * thousand, _megabytes() - before)


def _megabytes() -> float:
    """The size of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
