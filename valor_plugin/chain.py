"""One stage after another: each later one trains the model that the one before it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from reward_sdk.errors import ConfigError
from valor_plugin.host.versions import check_build
from valor_plugin.recipe import Recipe, find_recipe, load_recipe
from valor_plugin.run import calibration
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.studies import used
from valor_plugin.train import choose_device, describe
from valor_plugin.train import train as train_stage


@dataclass(frozen=True)
class Stage:
    """A stage of a chain.

    Attributes:
        recipe: its recipe, whose model is that of the stage before, if there is one.
        out: the run's folder.
    """

    recipe: Recipe
    out: Path


def read(files: Sequence[str], overrides: Sequence[str], out: Path) -> list[Stage]:
    """The stages that recipes describe, whose runs go to a folder each, called as the recipe is.

    Args:
        files: the recipes in order, each a YAML file or the name of a shipped one.
        overrides: "name.dotted.key=value", where name is the `name` of the recipe that is meant;
            the rest is as for `load_recipe`.
        out: the folder in which the runs' folders are.

    Raises:
        ConfigError: a recipe is wrong, two have the same name, or an override names none.
    """
    paths = [find_recipe(file) for file in files]
    names = [load_recipe(path).name for path in paths]
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        meant = [name for name in names if override.startswith(f"{name}.")]
        if not meant:
            raise ConfigError(
                f"--set {override[:200]}: of several recipes one is meant: begin with its name, "
                f"such as --set {names[0]}.{override[:200]}. The names are {', '.join(names)}"
            )
        name = max(meant, key=len)
        own[name].append(override.removeprefix(f"{name}."))
    recipes = [load_recipe(path, tuple(own[name])) for path, name in zip(paths, names, strict=True)]
    return link(recipes, [out / recipe.name for recipe in recipes])


def link(recipes: Sequence[Recipe], folders: Sequence[Path]) -> list[Stage]:
    """The recipes as stages of one chain: the model of each later one is, whatever its recipe says,
    the one that the stage before leaves in its folder.

    Args:
        recipes: the recipes in order, at least one.
        folders: the runs' folders, one a recipe.

    Raises:
        ConfigError: two recipes have the same name.
    """
    names = [recipe.name for recipe in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"two recipes of the chain have the name {twice}, and would write to the same folder: "
            "change the key `name` of one"
        )
    stages = [Stage(recipes[0], folders[0])]
    for recipe, out in zip(recipes[1:], folders[1:], strict=True):
        before = stages[-1].out
        # As the folder is given, not absolute: so it is the path that the recipe of a run that was
        # started alone names, and that run is found to be finished.
        path = str(before / RunFolder(before).model.name)
        model = recipe.model.model_copy(update={"path": path})
        stages.append(Stage(recipe.model_copy(update={"model": model}), out))
    return stages


def check(stages: Sequence[Stage], device: str) -> None:
    """Checks the recipes of all stages as far as that goes without data, weights or folders.

    Args:
        stages: the stages in order.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: a recipe is wrong, or the installed vLLM is a build for other devices.
    """
    for stage in stages:
        describe(stage.recipe, stage.out, device)
        if stage.recipe.stage == "grpo" and (problem := check_build(device)):
            raise ConfigError(problem)


def finished(stages: Sequence[Stage]) -> int:
    """How many stages, from the first one on, have finished runs in their folders.

    Raises:
        ConfigError: a folder holds a run of another recipe, a run that trains another model than
            the stage before leaves, or files that are none of a run's; or it cannot be written to.
    """
    count = 0
    for i, stage in enumerate(stages):
        folder = RunFolder(stage.out)
        recipe = calibration.named(stage.recipe, folder.calibration).to_yaml()
        done = folder.finished(recipe)
        if not done:
            folder.check()
        if i and (done or folder.resumes(recipe)):
            before = stages[i - 1]
            if count < i or RunFolder(before.out).begun() > folder.begun():
                raise ConfigError(
                    f"{stage.out} holds a run of {stage.recipe.name} that trained another model "
                    f"than {before.recipe.name} leaves in {before.out}: that stage was, or is to "
                    f"be, run anew. Remove {stage.out}, or choose another folder with --out"
                )
        count += done
    return count


def train(stages: Sequence[Stage], device: str) -> Path:
    """Runs the stages that are not finished, in order, and returns the folder of the last model. A
    run that was cut short goes on from its checkpoint. The first stage that fails ends the chain,
    and its name is printed.

    Args:
        stages: the stages in order, as `link` gives them.
        device: "cpu", "cuda", or "auto" for CUDA where torch sees a device.

    Raises:
        ConfigError: what `check` and `finished` say, or studies of a stage are missing or wrong;
            nothing was started. Also what `valor_plugin.train.train` says of a stage, as all its
            other errors.
    """
    device = choose_device(device)
    check(stages, device)
    done = finished(stages)
    for stage in stages[done + 1 :]:  # the next one looks at its own, before it starts
        data = stage.recipe.data
        for path in filter(None, (data.train, data.validate)):
            try:
                used(stage.recipe, path)
            except ConfigError as error:
                raise stage.recipe.error(str(error)) from None
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.recipe.name}"
        if number <= done:
            click.echo(f"{title}: done before, {stage.out}")
            continue
        click.secho(f"{title}: trains the model {stage.recipe.model.path}", bold=True)
        began = time.monotonic()
        try:
            train_stage(stage.recipe, stage.out, device)
        except Exception:
            click.echo(f"{title}: failed. The same command goes on with this stage.", err=True)
            raise
        click.echo(f"{title}: done in {time.monotonic() - began:.0f} s, {stage.out}")
    return RunFolder(stages[-1].out).model
