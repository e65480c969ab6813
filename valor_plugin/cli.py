"""`openrlhf train | recipes | demo | prepare | convert | doctor`; `valor` is the same command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from reward_sdk.commands.boundary import Boundary
from reward_sdk.errors import ConfigError


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
@click.option("--out", type=click.Path(), help="Run folder.  [default: runs/NAME]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Overrides one key of the recipe; may be repeated.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Makes every check that needs no GPU, writes nothing, and lists what is absent or wrong.",
)
@click.option(
    "--command-only", is_flag=True, help="Checks the recipe alone and prints the host's command."
)
def train_command(
    path: str,
    out: str | None,
    overrides: tuple[str, ...],
    device: str,
    dry_run: bool,
    command_only: bool,
) -> None:
    """Runs one stage from a recipe.

    Exit codes: 0 done, 1 the run failed, 2 something in the recipe or its files is wrong.
    """
    from valor_plugin.recipe import find_recipe, load_recipe
    from valor_plugin.train import describe, train

    recipe = load_recipe(find_recipe(path), overrides)
    folder = Path(out or f"runs/{recipe.name}")
    if dry_run:
        from valor_plugin import doctor

        problems, summary = doctor.rehearse(recipe, folder, device)
        for problem in problems:
            click.secho("error: ", fg="red", nl=False, err=True)
            click.echo(problem, err=True)
        if problems:
            sys.exit(2)
        click.echo(summary)
        return
    if command_only:
        click.echo(describe(recipe, folder, device))
        return
    model = train(recipe, folder, device)
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


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(), help="The studies file to write.")
@click.option("--force", is_flag=True, help="Replaces the file if it is there.")
def prepare(folder: str, out: str, force: bool) -> None:
    """Lists a folder of X-ray images as a studies file without reports, for stage 2."""
    from valor_plugin.data.studies import studies_of_folder, write_studies

    path = Path(out)
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{path} is there already: name another file, or replace it with --force")
    studies = studies_of_folder(Path(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_studies(studies, path)
    click.echo(f"{len(studies)} studies: {path}")


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
