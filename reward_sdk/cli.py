"""`reward-sdk list | score | serve | audit | calibrate | bench`."""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_type_hints

import click
from tqdm import tqdm

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.models import weight_files
from reward_sdk.registry import factory, names


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
    """Shows every reward that a set can name: its range, what it needs, its settings, and whether
    the published weights that it can use are there."""

    files = weight_files.of_rewards()
    for name in names():
        try:
            build = factory(name)
        except ConfigError as error:
            click.echo(f"{name:20} {error}")
            continue
        click.echo(f"{name:20} {(inspect.getdoc(build) or '').partition(chr(10))[0]}")
        try:
            hints = get_type_hints(build)
        except NameError:  # of a factory of another distribution
            hints = {}
        needs = getattr(hints.get("return"), "needs", None)
        if isinstance(needs, frozenset) and needs:
            click.echo(f"{'':20}   needs: {', '.join(sorted(needs))}")
        for key, parameter in inspect.signature(build).parameters.items():
            kind = re.sub(r"typing\.|<class |[<>]", "", str(hints.get(key, "any"))).strip("'")
            default = parameter.default
            default = "" if default is parameter.empty else f", by default {default!r}"
            click.echo(f"{'':20}   {key}: {kind}{default}")
        for weight, file in files.get(name, {}).items():
            state = f"found: {file.path}" if file.there else f"missing: {file.path} ({file.source})"
            click.echo(f"{'':20}   weights {weight}, {state}")


@main.command()
@click.option("--set", "rewards", required=True, type=click.Path(), help="The set's YAML.")
@click.option(
    "--data", required=True, type=click.Path(), help="JSONL: id, response, reference, ..."
)
@click.option("--out", required=True, type=click.Path(), help="JSONL; continued if it is there.")
@click.option("--plain", is_flag=True, help="The responses are reports without tags.")
@click.option("--step", type=click.IntRange(min=1), help="Policy step, for sets with a schedule.")
def score(rewards: str, data: str, out: str, plain: bool, step: int | None) -> None:
    """Scores the responses of a file, with every reward's part in every row.

    `reward_sdk.jsonl` describes the data. Lines that cannot be scored are named and kept apart.

    Exit codes: 0 every row scored, 1 a reward failed or lines were rejected, 2 the set or the data
    are wrong.
    """
    from reward_sdk.commands.score import rejected_path, score_file

    with _errors():
        with tqdm(total=_lines(data), desc="scoring", unit="line", disable=None) as bar:
            columns, rejected = score_file(
                Path(rewards), Path(data), Path(out), plain=plain, step=step,
                progress=lambda line: bar.update(line - bar.n),
            )  # fmt: skip
        click.echo(f"{'':20} {'mean':>7} {'scored':>7} {'skipped':>7} {'failed':>7}")
        for name, column in columns.items():
            mean = "-" if column.mean is None else f"{column.mean:.3f}"
            counts = f"{column.scored:7} {column.skipped:7} {column.failed:7}"
            click.echo(f"{name:20} {mean:>7} {counts}  {column.reason}".rstrip())
        for row in rejected:
            click.echo(f"rejected: {data}, line {row.number}: {row.problem}", err=True)
        click.echo(out)
        if rejected:
            click.echo(rejected_path(Path(out)))
    if rejected or any(column.failed for column in columns.values()):
        sys.exit(1)


def _lines(path: str) -> int | None:
    """Lines of a file, for the bar; None if that cannot be told."""
    try:
        with Path(path).open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return None


@main.command()
@click.option("--set", "rewards", required=True, type=click.Path(), help="The set's YAML.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--images", multiple=True, type=click.Path(), help="A folder whose images clients may name."
)
@click.option("--token-file", type=click.Path(), help="By default $REWARD_SDK_TOKEN is the token.")
@click.option("--insecure", is_flag=True, help="Serves other machines without a token.")
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--max-wait-ms", default=5.0, show_default=True, type=click.FloatRange(0, 1000),
    help="How long a batch waits for company.",
)  # fmt: skip
@click.option(
    "--max-queue", default=4096, show_default=True, type=click.IntRange(min=1),
    help="Samples in work; beyond them clients are told to wait.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Logs every request, without its texts.")
