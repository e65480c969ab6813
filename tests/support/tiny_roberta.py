"""A RoBERTa of random parameters with six layers, as distilroberta-base has, and its tokenizer."""

import json
from pathlib import Path

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WORDS = """
    no the left right pleural effusion edema lungs are clear heart normal small
""".split()  # noqa: SIM905


def write_roberta(folder: Path) -> Path:
    """The folder, as transformers reads it: every word of `WORDS` within a text is one token, all
    others are read by their bytes."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        merges |= dict.fromkeys(("Ġ" + word[:i], word[i]) for i in range(len(word)))
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), *map("".join, merges)]
    config = RobertaConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = RobertaModel(config)
    random = np.random.RandomState(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                normal = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
                parameter.copy_(torch.from_numpy(normal) / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", "model_max_length": 512})
    )
    return folder
