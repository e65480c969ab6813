"""Model folders of strangers: what a loader could execute in them is refused before one sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError, plain

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".th", ".pkl", ".pickle"}
# What trainers leave beside a model, and no loader reads.
_LEFT = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
_WEIGHTS = {*_PICKLES, ".safetensors"}


def check_folder(folder: Path) -> None:
    """Looks whether a folder that transformers will load holds or names code.

    Links are followed, since snapshots of the hub's cache consist of links that lead out of them:
    a link gives a loader nothing to execute that a copy would not, and is looked at like one.

    Raises:
        ConfigError: the folder holds Python files, settings that name some, weights that are
            pickles of more than tensors (see `weights.read_weights`), or anything but files and
            folders, which a loader might wait for forever.
    """
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or not file.exists():  # a link to nothing cannot be loaded
            continue
        if not file.is_file():
            raise ConfigError(f"{file}: no regular file: remove it, or do not use this model")
        if file.suffix == ".py":
            raise ConfigError(
                f"{file}: a model folder that holds Python code, which a loader could execute. No "
                "model here needs any: remove it, or do not use this model"
            )
        if file.suffix == ".json":
            _check_settings(file)
        if file.suffix in _PICKLES and file.name not in _LEFT and file.stem[:9] != "rng_state":
            from reward_sdk.models.weights import check_weights  # with torch

            check_weights(file)


def _check_settings(file: Path) -> None:
    """That no object in a JSON file has a key that leads a loader elsewhere, and that an index of
    weights names files that `check_folder` looks at."""
    named: set[str] = set()  # every key, without a recursion that could end before the loader's

    foreign: list[str] = []

    def note(item: dict[str, Any]) -> dict[str, Any]:
        named.update(item)
        attention = [v for k, v in item.items() if k.strip("_").startswith("attn_implementation")]
        foreign.extend(str(value) for value in attention if "/" in str(value))
        return item

    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=note)
    except (OSError, ValueError):  # a loader cannot read it either
        return
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply: do not use this model") from None
    if "auto_map" in named:
        raise ConfigError(
            f"{file}: names Python code under 'auto_map', which a loader would execute. No model "
            "here needs any: remove the key, or do not use this model"
        )
    if "configuration_files" in named:
        raise ConfigError(
            f"{file}: names another file to be read in its place under 'configuration_files': "
            "remove the key, or do not use this model"
        )
    if foreign:
        raise ConfigError(
            f"{file}: names a kernel of the hub, {plain(repr(foreign[0]))}, which a loader would "
            "fetch and execute: remove 'attn_implementation', or do not use this model"
        )
    shards = content.get("weight_map") if isinstance(content, dict) else None
    for shard in shards.values() if isinstance(shards, dict) else ():
        if Path(str(shard)).name != shard or Path(shard).suffix not in _WEIGHTS:
            raise ConfigError(
                f"{file}: names {plain(repr(shard))}, which is no file of weights beside it: do "
                "not use this model"
            )
