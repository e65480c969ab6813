"""The one door to training: a recipe in, the folder of a trained model out, whatever the stage."""

from __future__ import annotations

from pathlib import Path

from reward_sdk.errors import ConfigError
from valor_plugin.recipe import Recipe
from valor_plugin.run import grpo, sft
from valor_plugin.run.folder import RunFolder


def train(recipe: Recipe, out: Path, device: str) -> Path:
    """Runs one stage and returns the folder of the trained model.

    Args:
        recipe: the recipe of the stage.
        out: the run's folder, whose files `RunFolder` lists.
        device: "cpu", "cuda", or "auto" for CUDA where torch sees a device.

    Raises:
        ConfigError: something in the recipe or its files is wrong, or another run writes to the
            folder; nothing was started.
        RunError: the run failed; the message holds its cause.
        KeyboardInterrupt: the user stopped the run; raised after every process of the run has
            ended.
    """
    folder, device = RunFolder(out), choose_device(device)
    with folder.held():
        if recipe.stage == "sft":
            return sft.train(recipe, folder, device)
        return grpo.train(recipe, folder, device)


def describe(recipe: Recipe, out: Path, device: str) -> str:
    """What `train` would do, checked as far as that goes without data, weights or a device."""
    device = "cpu" if device == "cpu" else "cuda"
    if recipe.stage == "sft":
        return sft.describe(recipe, RunFolder(out), device)
    return grpo.describe(recipe, RunFolder(out), device)


def choose_device(wanted: str) -> str:
    """ "cuda" or "cpu" for "auto"; what was asked for otherwise, if it can be had.

    Raises:
        ConfigError: CUDA is wanted, and torch sees no device.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(
            "--device cuda: torch sees no CUDA device here. Use --device cpu, or install a CUDA "
            "build of torch and check `nvidia-smi`."
        )
    return "cpu"
