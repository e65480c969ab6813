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
from reward_sdk.audit.cases import read_cases
from reward_sdk.commands import set_option
from reward_sdk.config import Source
from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet

_FILES = ("audit.json", "audit.png", "audit.html")


@click.command("audit")
@set_option
@click.option("--data", type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--cases", type=click.Path(), help="JSON: reports and how they should rank.")
@click.option("--out", required=True, type=click.Path(), help="Folder for what is written.")
@click.option("--limit", type=click.IntRange(min=1), help="Reads the first rows of the data only.")
def audit_set(
    rewards: Source, data: str | None, cases: str | None, out: str, limit: int | None
) -> None:
    """Counts how often a reward set notices that a report was spoiled, and how often it ranks
    reports as expected.

    Writes audit.json, audit.png and audit.html. Wants data, cases or both: `reward_sdk.audit.audit`
    describes the data, `reward_sdk.audit.cases` the cases.

    Exit codes: 0 done, 1 a reward failed that must not, 2 the set, the data or the cases are wrong.
    """
    for package in ("jinja2", "matplotlib"):  # rather than after minutes of work
        import_module(package)
    if not (data or cases):
        raise ConfigError("nothing to audit: name reports with --data, ranking cases with --cases")
    folder = Path(out)
    _check_ours(folder)
    reward_set = RewardSet.from_config(rewards)
    ranking_cases = read_cases(cases) if cases else []
    samples, problems = read_samples(data, limit) if data else ([], [])
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    bar = partial(tqdm, desc="scoring", unit="chunk", disable=None)
    result = audit(reward_set, samples, progress=bar, cases=ranking_cases)
    click.echo(result.table())
    content = result.to_dict() | {"left_out": problems}
    (folder / "audit.json").write_text(json.dumps(content, indent=1))
    click.echo(f"\n{folder / 'audit.json'}")
    page.draw(folder / "audit.png", result)
    click.echo(folder / "audit.png")
    files = " and ".join(Path(file).name for file in (data, cases) if file)
    page.write_page(folder / "audit.html", result, files, problems)
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
