"""Stages 1 and 2: everything that is checked and written before anything is started, then the
host."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from valor_plugin.host import cluster, machine
from valor_plugin.host.command import host_command
from valor_plugin.host.memory import Memory, estimate
from valor_plugin.host.rows import write_rows
from valor_plugin.host.settings import HostSettings
from valor_plugin.host.versions import check_build
from valor_plugin.llava_med.check import check_model
from valor_plugin.recipe import Lora, Recipe
from valor_plugin.records import Step
from valor_plugin.run import calibration, process
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.process import PreparedRun
from valor_plugin.run.rewards import reward_set
from valor_plugin.run.studies import longest_prompt, used


def train(recipe: Recipe, folder: RunFolder, device: str) -> Path:
    """Trains a recipe of stage grpo and returns the folder of the trained model.

    Raises:
        ConfigError: something in the recipe or its files is wrong; nothing was started.
        RunError: the host failed; the message holds its cause.
        KeyboardInterrupt: the user stopped the run; raised after every process of the run has
            ended.
    """
    return process.run(prepare(recipe, folder, device))


def describe(recipe: Recipe, folder: RunFolder, device: str) -> str:
    """What a run would do: the host's command, checked as far as that goes without data, weights or
    Ray."""
    return str(host_command(recipe, folder, device))


def prepare(recipe: Recipe, folder: RunFolder, device: str) -> PreparedRun[Step]:
    """Checks everything, and writes the run folder.

    Raises:
        ConfigError: something in the recipe or its files is wrong; nothing was started.
    """
    folder.check()
    recipe = calibration.named(recipe, folder.calibration)
    resumes = folder.resumes(recipe.to_yaml())
    command = host_command(recipe, folder, device, resumes)
    model = check_model(recipe.model.path)
    studies = used(recipe, recipe.data.train)
    prompt = longest_prompt(recipe, studies)
    command = command.fitted(recipe, len(studies), model.positions, prompt, device)
    if problem := check_build(device):
        raise ConfigError(problem)
    click.echo(f"attention: {command.options['ds.attn_implementation']}")
    if device == "cuda" and cluster.joined() is None:
        needed = memory_of(recipe, command.options)
        colocated = command.options["train.colocate_all"]
        for check in (*machine.system(colocated), machine.fits(needed, command.gpus)):
            if not check.ok:
                click.echo(f"warning: {check.what}: {check.detail}", err=True)

    folder.begin(recipe.to_yaml(), device, str(command), resumes)
    write_rows(studies, recipe.data, folder.rows, must_match=resumes)
    calibration.fit(recipe, studies, folder.calibration, keep=resumes)
    rewards = reward_set(recipe, studies, folder.rewards)
    settings = HostSettings(
        run=uuid.uuid4().hex,
        records=str(folder.path),
        device=device,
        trainable=recipe.model.trainable,
        lora=recipe.model.lora or Lora(),
        advantage=recipe.advantage,
        rewards=recipe.rewards or {},
        served=None if isinstance(rewards, RewardSet) else rewards.set,
        bounds=rewards.bounds,
        log_keys=tuple(rewards.log_keys),
        actors=command.actors,
        rollout_images=command.rollout_images,
        banned_tokens=model.image_tokens,
        seed=recipe.seed,
        deterministic=command.deterministic,
    )
    return PreparedRun(folder, command, settings, resumes, Step, process.print_step)


def memory_of(recipe: Recipe, options: Mapping[str, Any]) -> Memory:
    """The GPU memory that a recipe needs under the host's options.

    Raises:
        ConfigError: the configuration of the recipe's model cannot be read.
    """
    from valor_plugin.llava_med.plan import model_sizes

    sizes = model_sizes(recipe.model.path)
    return estimate(options, recipe.model.trainable, recipe.model.lora or Lora(), *sizes)
