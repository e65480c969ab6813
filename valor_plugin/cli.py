"""`openrlhf train | recipes | demo | prepare | convert | doctor`; `valor` is the same command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from reward_sdk.commands.boundary import Boundary
from reward_sdk.errors import RewardSDKError
from valor_plugin.data.datasets import DATASETS


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from valor_plugin import __version__
    from valor_plugin.host.versions import installed

    host = installed("openrlhf")
    click.echo(
        f"valor-rrg {__version__} (command `{context.info_name}` of valor_plugin; host OpenRLHF "
        f"{host.version if host else 'not installed'})"
    )
    context.exit()


@click.group(
    cls=Boundary,
    extra="openrlhf",
    stopped={
        "train": "stopped; every process of the run has ended",
        "demo": "stopped; what was finished is kept",
        "convert": "stopped; the same command goes on where it was",
        "prepare": "stopped; the same command goes on where it was",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Says which releases of this package and of the host these are.",
)  # fmt: skip
def main() -> None:
    """Trains LLaVA-Med with verifiable and image-grounded rewards inside OpenRLHF."""


@main.command("train")
@click.option("--recipe", "path", required=True, type=click.Path(),
              help="A YAML file, or the name of a shipped one.")  # fmt: skip
@click.option(
    "--then",
    "later",
    multiple=True,
    type=click.Path(),
    help="A recipe that trains the model of the one before, whatever model it names; may be "
    "repeated.",
)
@click.option(
    "--out",
    type=click.Path(),
    help="Run folder; with --then, the folder of a run folder NAME each.  [default: runs/NAME]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Overrides one key of the recipe; may be repeated. With --then, NAME.KEY=VALUE, where "
    "NAME is the `name` in the recipe that is meant.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Makes every check that needs no GPU, writes nothing, and lists what is absent or wrong.",
)
@click.option(
    "--command-only", is_flag=True, help="Checks recipes alone and prints the host's command."
)
def train_command(
    path: str,
    later: tuple[str, ...],
    out: str | None,
    overrides: tuple[str, ...],
    device: str,
    dry_run: bool,
    command_only: bool,
) -> None:
    """Runs one stage from a recipe, or several, one after another. Of several, those that are
    finished are skipped, and the first one that fails ends the command.

    Exit codes: 0 done, 1 the run failed, 2 something in the recipe or its files is wrong.
    """
    from valor_plugin import chain
    from valor_plugin.recipe import find_recipe, load_recipe
    from valor_plugin.train import describe, train

    if later:
        stages = chain.read((path, *later), overrides, Path(out or "runs"))
    else:
        recipe = load_recipe(find_recipe(path), overrides)
        stages = [chain.Stage(recipe, Path(out or f"runs/{recipe.name}"))]
    if dry_run:
        from valor_plugin import doctor

        problems, summaries = [], []
        done = chain.finished(stages) if later else 0
        for i, stage in enumerate(stages):
            if i < done:
                summaries.append(f"{stage.recipe.name} is finished: {stage.out}")
                continue
            found, summary = doctor.rehearse(stage.recipe, stage.out, device, awaited=i > done)
            problems += [f"{stage.recipe.name}: {line}" if later else line for line in found]
            summaries.append(summary)
        for problem in problems:
            click.secho("error: ", fg="red", nl=False, err=True)
            click.echo(problem, err=True)
        if problems:
            sys.exit(2)
        click.echo("\n\n".join(summaries))
        return
    if command_only:
        commands = (
            (f"# {stage.recipe.name}\n" if later else "")
            + describe(stage.recipe, stage.out, device)
            for stage in stages
        )
        click.echo("\n".join(commands))
        return
    [first, *_] = stages
    model = chain.train(stages, device) if later else train(first.recipe, first.out, device)
    click.echo(f"model: {model}")


@main.command("recipes")
@click.option("--copy", "target", metavar="DIR", help="Puts them into a folder, to be changed.")
def recipes_command(target: str | None) -> None:
    """Lists the shipped recipes, or copies them with the reward sets that they name."""
    from valor_plugin import recipe

    if target is not None:
        count = recipe.copy_shipped(Path(target))
        click.echo(f"{count} files: {target}")
        return
    for name, file in recipe.shipped_recipes().items():
        click.echo(f"{name:<20} {recipe.about(file)}")
    click.echo(
        "to run one: openrlhf train --recipe NAME; to change them: openrlhf recipes --copy DIR"
    )


@main.command()
@click.option(
    "--recipes",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with pretraining.yaml, sft.yaml, stage1.yaml and stage2.yaml.  "
    "[default: the shipped ones]",
)
@click.option("--out", type=click.Path(), default="runs/demo", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def demo(recipes: str | None, out: str, device: str) -> None:
    """Runs the whole method on synthetic chest films, called phantoms: a small model, SFT, stage 1,
    stage 2, evaluation of each, a page."""
    from valor_plugin.demo import pipeline
    from valor_plugin.recipe import shipped_folder

    page = pipeline.run(Path(recipes or shipped_folder() / "demo"), Path(out).resolve(), device)
    click.echo(f"page: {page}")


@main.command(
    "prepare",
    help="Makes studies files of a dataset as it was downloaded into SRC.\n\n\b\n"
    + "\n".join(f"{name:<14} {about}" for name, about in DATASETS.items())
    + "\n\nA run that was cut short goes on when the same command is given again.\n\n"
    "Exit codes: 0 done, 1 too many studies have faults, 2 something is absent or wrong.",
)
@click.argument("dataset", type=click.Choice([*DATASETS]))
@click.argument("src", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--report", type=click.Choice(["findings", "impression", "both"]), default="findings",
    show_default=True, help="Section that is the reference; both: 'Findings: ... Impression: ...'.",
)  # fmt: skip
@click.option(
    "--marks", type=click.Choice(["keep", "remove", "drop-sentence"]), default="remove",
    show_default=True, help="What becomes of marks of de-identification, ___ and XXXX.",
)  # fmt: skip
@click.option(
    "--splits", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Takes the splits of this file: R2Gen's annotation.json, ReXrank's JSON, or a CSV file "
    "with id and split.",
)  # fmt: skip
@click.option(
    "--keep-out", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Patients who are left out of training: MS-CXR's CSV file, or one id a line.",
)  # fmt: skip
@click.option("--check-images", is_flag=True, help="Opens every image, which takes long.")
@click.option(
    "--max-rejected", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of studies with faults above which the command fails, after all is written.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1), default=os.cpu_count(), help="[default: one a core]"
)
@click.option("--force", is_flag=True, help="Makes anew what was prepared into OUT before.")
def prepare_command(
    dataset: str,
    src: Path,
    out: Path,
    report: Any,
    marks: Any,
    splits: Path | None,
    keep_out: Path | None,
    check_images: bool,
    max_rejected: float,
    processes: int,
    force: bool,
) -> None:
    from valor_plugin.data.drafts import Choices
    from valor_plugin.data.prepare import prepare

    choices = Choices(report, marks, splits, keep_out, check_images)
    card, before = prepare(dataset, src, out, choices, processes, force)
    if before:
        click.echo(
            f"{out} was prepared before, of the same tables (images and reports were not looked at "
            "again); --force makes it anew"
        )
    for name, counts in card["splits"].items():
        click.echo(
            f"{out / name}.jsonl: {counts['studies']:,} studies, {counts['images']:,} images, "
            f"{counts.get('with a report', 0):,} with a report"
        )
    for reason, count in card["rejected"].items():
        click.echo(f"not here: {count:,} studies: {reason}")
    click.echo(f"card: {out / 'README.md'}")
    if card["faults"] > max_rejected * card["found"]:
        raise RewardSDKError(
            f"{card['faults']:,} of {card['found']:,} studies have faults, more than "
            f"--max-rejected {max_rejected:g}: they are listed in {out / 'rejected.jsonl'}; the "
            "others are written"
        )


@main.command("convert")
@click.argument("source", type=click.Path(exists=True, file_okay=False))
@click.argument("target", type=click.Path())
@click.option(
    "--tower",
    help="'checkpoint', or a CLIP folder.  [default: the checkpoint's, else the one it names]",
)
def convert_command(source: str, target: str, tower: str | None) -> None:
    """Makes a Hugging Face LLaVA folder of LLaVA-Med v1.5 in its original format.

    Exit codes: 0 done, 2 something in the source or the target is wrong.
    """
    from tqdm import tqdm

    from valor_plugin.llava_med.convert import convert

    with tqdm(desc="converting", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        click.echo(convert(Path(source), Path(target), tower, progress))


@main.command("doctor")
@click.argument("model", required=False, type=click.Path())
@click.option("--recipe", "path", type=click.Path(),
              help="A recipe: how much GPU memory it needs.")  # fmt: skip
def doctor_command(model: str | None, path: str | None) -> None:
    """Says what is installed, whether this machine's GPUs can be used and the host's seams are
    there, and whether MODEL will load.

    Exit codes: 0 all is well, 1 something is not.
    """
    from valor_plugin import doctor
    from valor_plugin.host.versions import INSTALL
    from valor_plugin.recipe import find_recipe, load_recipe

    sections = {"installed": doctor.packages, "GPUs": doctor.gpus, "seams": doctor.seams}
    if path is not None:
        recipe = load_recipe(find_recipe(path))
        model = model or recipe.model.path
    if model is not None:
        sections[model] = lambda: doctor.model(model)
    if path is not None:
        sections[recipe.name] = lambda: doctor.memory(recipe)
    wrong = 0
    marks = {True: ("ok", "green"), False: ("WRONG", "red"), None: ("doubtful", "yellow")}
    for title, look in sections.items():
        click.echo(f"{title}:")
        for check in look():
            mark, colour = marks[check.ok]
            wrong += check.ok is False
            click.secho(f"  {mark:<9}", fg=colour, nl=False)
            click.echo(f"{check.what}: {check.detail}")
    if wrong:
        click.echo(f"{wrong} of these would stop a run")
        if doctor.missing(doctor.PURPOSES):
            click.echo(f"what is missing: {INSTALL}; rewards on text need none of it")
        sys.exit(1)
