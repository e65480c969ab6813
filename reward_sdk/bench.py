"""`reward-sdk bench`: what each reward of a set costs on this machine.

Every reward is measured in a process of its own, so that memory is its own and no cache is warm.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from reward_sdk.config import parse_set, read_set
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ScoringError
from reward_sdk.types import Sample


@dataclass(frozen=True)
class Cost:
    """What one reward costs.

    Attributes:
        name: the reward.
        load: seconds until it is built, imports and weights included.
        new: seconds per 1,000 samples that it has not seen.
        seen: seconds per 1,000 samples that it has just seen.
        memory: MB by which the process has grown at its largest.
    """

    name: str
    load: float
    new: float
    seen: float
    memory: float


def measure(set_file: Path, samples: Sequence[Sample]) -> Iterator[Cost]:
    """The cost of every reward of a set, one after the other.

    Args:
        set_file: the reward set's YAML.
        samples: what is scored, in one batch; a schedule (`every`) is left out of account.

    Raises:
        ConfigError: a set that cannot be built.
        ScoringError: a reward that scores none of the samples.
    """
    rewards = read_set(set_file)
    parse_set(rewards, f"{set_file}: rewards")
    for name, keys in rewards.items():
        context = get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            yield pool.submit(_cost, name, keys, str(set_file), list(samples)).result()


def _cost(name: str, keys: dict[str, object] | None, where: str, samples: list[Sample]) -> Cost:
    before = _megabytes()
    began = time.perf_counter()
    settings = {k: v for k, v in (keys or {}).items() if k not in ("every", "offset", "mode")}
    rewards = RewardSet.from_config({name: settings}, f"{where}: rewards")
    seconds = [time.perf_counter() - began]
    for _ in range(2):
        began = time.perf_counter()
        scores = rewards.score(samples)
        seconds.append(time.perf_counter() - began)
        if all(score.total is None for score in scores):
            raise ScoringError(f"{name} scores no sample: {scores[0].parts[name].reason}")
    load, new, seen = seconds
    thousand = 1000 / len(samples)
    return Cost(name, load, new * thousand, seen * thousand, _megabytes() - before)


def _megabytes() -> float:
    """The largest size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
