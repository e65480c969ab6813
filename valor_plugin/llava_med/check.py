"""Whether a model folder can be loaded, and what a run must know of it; by its files alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reward_sdk.errors import ConfigError, one_line
from reward_sdk.models.folders import check_folder


@dataclass(frozen=True)
class ModelFolder:
    """What a run must know of its model.

    Attributes:
        image_tokens: the id of the image token, which a policy must never write; empty without one.
        positions: number of tokens that the language model knows positions for; None where that is
            not limited.
    """

    image_tokens: tuple[int, ...]
    positions: float | None


def check_model(path: str) -> ModelFolder:
    """Looks whether a folder can be loaded: a LLaVA configuration, whole weights, a processor.

    Raises:
        ConfigError: the folder cannot be loaded; says what it lacks, and where to get that. Or
            `check_folder` refuses it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"model.path: there is no folder {path}. A stage starts from a model "
            "folder; run the stage before it, or save one with transformers."
        )
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(f"model.path: {path} holds no config.json, so it is no model folder")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:  # neither JSON nor even text
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"model.path: config.json of {path} is no JSON object")
    if content.get("model_type") == "llava_mistral":
        raise ConfigError(
            f"model.path: {path} is LLaVA-Med in its original format, which transformers cannot "
            f"load: make a model folder of it with `openrlhf convert {path} NEW_FOLDER`"
        )
    if (kind := content.get("model_type")) != "llava":
        raise ConfigError(f"model.path: {path} is of type {kind!r}; this plugin trains 'llava'")
    if (content.get("vision_config") or {}).get("model_type") == "pixtral":
        raise ConfigError(
            f"model.path: {path} has a Pixtral tower, whose images differ in size; this plugin "
            "trains LLaVAs whose images have one size (CLIP, SigLIP)"
        )
    check_folder(folder)
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"model.path: {path} holds an adapter (adapter_config.json), which transformers would "
            "load over its weights: merge it into them, or remove it"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"model.path: {path} holds no weights (*.safetensors)")
    _check_weights(folder)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"model.path: {path} has no {name}, so its processor cannot be loaded. Save it "
                "with `AutoProcessor.from_pretrained(SOURCE).save_pretrained(FOLDER)`."
            )
    token = content.get("image_token_id", content.get("image_token_index"))
    return ModelFolder(() if token is None else (token,), _positions(path))


def _check_weights(folder: Path) -> None:
    """That every safetensors shard is there and whole, by the headers alone."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"model.path: {index} is cut short or damaged") from None
        if lacking := sorted(name for name in named if not (folder / name).is_file()):
            raise ConfigError(
                f"model.path: {folder} lacks {', '.join(lacking)}, which its index names"
            )
    for shard in folder.glob("*.safetensors"):
        try:
            with safe_open(shard, "np"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"model.path: {shard} is cut short or damaged: {error}") from None
        except OSError:  # safetensors says "no such file" of one that may not be read
            raise ConfigError(f"model.path: {shard} cannot be read: check who may") from None


def _positions(model: str) -> float | None:
    from transformers import AutoConfig

    try:
        language = AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # transformers raises anything for a configuration
        raise ConfigError(f"model.path: config.json of {model}: {one_line(error)}") from None
    rope = getattr(language, "rope_parameters", None) or {}
    trained = getattr(language, "max_position_embeddings", None)
    return trained and trained * rope.get("factor", 1)
