"""A small model of LLaVA-Med's shape with its tokenizer and processor, randomly initialised, in the
file format that the real loaders read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from valor_plugin.llava_med import checkpoint
from valor_plugin.llava_med.template import MISTRAL_INSTRUCT


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults have 2.7 M parameters."""

    image: int = 64
    patch: int = 8
    tower: int = 128
    tower_layers: int = 4
    language: int = 192
    language_layers: int = 4
    heads: int = 6
    key_value_heads: int = 2
    vocabulary: int = 512


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A BPE tokenizer for these texts; tags and instruction marks are one token each."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 4, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special: a decoded response must keep its tags.
    marks = ("<report>", "</report>", "[INST]", "[/INST]")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def make_processor(texts: Iterable[str], shape: Shape) -> LlavaProcessor:
    """The processor of images of this shape and of texts like these."""
    size = {"height": shape.image, "width": shape.image}
    images = CLIPImageProcessor(size=size, crop_size=size, do_convert_rgb=True)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=train_tokenizer(texts, shape.vocabulary),
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=MISTRAL_INSTRUCT,
    )


def make_model(processor: LlavaProcessor, shape: Shape, seed: int) -> LlavaForConditionalGeneration:
    """The model with random weights, in float32."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=shape.tower,
        intermediate_size=4 * shape.tower,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=4,
        image_size=shape.image,
        patch_size=shape.patch,
        projection_dim=shape.tower,
    )
    text = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.language,
        intermediate_size=shape.language * 8 // 3,
        num_hidden_layers=shape.language_layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=512,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(shape.image // shape.patch) ** 2,
        projector_hidden_act="gelu",
    )
    return LlavaForConditionalGeneration(config)


def write(folder: Path, texts: Iterable[str], shape: Shape = Shape(), seed: int = 0) -> None:
    """Writes a fresh model folder in bfloat16, as released models are."""
    processor = make_processor(texts, shape)
    model = make_model(processor, shape, seed)
    checkpoint.save(model.bfloat16(), processor, folder)
