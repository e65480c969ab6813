"""A BERT of 0.3 M random parameters and its vocabulary, the same on every machine and for ever.

numpy's `RandomState` is frozen by its policy of compatibility; torch's generators are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import BertModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """
    no the there is are of in and or with lungs lung clear heart size normal enlarged mild moderate
    severe small large left right bilateral lower upper lobe base apex pleural effusion effusions
    pneumothorax pneumonia edema pulmonary vascular congestion consolidation atelectasis opacity
    nodule mass fracture rib ribs catheter tube line tip stable unchanged new possible may represent
    cannot be excluded evidence acute process disease chest mediastinum mediastinal silhouette
    costophrenic angle blunting cardiomegaly interval increase decrease
    , . : - ( ) / % 0 1 2 3 5
""".split()  # noqa: SIM905
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]
CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(VOCABULARY),
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 192,
    "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


def write_tokenizer(folder: Path) -> Path:
    """The folder with `vocab.txt` and `config.json`, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


def bert_tensors(random: np.random.RandomState) -> dict[str, np.ndarray]:
    """The parameters of a BertModel with pooler, name -> float32 array."""
    hidden, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]

    def normal(*shape: int, scale: float = 0.1) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": normal(CONFIG["vocab_size"], hidden, scale=1),
        "embeddings.position_embeddings.weight": normal(512, hidden),
        "embeddings.token_type_embeddings.weight": normal(2, hidden),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        tensors[f"{name}.weight"] = normal(outputs, inputs, scale=1.5 / inputs**0.5)
        tensors[f"{name}.bias"] = normal(outputs)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + normal(hidden)
        tensors[f"{name}.bias"] = normal(hidden)

    norm("embeddings.LayerNorm")
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{at}.attention.self.{part}", hidden, hidden)
        linear(f"{at}.attention.output.dense", hidden, hidden)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", wide, hidden)
        linear(f"{at}.output.dense", hidden, wide)
        norm(f"{at}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    return tensors


def write_chexbert(path: Path, seed: int = 0) -> Path:
    """A checkpoint of f1chexbert's format with random parameters."""
    import torch

    random = np.random.RandomState(seed)
    state = {f"module.bert.{name}": array for name, array in bert_tensors(random).items()}
    for head in range(14):
        classes = 2 if head == 13 else 4
        state[f"module.linear_heads.{head}.weight"] = random.standard_normal(
            (classes, CONFIG["hidden_size"])
        ).astype(np.float32)
        state[f"module.linear_heads.{head}.bias"] = np.zeros(classes, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    return path


def read_bert(path: Path | str) -> BertModel:
    """The BERT of such a checkpoint, run by transformers."""
    import torch
    from transformers import BertConfig, BertModel

    state = torch.load(path, weights_only=True)["model_state_dict"]
    begin = "module.bert."
    bert = BertModel(BertConfig(**CONFIG)).eval()
    bert.load_state_dict({n[len(begin) :]: t for n, t in state.items() if n.startswith(begin)})
    return bert
