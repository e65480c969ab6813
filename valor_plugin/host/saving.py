"""What a stage leaves behind: checkpoints to go on from, and a complete model folder.

The host saves the weights and the tokenizer. A later stage, vLLM and transformers also need the
image processor, the processor's own settings and the chat template.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from valor_plugin.host.merged import merged
from valor_plugin.host.settings import HostSettings


def has_checkpoint(checkpoints: Path) -> bool:
    """Whether the host can go on from this folder; a checkpoint that was being written when the run
    ended does not count."""
    folder = checkpoints / "_actor"
    try:
        tag = (folder / "latest").read_text(encoding="utf-8").strip()  # written last
    except OSError:
        return False
    return bool(tag) and any((folder / tag).glob("*"))


def is_whole(model: Path) -> bool:
    """Whether the host has saved its model in this folder: the configuration comes last but for the
    tokenizer."""
    return (model / "config.json").exists()


def save_whole_folder(save: Callable[..., None], settings: HostSettings) -> Callable[..., None]:
    """For `DeepspeedStrategy.save_model`: adapters are added to their weights, and the processor
    lies beside them."""
    from transformers import AutoProcessor

    def save_model(self: Any, model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        with merged(self._unwrap_model(model)):
            save(self, model, tokenizer, output_dir, **kwargs)
        if self.is_rank_0():
            source = self.args.actor.model_name_or_path
            AutoProcessor.from_pretrained(source).save_pretrained(output_dir)

    return save_model
