"""Writes a LLaVA model folder that transformers, OpenRLHF and vLLM all load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from valor_plugin.llava_med import lora

_SPELLINGS = (
    (re.compile(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)"), ""),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)


def file_name(tensor: str) -> str:
    """The name of a LLaVA tensor in files that transformers, OpenRLHF and vLLM all load, from any
    of the names that transformers 5.15 gives it in memory or in files.

    >>> file_name("model.vision_tower.encoder.layers.0.mlp.fc1.bias")
    'vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias'
    """
    for spelling, usual in _SPELLINGS:
        tensor = spelling.sub(usual, tensor)
    return tensor


def save(model: Any, processor: Any, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Saves weights, configuration and the whole processor; adapters are added to their weights.

    Args:
        model: the LLaVA model.
        processor: its processor.
        folder: the folder to write.
        state: the model's weights by name, where it does not hold them all itself, or not in the
            precision that is wanted.

    transformers 5.15 saves a model that was built from its configuration with tower keys
    `vision_tower.*` and reads both spellings; vLLM 0.29 reads `vision_tower.vision_model.*` only.
    """
    model.save_pretrained(folder, state_dict=state or lora.merged_state(model))
    processor.save_pretrained(folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        renamed = {file_name(key): tensor for key, tensor in tensors.items()}
        save_file(renamed, shard, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text(encoding="utf-8"))
        files = {file_name(key): file for key, file in content["weight_map"].items()}
        index.write_text(json.dumps({**content, "weight_map": files}, indent=1), encoding="utf-8")
