"""Stage 0, supervised fine-tuning: everything that is checked and written before anything is
started. What is started is `valor_plugin.run.finetune`."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from reward_sdk.errors import ConfigError
from valor_plugin.data.prompts import answer, question
from valor_plugin.data.studies import Study
from valor_plugin.host import machine
from valor_plugin.host.memory import SupervisedMemory, estimate_supervised
from valor_plugin.host.rows import write_rows
from valor_plugin.llava_med import template
from valor_plugin.llava_med.check import check_model
from valor_plugin.recipe import Data, Lora, Recipe, Sft
from valor_plugin.records import SupervisedStep, read_steps
from valor_plugin.run import process
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.process import PreparedRun
from valor_plugin.run.studies import used

_AN_IMAGE = 576  # tokens of an image in LLaVA-Med
_USUAL = 1024  # ours: tokens of a study of one image
_MODULE = "valor_plugin.run.finetune"
SETTINGS = "VALOR_SFT"
"""The variable of the environment in which processes find their settings, as JSON."""


@dataclass(frozen=True)
class SftCommand:
    """What supervised fine-tuning is started with.

    Attributes:
        folder: path of the run's folder.
        device: "cpu" or "cuda".
        devices: number of devices, each with a process of its own.
        launched: whether torch's launcher starts the processes.
        steps: number of optimizer steps that the run takes; 0 where it is not known of how many
            studies.
    """

    folder: Path
    device: str
    devices: int
    launched: bool
    steps: int = 0

    def start(self, scratch: str) -> list[str]:
        """The arguments of Python that start it.

        Args:
            scratch: path of a folder for temporary files, which may be removed afterwards.
        """
        launcher = [*self._launcher(), f"--log-dir={scratch}"] if self.launched else []
        return [*launcher, *self._worker()]

    def _launcher(self) -> list[str]:
        each = f"--nproc-per-node={self.devices}"
        return ["-m", "torch.distributed.run", "--standalone", each]

    def _worker(self) -> list[str]:
        return ["-m", _MODULE, str(self.folder), self.device]

    def __str__(self) -> str:
        """As a person would type it."""
        launcher = self._launcher() if self.launched else []
        return shlex.join(["python", *launcher, *self._worker()])


@dataclass(frozen=True)
class SftSettings:
    """What every process of supervised fine-tuning has in its environment.

    Attributes:
        run: identity of the run, which no other has.
        folder: path of the run's folder.
        sft: how it trains, as `fitted` gives it.
        device: "cpu" or "cuda".
    """

    run: str
    folder: Path
    sft: Sft
    device: str

    def environment(self) -> dict[str, str]:
        """The variables."""
        told = {
            "run": self.run,
            "records": str(self.folder),  # as `RunFolder.processes` looks for
            "sft": self.sft.model_dump(mode="json"),
        }
        result = {
            SETTINGS: json.dumps(told, ensure_ascii=False, separators=(",", ":")),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        devices = self.sft.devices or 1
        if self.device == "cpu":
            cores = max(1, (os.cpu_count() or 1) // devices)
            result["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores))
            # else it is "cpu:1" in a second process, to which torch loads no checkpoint
            result["ACCELERATE_TORCH_DEVICE"] = "cpu"
        elif machine.count_gpus() > devices:  # the Trainer would take them all
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            cards = visible.split(",") if visible else map(str, range(devices))
            result["CUDA_VISIBLE_DEVICES"] = ",".join(list(cards)[:devices])
        return result


def describe(recipe: Recipe, folder: RunFolder, device: str) -> str:
    """What a run would do: its command, and the resolved recipe."""
    return f"# {_command(fitted(recipe, device), folder, device)}\n{recipe.to_yaml()}"


def train(recipe: Recipe, folder: RunFolder, device: str) -> Path:
    """Fine-tunes the recipe's model on its studies' reports; returns the new model's folder.

    Weights that train are kept in float32, with passes in bfloat16 on GPUs; those that do not train
    are bfloat16 there. The model is saved in bfloat16.

    Raises:
        ConfigError: something in the recipe or its files is wrong; nothing was started.
        RunError: the run failed; the message holds its cause.
        KeyboardInterrupt: the user stopped the run; raised after every process of the run has
            ended.
    """
    prepared = prepare(recipe, folder, device)
    model = process.run(prepared)
    if recipe.sft is not None and recipe.sft.early_stop is not None:
        _say_the_best(read_steps(folder.steps, SupervisedStep), prepared.command.steps)
    return model


def _say_the_best(steps: Sequence[SupervisedStep], planned: int) -> None:
    """Says which step's model a run has left, where it could end early."""
    losses = ((step.evaluation_loss, step.step) for step in steps)
    loss, best = min(pair for pair in losses if pair[0] is not None)
    early = "stopped early; " if steps[-1].step < planned else ""
    click.echo(f"{early}the model of step {best}, held-out loss {loss:.3f}")


