"""What becomes of a LLaVA-Med v1.5 checkpoint: names, configuration, tokenizer and processor.

Decisions:

* **Tower.** A checkpoint may hold the vision tower's weights, which the original loader ignores in
  favour of the folder that `mm_vision_tower` names. Here the checkpoint's are taken where it has
  them, because they are what was trained; `tower` chooses otherwise.
* **Image token.** The original has none in its vocabulary. `<image>` becomes the first free id. Its
  row of the output layer is the mean of all rows, so its logit is the mean of all logits and never
  the largest; generation is told to suppress it, and rollouts forbid it.
* **Tokenizer.** The original tokenises the texts around an image one by one, each with the space
  that sentencepiece puts in front: `legacy` behaviour, written out as a fast tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reward_sdk.errors import ConfigError, one_line
from reward_sdk.models.folders import check_folder
from valor_plugin.llava_med.checkpoint import file_name
from valor_plugin.llava_med.original import (
    Shard,
    damaged,
    find_shards,
    original_config,
    read_json,
)
from valor_plugin.llava_med.parts import part_of
from valor_plugin.llava_med.template import MISTRAL_INSTRUCT

IMAGE_TOKEN = "<image>"

# Vision towers that published checkpoints name by their place on the hub, as their files say.
_KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip

_DERIVED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")  # buffers of old files
_NAMES = (
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.vision_tower\.(?:vision_tower\.)?vision_model\."),
     "vision_tower.vision_model."),
    # Of a tower's own folder, as older and newer transformers write it.
    (re.compile(r"^vision_model\."), "vision_tower.vision_model."),
    (re.compile(r"^(?=embeddings\.|pre_layrnorm\.|encoder\.|post_layernorm\.)"),
     "vision_tower.vision_model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.(?=embed_tokens\.|layers\.|norm\.)"), "language_model.model."),
)  # fmt: skip


def target_name(name: str) -> str:
    """The name of an original tensor in a Hugging Face LLaVA file.

    >>> target_name("model.mm_projector.2.bias")
    'multi_modal_projector.linear_2.bias'

    Raises:
        ConfigError: LLaVA-Med v1.5 has no such tensor.
    """
    for pattern, replacement in _NAMES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    raise ConfigError(f"tensor {name!r} is none of LLaVA-Med v1.5's: is this another model?")


@dataclass(frozen=True)
class Plan:
    """What becomes of a checkpoint, known before anything is written.

    Attributes:
        shards: files of weights of the checkpoint and, where the tower comes from elsewhere, of the
            tower.
        tower: where the tower's weights come from: "the checkpoint", or the path of a folder.
        config: configuration of the converted model, a `LlavaConfig`.
        processor: processor of the converted model, a `LlavaProcessor`.
        shapes: name in the converted files -> shape of each tensor that the model needs.
        rows: number of rows of the original's embeddings, before `<image>` got its own.
        image_token: token id of `<image>`.
        unused: names of tensors of the source that are not needed.
    """

    shards: list[Shard]
    tower: str
    config: Any
    processor: Any
    shapes: dict[str, tuple[int, ...]]
    rows: int
    image_token: int
    unused: tuple[str, ...]


def plan(source: Path, tower: str | None = None) -> Plan:
    """Reads everything but the tensors, and checks that they will fit.

    Args:
        source: folder of the LLaVA-Med checkpoint.
        tower: "checkpoint" for the tower inside the checkpoint, or a CLIP folder; by default the
            checkpoint's tower where it has one, else the folder that it names.

    Raises:
        ConfigError: a file is missing or wrong; names it, what is wrong with it, and what to do.
    """
    check_folder(source)
    original = original_config(source)
    shards = find_shards(source)
    inside = any(_is_tower(name) for shard in shards for name in shard.names)
    if tower == "checkpoint" and not inside:
        raise ConfigError(f"{source}: the checkpoint has no vision tower; name a CLIP folder")
    named = original["mm_vision_tower"]
    folder = _tower_folder(source, tower if tower != "checkpoint" else None, named)
    unused: tuple[str, ...] = ()
    where = "the checkpoint"
    if tower not in (None, "checkpoint") or not inside:
        if folder is None:
            raise ConfigError(
                f"{source}: the checkpoint has no vision tower, and {named!r}, which it names, is "
                "no folder here: fetch it and pass --tower FOLDER"
            )
        where = str(folder)
        unused = tuple(name for shard in shards for name in shard.names if _is_tower(name))
        shards = [_without(shard, _is_tower) for shard in shards]
        own = find_shards(folder)
        # A whole CLIPModel's tower has a prefix, a tower that transformers 5.15 saved has none.
        prefix = "vision_model." if any("vision_model." in n for s in own for n in s.names) else ""
        shards += [_without(shard, lambda n: not n.startswith(prefix)) for shard in own]
    unused += tuple(name for shard in shards for name in shard.names if _DERIVED.search(name))
    shards = [_without(shard, _DERIVED.search) for shard in shards]
    shards = [shard for shard in shards if shard.names]
    tokenizer, image_token = _tokenizer(source, original["vocab_size"])
    pad = original["image_aspect_ratio"] == "pad"
    try:
        config = _config(original, _vision_config(folder, named), image_token)
        processor = _processor(tokenizer, config, folder, pad)
        shapes = model_shapes(config)
    except ConfigError:
        raise
    except Exception as error:  # transformers raises anything for a value of the wrong kind
        raise ConfigError(
            f"{source / 'config.json'} or {folder or 'its tower'} has a value that does not work: "
            f"{one_line(error)}"
        ) from error
    if config.tie_word_embeddings and not any("lm_head.weight" in s.names for s in shards):
        shapes.pop("language_model.lm_head.weight")
    _check_names(shards, shapes)
    rows = original["vocab_size"]
    return Plan(shards, where, config, processor, shapes, rows, image_token, unused)


def _is_tower(name: str) -> bool:
    return name.startswith("model.vision_tower.")


def _without(shard: Shard, drop: Callable[[str], Any]) -> Shard:
    return Shard(shard.path, tuple(name for name in shard.names if not drop(name)))


def _tower_folder(source: Path, tower: str | None, named: str) -> Path | None:
    """The CLIP folder, if it is here."""
    if tower is not None:
        if not (Path(tower) / "config.json").exists():
            raise ConfigError(f"{tower}: no CLIP folder: it has no config.json")
        return Path(tower)
    for folder in (source / named, source.parent / named, Path(named)):
        if (folder / "config.json").exists():
            return folder
    return None


def _vision_config(folder: Path | None, named: str) -> dict[str, Any]:
    if folder is not None:
        config = read_json(folder / "config.json")
        return config.get("vision_config", config)
    if named in _KNOWN_TOWERS:
        return _KNOWN_TOWERS[named]
    raise ConfigError(
        f"the vision tower {named!r} is no folder here and none that is known: fetch it and pass "
        "--tower FOLDER, for its configuration"
    )


def _tokenizer(source: Path, vocabulary: int) -> tuple[Any, int]:
    from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerFast

    if not (source / "tokenizer.model").exists():
        raise ConfigError(f"{source}: no tokenizer.model (sentencepiece)")
    try:
        slow = LlamaTokenizer.from_pretrained(source, legacy=True)
    except Exception as error:  # sentencepiece raises anything
        raise damaged(source / "tokenizer.model", error) from None
    slow.add_special_tokens(
        {"additional_special_tokens": [AddedToken(IMAGE_TOKEN, special=True, normalized=False)]}
    )
    image_token = slow.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_token > vocabulary:
        raise ConfigError(
            f"{source}: the tokenizer has {image_token} tokens, the model {vocabulary}: they do "
            "not belong together"
        )
    # Saved as the class that it is, transformers would read it back without `legacy`.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=slow._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="right", model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return tokenizer, image_token


def _config(original: dict[str, Any], vision: dict[str, Any], image_token: int) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig, MistralConfig

    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings",
        "initializer_range", "rms_norm_eps", "sliding_window", "attention_dropout", "use_cache",
        "bos_token_id", "eos_token_id", "tie_word_embeddings",
    )  # fmt: skip
    text = MistralConfig(
        **{key: original[key] for key in keys if key in original},
        vocab_size=max(original["vocab_size"], image_token + 1),
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": original.get("rope_theta", 1e4)},
    )
    tower = CLIPVisionConfig(**{k: v for k, v in vision.items() if k in _KNOWN_KEYS})
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )


_KNOWN_KEYS = {*_KNOWN_TOWERS["openai/clip-vit-large-patch14-336"], "num_channels",
               "attention_dropout", "initializer_factor", "initializer_range"}  # fmt: skip


def _processor(tokenizer: Any, config: Any, folder: Path | None, pad: bool) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = config.vision_config.image_size
    own = folder / "preprocessor_config.json" if folder is not None else None
    given = read_json(own) if own is not None and own.exists() else {}
    keys = ("image_mean", "image_std", "resample", "rescale_factor")
    images = LlavaImageProcessorPil(
        **{key: given[key] for key in keys if given.get(key) is not None},
        do_pad=pad, do_convert_rgb=True, size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=MISTRAL_INSTRUCT,
    )


def model_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """What a model of this configuration needs: the names that files have, and shapes."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    return {file_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def model_sizes(path: str) -> tuple[dict[str, tuple[int, ...]], Any]:
    """The shapes of a model folder's tensors, as its configuration says, and the configuration of
    its language model.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from transformers import LlavaConfig

    try:
        config: Any = LlavaConfig.from_pretrained(path)
        return model_shapes(config), config.text_config
    except Exception as error:  # transformers raises anything for a configuration
        raise ConfigError(f"model.path: config.json of {path}: {one_line(error)}") from None


def _check_names(shards: list[Shard], shapes: dict[str, tuple[int, ...]]) -> None:
    seen: dict[str, Path] = {}
    for shard in shards:
        for name in shard.names:
            target = target_name(name)
            if target in seen:
                raise ConfigError(f"{target} is in {seen[target]} and again in {shard.path}")
            if target not in shapes:
                raise ConfigError(
                    f"{shard.path}: {name!r} has no place in a model of this configuration"
                )
            seen[target] = shard.path
    if missing := sorted(shapes.keys() - seen.keys()):
        part = part_of(missing[0])
        raise ConfigError(
            f"{len(missing)} tensors are missing, among them {missing[0]!r} of the {part}: the "
            "checkpoint is incomplete, or its config.json belongs to another one"
        )
