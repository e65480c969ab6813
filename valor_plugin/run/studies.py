"""The studies that a run trains on, and what the model is asked about them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from reward_sdk.errors import ConfigError
from valor_plugin.data.prompts import question
from valor_plugin.data.studies import Study
from valor_plugin.llava_med import template
from valor_plugin.recipe import Recipe


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