def prepare(recipe: Recipe, folder: RunFolder, device: str) -> PreparedRun[SupervisedStep]:
    """Checks everything, and writes the run folder.

    Raises:
        ConfigError: something in the recipe or its files is wrong; nothing was started.
    """
    folder.check()
    written = recipe.to_yaml()  # whatever the devices, so that it is known again on others
    resumes = folder.resumes(written)
    recipe = fitted(recipe, device)
    assert recipe.sft is not None  # the recipe's own validator
    positions = check_model(recipe.model.path).positions
    files = {folder.rows: recipe.data.train}
    if recipe.data.validate is not None:
        files[folder.held_out] = recipe.data.validate
    studies = {rows: used(recipe, path) for rows, path in files.items()}
    longest = [longest_of(recipe, files[rows], found, positions) for rows, found in studies.items()]
    command = _command(recipe, folder, device, recipe.sft.steps_of(len(studies[folder.rows])))
    if resumes and recipe.sft.zero_stage and (parts := folder.checkpoint_parts) != command.devices:
        raise ConfigError(
            f"{folder.path} holds checkpoints that ZeRO divided between {parts} devices, and there "
            f"are {command.devices}: set sft.devices={parts}, or choose another folder with --out"
        )
    needed = memory_of(recipe, max(longest)) if device == "cuda" else None
    if needed and not (check := machine.fits(needed, command.devices)).ok:
        click.echo(f"warning: {check.what}: {check.detail}", err=True)
    folder.begin(written, device, str(command), resumes)
    for rows, found in studies.items():
        write_rows(found, recipe.data, rows, resumes, row)
    settings = SftSettings(uuid.uuid4().hex, folder.path, recipe.sft, device)
    return PreparedRun(
        folder, command, settings, resumes, SupervisedStep, process.print_supervised_step
    )


def longest_of(recipe: Recipe, path: str, studies: Sequence[Study], positions: float | None) -> int:
    """Number of tokens of the longest study: images, question and report.

    Args:
        recipe: the recipe of the run.
        path: the studies file.
        studies: those of its studies that are used.
        positions: number of tokens that the language model knows positions for; None where that is
            not known.

    Raises:
        ConfigError: that is more than the positions, or the model's processor cannot be loaded.
    """
    data = recipe.data
    longest, index = template.longest_conversation(
        recipe.model.path,
        [(question(data.prompt, s), len(s.shown(data.most_images)), answer(s)) for s in studies],
    )
    if positions is not None and longest > positions:
        raise recipe.error(
            f"study {studies[index].id!r} of {path} has {longest:,} tokens with its images, and "
            f"the language model in {recipe.model.path} knows {positions:,.0f} positions: shorten "
            "its report, or remove it"
        )
    return longest


def memory_of(recipe: Recipe, longest: int | None = None) -> SupervisedMemory:
    """The GPU memory that a recipe needs, of which `fitted` knows the devices.

    Args:
        recipe: the recipe of the run.
        longest: number of tokens of the longest study; by default what is usual with as many images
            as it shows.

    Raises:
        ConfigError: the configuration of the recipe's model cannot be read.
    """
    from valor_plugin.llava_med.plan import model_sizes

    assert recipe.sft is not None  # the recipe's own validator
    sizes = model_sizes(recipe.model.path)
    adapters = recipe.model.lora or Lora()
    if longest is None:
        longest = _USUAL + _AN_IMAGE * (recipe.data.most_images - 1)
    return estimate_supervised(recipe.sft, recipe.model.trainable, adapters, *sizes, longest)


def fitted(recipe: Recipe, device: str) -> Recipe:
    """The recipe with what its defaults are on a device.

    Args:
        recipe: the recipe of the run, of stage sft.
        device: "cpu" or "cuda"; where no GPU is there, one is assumed.

    Raises:
        ConfigError: there are fewer devices than it asks for, or they cannot share its batches.
    """
    sft = recipe.sft
    assert sft is not None  # the recipe's own validator
    if device == "cpu" and sft.zero_stage:
        raise recipe.error("sft.zero_stage: accelerate starts DeepSpeed on GPUs alone; use 0 here")
    there = machine.count_gpus() if device == "cuda" else 0
    devices = sft.devices or there or 1
    if 0 < there < devices:
        raise recipe.error(f"sft.devices: the run asks for {devices} GPUs and there are {there}")
    share, rest = divmod(sft.batch_size, devices)
    if rest:
        raise recipe.error(
            f"sft.batch_size: {sft.batch_size} studies cannot be shared by {devices} devices: "
            f"{_nearest(sft.batch_size, devices)}, or set sft.devices"
        )
    micro = sft.micro_batch_size or share
    if share % micro:
        would = [str(size) for size in range(1, share + 1) if share % size == 0]
        raise recipe.error(
            f"sft.micro_batch_size: {micro} does not divide the {share} studies of sft.batch_size "
            f"{sft.batch_size} that each of {devices} devices takes; {', '.join(would)} would"
        )
    checkpointing = sft.gradient_checkpointing
    found = {
        "devices": devices,
        "micro_batch_size": micro,
        "gradient_checkpointing": device == "cuda" if checkpointing is None else checkpointing,
    }
    return recipe.model_copy(update={"sft": sft.model_copy(update=found)})


def _nearest(batch: int, devices: int) -> str:
    """Which batches near this one the devices can share."""
    above = -(-batch // devices) * devices
    return " or ".join(str(size) for size in (above - devices, above) if size) + " would do"


def _command(recipe: Recipe, folder: RunFolder, device: str, steps: int = 0) -> SftCommand:
    assert recipe.sft is not None  # the recipe's own validator
    devices = recipe.sft.devices or 1
    launched = devices > 1 or recipe.sft.zero_stage > 0  # DeepSpeed wants a process group
    return SftCommand(folder.path, device, devices, launched, steps)


def row(study: Study, data: Data) -> dict[str, Any]:
    """A study as TRL reads it: its question, its report as the answer, and the paths of the images
    that are shown, which TRL puts before the question."""
    return {
        "prompt": [{"role": "user", "content": question(data.prompt, study)}],
        "completion": [{"role": "assistant", "content": answer(study)}],
        "images": study.shown(data.most_images),
    }
