"""The files of a LLaVA-Med v1.5 checkpoint in its original format, read with care."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from reward_sdk.errors import ConfigError, one_line
from reward_sdk.models.weights import read_weights


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        path: the file of weights.
        names: names of the tensors that are taken from the file.
    """

    path: Path
    names: tuple[str, ...]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Its tensors, one at a time; the file is mapped, not read as a whole."""
        try:
            if self.path.suffix == ".safetensors":
                with safe_open(self.path, "pt") as file:
                    for name in self.names:
                        yield name, file.get_tensor(name)
            else:
                tensors = _load_bin(self.path)
                for name in self.names:
                    yield name, tensors[name].clone()  # some share their storage
        except SafetensorError as error:
            raise damaged(self.path, error) from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors, which are not read where the format allows it."""
        if self.path.suffix != ".safetensors":
            return {name: tuple(tensor.shape) for name, tensor in self.tensors()}
        with safe_open(self.path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in self.names}


def damaged(path: Path, error: Exception) -> ConfigError:
    """What to say of a file that cannot be read."""
    return ConfigError(f"{path} is damaged or cut short, fetch it again: {one_line(error)}")


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    tensors = read_weights(path, mapped=True)
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ConfigError(f"{path}: no tensors under names")
    return tensors


def find_shards(folder: Path) -> list[Shard]:
    """The files of weights in a folder, checked against their index.

    Raises:
        ConfigError: there is no file of weights, one is missing or damaged, or one and the index
            disagree.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if index.exists():
            return _indexed(folder, index)
        if single.exists():
            return [Shard(single, tuple(names_in(single)))]
    raise ConfigError(f"{folder}: no weights: neither model.safetensors nor pytorch_model.bin")


def _indexed(folder: Path, index: Path) -> list[Shard]:
    listed: dict[str, list[str]] = {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_plain, weight_map.values())):
        raise ConfigError(f"{index}: its weight_map must give each tensor the name of a file here")
    for name, file in weight_map.items():
        listed.setdefault(file, []).append(name)
    shards = []
    for file, names in sorted(listed.items()):
        path = folder / file
        if not path.exists():
            raise ConfigError(f"{path}: the index names this file, and it is not there")
        found = set(names_in(path))
        if wrong := sorted(found ^ set(names)):
            where = "the file lacks" if wrong[0] in names else f"{index.name} does not list"
            raise ConfigError(f"{path}: {where} {wrong[0]!r} ({len(wrong)} such tensors)")
        shards.append(Shard(path, tuple(names)))
    return shards


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file


def names_in(path: Path) -> list[str]:
    """The names of a file's tensors; ConfigError if it is damaged."""
    if path.suffix == ".bin":
        return list(_load_bin(path))
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ConfigError, naming the file, if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not an object")
    return content


def original_config(source: Path) -> dict[str, Any]:
    """The configuration, of a kind that can be converted.

    Raises:
        ConfigError: the configuration is another model's, or has settings that are not known here.
    """
    config = read_json(source / "config.json")
    if config.get("model_type") != "llava_mistral":
        found = config.get("model_type") or config.get("architectures") or "nothing known"
        raise ConfigError(
            f"{source / 'config.json'}: a LLaVA-Med v1.5 checkpoint has the model_type "
            f"'llava_mistral', this one is {found!r}"
        )
    wanted = {
        "mm_projector_type": ("mlp2x_gelu",), "mm_vision_select_feature": ("patch",),
        "mm_use_im_start_end": (False,), "mm_use_im_patch_token": (False,),
        # Without it the original does not pad.
        "image_aspect_ratio": ("square", "pad"), "mm_patch_merge_type": ("flat",),
    }  # fmt: skip
    for key, allowed in wanted.items():
        value = config.setdefault(key, allowed[0])
        if value not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ConfigError(f"{source / 'config.json'}: {key} {value!r}: only {known} is known")
    for key, kind, what in (
        ("mm_vision_tower", str, "a text"),
        ("vocab_size", int, "a number"),
        ("hidden_size", int, "a number"),
    ):
        if not isinstance(config.get(key), kind) or not config[key]:
            raise ConfigError(f"{source / 'config.json'}: no {key}, which is {what}")
    return config
