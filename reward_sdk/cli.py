"""`reward-sdk list | audit`."""

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.reward import factory, names


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="valor-rrg")
def main() -> None:
    """Rewards for chest X-ray report generation."""


@contextmanager
def _errors() -> Iterator[None]:
    """The boundary where errors become a line on screen and an exit code."""
    try:
        yield
    except ConfigError as error:
        message, code = str(error), 2
    except OSError as error:  # --out names a file, a folder cannot be written, no room on the disk
        message, code = f"{error.filename or 'the output'}: {error.strerror or error}", 2
    except ScoringError as error:
        message, code = str(error), 1
    else:
        return
    click.secho("error: ", fg="red", nl=False, err=True)
    click.echo(message, err=True)
    sys.exit(code)


@main.command("list")
def list_rewards() -> None:
    """Shows every reward that a set can name, with its settings."""
    for name in names():
        build = factory(name)
        about = (inspect.getdoc(build) or "").partition("\n")[0]
        parameters = inspect.signature(build).parameters.values()
        settings = ", ".join(str(parameter).replace("'", "") for parameter in parameters)
        click.echo(f"{name:12} {about}")
        if settings:
            click.echo(f"{'':12} settings: {settings}")


@main.command()
@click.option("--set", "rewards", required=True, type=click.Path(), help="The set's YAML.")
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--out", required=True, type=click.Path(), help="Folder for what is written.")
@click.option("--limit", type=click.IntRange(min=1), help="Reads the first rows only.")
def audit(rewards: str, data: str, out: str, limit: int | None) -> None:
    """Counts how often a reward set notices that a report was spoiled.

    Writes audit.json, audit.png and audit.html. `reward_sdk.audit` describes the data.

    Exit codes: 0 done, 1 a reward failed that must not, 2 the set or the data are wrong.
    """
    from reward_sdk import audit_page
    from reward_sdk.audit import audit, read_samples
    from reward_sdk.engine import RewardSet

    with _errors():
        reward_set = RewardSet.from_file(rewards)
        samples, problems = read_samples(data, limit)
        for problem in problems:
            click.echo(f"left out: {problem}", err=True)
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        bar = partial(tqdm, desc="scoring", unit="chunk", disable=None)
        result = audit(reward_set, samples, progress=bar)
        click.echo(result.table())
        content = result.to_dict() | {"left_out": problems}
        (folder / "audit.json").write_text(json.dumps(content, indent=1))
        click.echo(f"\n{folder / 'audit.json'}")
        audit_page.draw(folder / "audit.png", result)
        click.echo(folder / "audit.png")
        audit_page.write_page(folder / "audit.html", result, Path(data).name, problems)
        click.echo(folder / "audit.html")
