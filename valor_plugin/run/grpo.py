"""Stages 1 and 2: everything that is checked and written before anything is started, then the
host."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_sdk.client import RewardClient
from reward_sdk.errors import ConfigError, ServerError
from reward_sdk.reward_set import RewardSet
from reward_sdk.wire import ServedSet
from valor_plugin.data.studies import Study, read_studies, write_host_rows
from valor_plugin.host.command import HostCommand, check_length, check_machine, host_command
from valor_plugin.host.settings import HostSettings
from valor_plugin.llava_med.check import check_model, image_tokens, positions
from valor_plugin.recipe import Lora, Recipe
from valor_plugin.run import calibration, process
from valor_plugin.run.folder import RunFolder

_SERVER_WAIT = 120.0  # ours: seconds for reward servers to become ready


@dataclass(frozen=True)
class Prepared:
    """A run that passed every check; only the host can still fail.

    Attributes:
        folder: of the run; what a restart reads is in it.
        command: the host's.
        settings: what its processes must know.
        resumes: whether it goes on from a checkpoint.
    """

    folder: RunFolder
    command: HostCommand
    settings: HostSettings
    resumes: bool


def train(recipe: Recipe, folder: RunFolder, device: str) -> Path:
    """Trains a recipe of stage grpo and returns the folder of the trained model.

    Raises:
        ConfigError: before anything was started.
        RunError: the host failed; the message holds its cause.
        KeyboardInterrupt: after every process of the run has ended.
    """
    prepared = prepare(recipe, folder, device)
    return process.run(
        folder, prepared.command, prepared.settings, prepared.resumes, process.print_step
    )


def describe(recipe: Recipe, folder: RunFolder, device: str) -> str:
    """What a run would do: the host's command, checked as far as that goes without data, weights or
    Ray."""
    return str(host_command(recipe, folder, device))


def prepare(recipe: Recipe, folder: RunFolder, device: str) -> Prepared:
    """Checks everything, and writes the run folder.

    Raises:
        ConfigError: something in the recipe or its files is wrong; nothing was started.
    """
    model = recipe.model.path
    folder.check_unfinished()
    recipe = calibration.named(recipe, folder.calibration)
    resumes = folder.resumes(recipe.to_yaml())
    command = host_command(recipe, folder, device, resumes)
    check_model(model)
    studies = read_studies(recipe.data.train)
    command = command.for_studies(len(studies))
    check_length(recipe, command, positions(model))
    check_machine(recipe, command, device)

    folder.begin()
    write_host_rows(studies, recipe.data.prompt, folder.rows, must_match=resumes)
    calibration.fit(recipe, studies, folder.calibration, keep=resumes)
    rewards = _served_set(recipe, folder) if recipe.reward_servers else recipe.reward_set()
    _check_needs(rewards.needs, studies, recipe.data.train)
    folder.write_record(recipe.to_yaml(), device)
    folder.command.write_text(f"{command}\n", encoding="utf-8")
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
        rollout_images=command.options["rollout.batch_size"],
        banned_tokens=image_tokens(model),
        seed=recipe.seed,
        deterministic=command.options["train.full_determinism_enable"],
    )
    return Prepared(folder, command, settings, resumes)


def _served_set(recipe: Recipe, folder: RunFolder) -> ServedSet:
    """What the recipe's servers say of their set, which a run that goes on must find unchanged."""
    try:
        with RewardClient(recipe.reward_servers) as client:
            info = client.connect(_SERVER_WAIT)
    except ServerError as error:
        raise recipe.error(f"{error}: start it with `reward-sdk serve`") from None
    record = folder.rewards
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["set"] != info.set:
        raise ConfigError(
            f"{folder.path} holds an unfinished run with another reward set than the server's "
            f"(compare {record.name} and /v1/rewards): choose another folder with --out, or "
            "remove it"
        )
    record.write_text(info.to_json(), encoding="utf-8")
    return info


def _check_needs(needs: Collection[str], studies: Sequence[Study], path: str) -> None:
    if "reference" in needs and all(study.report is None for study in studies):
        raise ConfigError(f"{path}: no study has a 'report', but the rewards compare with one")
