"""Which parts of the policy train.

OpenRLHF's own `--actor.freeze_visual_encoder` trains the language model and freezes the
projector, the reverse of VALOR's stage 2. Here the wanted parts train and everything else is frozen
before DeepSpeed builds the optimizer. The host sends only trainable parameters to vLLM, so a
projector-only run syncs four tensors.
"""

from __future__ import annotations

from typing import Any

from valor_plugin.llava_med.parts import train_only


def install(parts: tuple[str, ...]) -> None:
    """Makes every model that the host loads by path train exactly the given parts."""
    from openrlhf.models.actor import Actor

    original = Actor.__init__

    def init(self: Any, pretrain_or_model: Any, *args: Any, **kwargs: Any) -> None:
        original(self, pretrain_or_model, *args, **kwargs)
        if isinstance(pretrain_or_model, str):
            train_only(self.model, parts)

    Actor.__init__ = init