def serve(
    rewards: str,
    host: str,
    port: int,
    images: tuple[str, ...],
    token_file: str | None,
    insecure: bool,
    max_batch: int,
    max_wait_ms: float,
    max_queue: int,
    verbose: bool,
) -> None:
    """Serves a reward set over HTTP, with the numbers that it gives in process.

    /v1/score for `reward_sdk.client`, /get_reward for OpenRLHF, /verify for NeMo Gym; the page at /
    shows what it does. Ctrl-C or SIGTERM: what was accepted is answered first.

    Exit codes: 0 stopped, 1 the address is taken, 2 the set or an option is wrong.
    """
    with _errors():
        try:
            from reward_sdk.server.run import run
        except ImportError as error:
            raise ConfigError(f"{error}: pip install 'valor-rrg[server]'") from error
        run(
            Path(rewards), host, port, images, token_file, insecure, verbose,
            max_batch=max_batch, max_wait=max_wait_ms / 1000, max_queue=max_queue,
        )  # fmt: skip


@main.command()
@click.option("--set", "rewards", required=True, type=click.Path(), help="The set's YAML.")
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(min=1))
def bench(rewards: str, data: str, limit: int) -> None:
    """Measures what each reward of a set costs on this machine, on the first rows of the data."""
    from reward_sdk.audit.audit import read_samples
    from reward_sdk.commands.bench import measure

    with _errors():
        samples, problems = read_samples(data, limit)
        for problem in problems:
            click.echo(f"left out: {problem}", err=True)
        click.echo(f"{len(samples)} samples in one batch; seconds per 1,000 samples, MB")
        click.echo(f"{'':20} {'load, s':>8} {'unseen':>8} {'seen':>8} {'memory':>8}")
        for cost in measure(Path(rewards), samples):
            numbers = f"{cost.load:8.2f} {cost.new:8.2f} {cost.seen:8.2f} {cost.memory:8.0f}"
            click.echo(f"{cost.name:20} {numbers}")


@main.command()
@click.option("--expert", required=True, help="A published name, or a file.")
@click.option("--images", required=True, type=click.Path(), help="JSONL: id, image.")
@click.option("--out", required=True, type=click.Path(), help="The calibration, JSON.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
def calibrate(expert: str, images: str, out: str, device: str) -> None:
    """Fits the statistics that `image_text` needs, over training images.

    Side views are left out. `openrlhf train` does this by itself.
    """
    from reward_sdk.images import is_lateral
    from reward_sdk.jsonl import Row, read_rows
    from reward_sdk.models.calibration import fit_calibration

    with _errors():
        try:
            from reward_sdk.models.xray_expert import load_expert
        except ImportError as error:
            raise ConfigError(f"{error}: pip install 'valor-rrg[vision]'") from error
        found = []
        for line in read_rows(images):
            if isinstance(line, Row) and line.image:
                found += [] if is_lateral(line.image) else [line.image]
            else:
                problem = "no 'image'" if isinstance(line, Row) else line.problem
                click.echo(f"left out: {images}, line {line.number}: {problem}", err=True)
        with tqdm(total=len(found), desc="images", disable=None) as bar:
            fitted = fit_calibration(
                load_expert(expert, device), found, lambda done: bar.update(done - bar.n)
            )
        Path(out).write_text(fitted.model_dump_json(indent=2) + "\n", encoding="utf-8")
        click.echo(out)


@main.command()
def stacks() -> None:
    """Prints how other RL stacks use a reward set, as Markdown."""
    from reward_sdk.adapters import page

    click.echo(page(), nl=False)


@main.command()
@click.option("--set", "rewards", required=True, type=click.Path(), help="The set's YAML.")
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, reference, image, ...")
@click.option("--out", required=True, type=click.Path(), help="Folder for what is written.")
@click.option("--limit", type=click.IntRange(min=1), help="Reads the first rows only.")
def audit(rewards: str, data: str, out: str, limit: int | None) -> None:
    """Counts how often a reward set notices that a report was spoiled.

    Writes audit.json, audit.png and audit.html. `reward_sdk.audit.audit` describes the data.

    Exit codes: 0 done, 1 a reward failed that must not, 2 the set or the data are wrong.
    """
    from reward_sdk.audit import page as audit_page
    from reward_sdk.audit.audit import audit, read_samples
    from reward_sdk.reward_set import RewardSet

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
