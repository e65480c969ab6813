"""Writes a LLaVA model folder that transformers, OpenRLHF and vLLM all load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

_TOWER = re.compile(r"vision_tower\.(?!vision_model\.)")


def save(model: Any, processor: Any, folder: Path) -> None:
    """Saves weights, configuration and the whole processor.

    transformers 5.15 saves a model that was built from its configuration with tower keys
    `vision_tower.*` and reads both spellings; vLLM 0.29 reads `vision_tower.vision_model.*` only.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        renamed = {_TOWER.sub("vision_tower.vision_model.", key): t for key, t in tensors.items()}
        save_file(renamed, shard, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text(encoding="utf-8")
        index.write_text(_TOWER.sub("vision_tower.vision_model.", text), encoding="utf-8")
