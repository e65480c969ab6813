"""`reward-sdk bench`: what each reward of a set costs on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reward_sdk.audit.audit import read_samples
from reward_sdk.commands import set_option
from reward_sdk.config import Source, parse_set, read_set
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample


@click.command()
@set_option
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(min=1))
def bench(rewards: Source, data: str, limit: int) -> None:
    """Measures what each reward of a set costs on this machine, on the first rows of the data."""
    samples, problems = read_samples(data, limit)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    click.echo(f"{len(samples)} samples in one batch; seconds per 1,000 samples, MB")
    click.echo(f"{'':20} {'load, s':>8} {'unseen':>8} {'seen':>8} {'memory':>8}")
    for cost in measure(rewards, samples):
        numbers = f"{cost.load:8.2f} {cost.new:8.2f} {cost.seen:8.2f} {cost.memory:8.0f}"
        click.echo(f"{cost.name:20} {numbers}")


@dataclass(frozen=True)
class Cost:
    """What one reward costs.

    Attributes:
        name: name of the reward.
        load: seconds until the reward is built, imports and weights included.
        new: seconds per 1,000 samples that the reward has not seen.
        seen: seconds per 1,000 samples that the reward has just seen.
        memory: MB (2^20 bytes) that the reward adds to the process, after the rewards before it.
    """

    name: str
    load: float
    new: float
    seen: float
    memory: float


def measure(source: Source, samples: Sequence[Sample]) -> Iterator[Cost]:
    """The cost of every reward of a set, one after the other; what rewards share counts once.

    Args:
        source: the set: a YAML file, a mapping or a list of names.
        samples: samples to score in one batch, at least one; a schedule (`every`) is left out of
            account.

    Raises:
        ConfigError: the set cannot be built.
        ScoringError: a reward scores none of the samples.
    """
    mapping, where = read_set(source)
    for name, entry in parse_set(mapping, where).entries.items():
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
