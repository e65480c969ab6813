"""Which parts of the policy train.

OpenRLHF's own `--actor.freeze_visual_encoder` trains the language model and freezes the
projector, the reverse of VALOR's stage 2. Here every parameter belongs to exactly one named part,
the wanted parts train and everything else is frozen before DeepSpeed builds the optimizer. The
host sends only trainable parameters to vLLM, so a projector-only run syncs four tensors.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from valor_plugin.llava_med.parts import PARTS, part_of

logger = logging.getLogger(__name__)


def install(actor_class: Any, train: tuple[str, ...]) -> None:
    """Makes every model that `actor_class` loads train exactly the given parts."""
    original = actor_class.__init__

    def init(self: Any, pretrain_or_model: Any, *args: Any, **kwargs: Any) -> None:
        original(self, pretrain_or_model, *args, **kwargs)
        if isinstance(pretrain_or_model, str):
            select(self.model, train)

    actor_class.__init__ = init


def select(model: Any, train: tuple[str, ...]) -> None:
    """Sets requires_grad by part and logs a table.

    Raises:
        ValueError: if the model lacks one of the parts, or has a parameter outside of them all.
    """
    tensors, parameters = Counter(), Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in train)
        tensors[part] += 1
        parameters[part] += getattr(parameter, "ds_numel", parameter.numel())
    if absent := [part for part in train if not tensors[part]]:
        raise ValueError(
            f"model.train asks for {', '.join(absent)}, but {type(model).__name__} has no such part"
        )
    for part in PARTS:
        state = "trains" if part in train else "frozen"
        logger.warning(
            "part %-9s %4d tensors %14s parameters  %s",
            part,
            tensors[part],
            f"{parameters[part]:,}",
            state,
        )
