"""What a stage must leave behind for the next one: a complete model folder.

The host saves the weights and the tokenizer. A later stage, vLLM and transformers also need the
image processor, the processor's own settings and the chat template.
"""

from __future__ import annotations

from typing import Any

from valor_plugin.llava_med import lora


def install() -> None:
    from openrlhf.utils.deepspeed import DeepspeedStrategy
    from transformers import AutoProcessor

    original = DeepspeedStrategy.save_model

    def save_model(self: Any, model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        with lora.plain(self._unwrap_model(model)):
            original(self, model, tokenizer, output_dir, **kwargs)
        if self.is_rank_0():
            source = self.args.actor.model_name_or_path
            AutoProcessor.from_pretrained(source).save_pretrained(output_dir)

    DeepspeedStrategy.save_model = save_model
