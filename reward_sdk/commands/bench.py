"""`reward-sdk bench`: what each reward of a set, or each network behind them, costs here."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reward_sdk.audit.audit import read_samples
from reward_sdk.commands import SetType
from reward_sdk.config import Source, parse_set, read_set
from reward_sdk.errors import ScoringError
from reward_sdk.registry import factory
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample


@click.command()
@click.option(
    "--set",
    "rewards",
    type=SetType(),
    metavar="FILE|NAMES",
    help="The set's YAML, or names of rewards; without it the networks alone are measured.",
)
@click.option("--data", type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--device", help="A torch device, for all networks; without a set by default cpu.")
def bench(rewards: Source | None, data: str | None, limit: int, device: str | None) -> None:
    """Measures what each reward of a set costs on this machine, on the first rows of the data.

    Without a set and data: what the networks behind rewards reach on a device, at their published
    sizes with random weights, against their plain use.
    """
    if rewards is None and data is None:
        from reward_sdk.commands.networks import compare

        for line in compare(device or "cpu"):
            click.echo(line)
        return
    if rewards is None or data is None:
        raise click.UsageError("--set and --data go together: give both, or none")
    samples, problems = read_samples(data, limit)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    click.echo(f"{len(samples)} samples in one batch; seconds per 1,000 samples, MB")
    click.echo(f"{'':20} {'load, s':>8} {'unseen':>8} {'seen':>8} {'memory':>8}")
    for cost in measure(rewards, samples, device):
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


def measure(source: Source, samples: Sequence[Sample], device: str | None = None) -> Iterator[Cost]:
    """The cost of every reward of a set, one after the other; what rewards share counts once.

    Args:
        source: the set: a YAML file, a mapping or a list of names.
        samples: samples to score in one batch, at least one; a schedule (`every`) is left out of
            account.
        device: a torch device, for every reward that has a setting of that name; None for what the
            set says.

    Raises:
        ConfigError: the set cannot be built.
        ScoringError: a reward scores none of the samples.
    """
    mapping, where = read_set(source)
    for name, entry in parse_set(mapping, where).entries.items():
        settings = entry.settings
        if device is not None and "device" in factory(name).settings:
            settings["device"] = device
        before, began = _megabytes(), time.perf_counter()
        rewards = RewardSet.from_config({name: settings}, where)
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
