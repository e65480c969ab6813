"""The studies that a run trains on, and what the model is asked about them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from reward_sdk.errors import ConfigError
from valor_plugin.data.prompts import question
from valor_plugin.data.studies import Study, read_studies
from valor_plugin.llava_med import template
from valor_plugin.recipe import Recipe


def used(recipe: Recipe, path: str) -> Sequence[Study]:
    """The studies of a file that a recipe uses: those that have an image which it shows and, in
    stage sft, a report. How many are left out is said on the screen.

    Raises:
        ConfigError: the file is wrong, or no study can be used.
    """
    studies: Sequence[Study] = read_studies(path)
    if recipe.stage == "sft":
        studies = _with_reports(path, studies)
    return shown(recipe, path, studies)


def _with_reports(path: str, studies: Sequence[Study]) -> Sequence[Study]:
    found = [study for study in studies if study.report]
    if not found:
        raise ConfigError(f"{path}: no study has a 'report' to learn from")
    if without := len(studies) - len(found):
        click.echo(f"left out of {path}: {without:,} of {len(studies):,} studies, without a report")
    return found


def shown(recipe: Recipe, path: str, studies: Sequence[Study]) -> Sequence[Study]:
    """Those of a file's studies that have an image which the recipe shows; how many have none is
    said on the screen.

    Raises:
        ConfigError: none has one.
    """
    if recipe.data.images == "all":
        return studies
    frontal = [study for study in studies if study.is_frontal]
    if studies and not frontal:
        raise ConfigError(
            f"{path}: no study has a frontal image; `data.images: all` in the recipe "
            "shows the others, too"
        )
    if without := len(studies) - len(frontal):
        click.echo(
            f"left out of {path}: {without:,} of {len(studies):,} studies, which have no frontal "
            "image (`data.images: all` keeps them)"
        )
    return frontal


def longest_prompt(recipe: Recipe, studies: Sequence[Study]) -> int:
    """Number of tokens of the longest prompt, images included.

    Raises:
        ConfigError: the model's processor cannot be loaded, or its chat template writes none.
    """
    data = recipe.data
    asked = ((question(data.prompt, s), len(s.shown(data.most_images))) for s in studies)
    return template.longest_prompt(recipe.model.path, asked)
