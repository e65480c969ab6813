"""`reward-sdk audit`: the audit as files."""

import json
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import click
from tqdm import tqdm

from reward_sdk.audit import page
from reward_sdk.audit.audit import audit, read_samples
from reward_sdk.commands import set_option
from reward_sdk.config import Source
from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet

_FILES = ("audit.json", "audit.png", "audit.html")


@click.command("audit")
@set_option
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--out", required=True, type=click.Path(), help="Folder for what is written.")
@click.option("--limit", type=click.IntRange(min=1), help="Reads the first rows only.")
def audit_set(rewards: Source, data: str, out: str, limit: int | None) -> None:
    """Counts how often a reward set notices that a report was spoiled.

    Writes audit.json, audit.png and audit.html. `reward_sdk.audit.audit` describes the data.

    Exit codes: 0 done, 1 a reward failed that must not, 2 the set or the data are wrong.
    """
    for package in ("jinja2", "matplotlib"):  # rather than after minutes of work
        import_module(package)
    folder = Path(out)
    _check_ours(folder)
    reward_set = RewardSet.from_config(rewards)
    samples, problems = read_samples(data, limit)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    bar = partial(tqdm, desc="scoring", unit="chunk", disable=None)
    result = audit(reward_set, samples, progress=bar)
    click.echo(result.table())
    content = result.to_dict() | {"left_out": problems}
    (folder / "audit.json").write_text(json.dumps(content, indent=1))
    click.echo(f"\n{folder / 'audit.json'}")
    page.draw(folder / "audit.png", result)
    click.echo(folder / "audit.png")
    page.write_page(folder / "audit.html", result, Path(data).name, problems)
    click.echo(folder / "audit.html")


def _check_ours(folder: Path) -> None:
    """ConfigError if what would be overwritten is no earlier audit."""
    there = [path for name in _FILES if (path := folder / name).exists()]
    if not there:
        return
    with suppress(OSError, ValueError, TypeError):
        content = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
        if {"reports", "seed", "columns", "rows"} <= {*content}:
            return
    raise ConfigError(f"{there[0]} is there and no audit's: name another folder, or remove it")
