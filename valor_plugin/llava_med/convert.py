"""LLaVA-Med v1.5 in its original format becomes a Hugging Face LLaVA folder.

The released checkpoint is a `llava_mistral` model, which transformers cannot load. Its tensors are
those of `LlavaForConditionalGeneration` under other names; what else differs stands in
configuration, tokenizer and image processor: see `plan`. Converted, the model gives the original's
token ids and pixels exactly (with the image processor's PIL backend) and its logits to 2e-5 in
float32.

Shards are converted one at a time into `DST.partial`, which is renamed at the end, so that `DST` is
whole or not there; a conversion that was cut short goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reward_sdk.errors import ConfigError, one_line
from valor_plugin.llava_med.original import Shard, names_in, read_json
from valor_plugin.llava_med.parts import PARTS, part_of
from valor_plugin.llava_med.plan import IMAGE_TOKEN, Plan, plan, target_name

_ROOM = 64 << 20  # ours: bytes to spare for everything that is no weights
_STATE = "conversion.json"  # in the folder while it is not whole
_GROWN = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def convert(
    source: Path,
    target: Path,
    tower: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Converts a LLaVA-Med v1.5 checkpoint to a Hugging Face LLaVA folder; see the module.

    Args:
        source: folder of the LLaVA-Med checkpoint.
        target: folder to write; it may be there if it is empty.
        tower: "checkpoint" for the tower inside the checkpoint, or a CLIP folder; by default the
            checkpoint's tower where it has one, else the folder that it names.
        progress: called after every shard with the number of bytes that are done and of all bytes.

    Returns:
        What was done, a few lines for people.

    Raises:
        ConfigError: the source is wrong, the target is not empty, or another conversion is writing
            it.
        OSError: the target cannot be written; what is there is kept, and used when it is converted
            again.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir()) or target.is_mount()):
        raise ConfigError(f"{target} is there already: name a new folder, or remove this one")
    made = plan(source, tower)
    partial = target.with_name(f"{target.name}.partial")
    _resume(partial, source, made)
    with (partial / _STATE).open() as state:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{partial}: another conversion is writing there") from None
        _convert(made, partial, progress)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    (target / _STATE).unlink()
    return _report(made, target)


def _convert(made: Plan, partial: Path, progress: Callable[[int, int], object]) -> None:
    sizes = [shard.path.stat().st_size for shard in made.shards]
    weights: dict[str, str] = {}
    for number, (shard, size) in enumerate(zip(made.shards, sizes, strict=True), 1):
        name = f"model-{number:05}-of-{len(sizes):05}.safetensors"
        if not (partial / name).exists():
            _check_room(partial, size)
            _write(made, shard, partial / name)
        weights |= {target_name(original): name for original in shard.names}
        progress(sum(sizes[:number]), sum(sizes))
    _finish(made, partial, weights)


def _resume(partial: Path, source: Path, made: Plan) -> None:
    """Makes the folder, or checks that what is in it was begun from the same files."""
    paths = [*(shard.path for shard in made.shards), source / "tokenizer.model"]
    files = {str(p.resolve()): [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}
    config = hashlib.sha256(made.config.to_json_string().encode()).hexdigest()
    state = {"files": files, "tower": made.tower, "config": config}
    if partial.exists() and any(partial.iterdir()):
        if not (partial / _STATE).exists() or read_json(partial / _STATE) != state:
            raise ConfigError(f"{partial} is there from another conversion: remove it")
        return
    partial.mkdir(parents=True, exist_ok=True)
    unfinished = partial.with_name(f"{partial.name}.state")
    unfinished.write_text(json.dumps(state, indent=1), encoding="utf-8")
    unfinished.rename(partial / _STATE)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _ROOM:
        raise ConfigError(
            f"{folder}: {free >> 20} MB are free, the next shard needs {(size + _ROOM) >> 20}: "
            "make room and give the same command again, it goes on from here"
        )


def _write(made: Plan, shard: Shard, path: Path) -> None:
    tensors = {}
    for name, tensor in shard.tensors():
        target = target_name(name)
        rows, *columns = made.shapes[target]
        wanted = (made.rows, *columns) if target in _GROWN else (rows, *columns)
        if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
            raise ConfigError(
                f"{shard.path}: {name!r} is {tensor.dtype} of the shape {tuple(tensor.shape)}, the "
                f"configuration wants floating point of {wanted}"
            )
        if target in _GROWN:
            tensor = _grown(tensor, made.image_token, rows)
        tensors[target] = tensor.contiguous()
    unfinished = path.with_suffix(".tmp")
    try:
        save_file(tensors, unfinished, metadata={"format": "pt"})
    except SafetensorError as error:  # also for a full disk
        raise ConfigError(
            f"{unfinished} cannot be written: {one_line(error)}; when it can, give the same "
            "command again, it goes on from here"
        ) from None
    unfinished.rename(path)


def _grown(tensor: torch.Tensor, image_token: int, rows: int) -> torch.Tensor:
    """With a row for the image token: the mean of the others, see the module."""
    grown = tensor.new_empty(rows, tensor.shape[1])
    grown[: len(tensor)] = tensor
    grown[image_token] = tensor[:image_token].float().mean(0).to(tensor.dtype)
    return grown


def _finish(made: Plan, folder: Path, weights: dict[str, str]) -> None:
    """Everything beside the weights."""
    from transformers import GenerationConfig

    written = [name for path in sorted(folder.glob("*.safetensors")) for name in names_in(path)]
    if sorted(written) != sorted(made.shapes):
        raise ConfigError(f"{folder}: the files do not hold the model: remove it and begin anew")
    text = made.config.text_config
    made.config.architectures = ["LlavaForConditionalGeneration"]
    made.config.dtype = _dtype(folder / min(weights.values()))
    made.config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id, suppress_tokens=[made.image_token],
    ).save_pretrained(folder)  # fmt: skip
    made.processor.save_pretrained(folder)
    index = {
        "metadata": {"total_size": sum(p.stat().st_size for p in folder.glob("*.safetensors"))},
        "weight_map": dict(sorted(weights.items())),
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=1), encoding="utf-8")


def _dtype(path: Path) -> torch.dtype:
    with safe_open(path, "pt") as file:
        return file.get_tensor(min(file.keys())).dtype


def _report(made: Plan, target: Path) -> str:
    lines = []
    for part in PARTS:
        shapes = [shape for name, shape in made.shapes.items() if part_of(name) == part]
        size = sum(torch.Size(shape).numel() for shape in shapes)
        lines.append(f"{part:<9} {len(shapes):4d} tensors {size:14,} parameters")
    lines += [
        f"vision tower: from {made.tower}",
        f"image token: {IMAGE_TOKEN}, id {made.image_token}",
    ]
    if made.unused:
        lines.append(f"not needed: {len(made.unused)} tensors of the source, e.g. {made.unused[0]}")
    return "\n".join([*lines, f"model: {target}"])
