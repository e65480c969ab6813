"""Which parts of the policy train.

OpenRLHF's own `--actor.freeze_visual_encoder` trains the language model and freezes the
projector, the reverse of VALOR's stage 2. Here the wanted parts train and everything else is frozen
before DeepSpeed builds the optimizer. The host sends only trainable parameters to vLLM, so a
projector-only run syncs four tensors: 42 MB instead of 15 GB for LLaVA-Med 7B. Each sync is logged.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from valor_plugin.host.images import Encoder
from valor_plugin.llava_med import lora
from valor_plugin.llava_med.parts import train_only

logger = logging.getLogger(__name__)


def optimizer_groups(model: Any, weight_decay: float) -> list[dict]:
    """What trains: matrices with weight decay, biases and norms without. The host tells them apart
    by names, and those of CLIP's norms are not among them."""

    def trains(matrix: bool) -> list:
        # ZeRO-3 empties a parameter, and notes its shape
        return [p for p in model.parameters() if p.requires_grad
                and (len(getattr(p, "ds_shape", p.shape)) > 1) == matrix]  # fmt: skip

    return [
        {"params": trains(matrix=True), "weight_decay": weight_decay},
        {"params": trains(matrix=False), "weight_decay": 0.0},
    ]


def install(parts: tuple[str, ...], rank: int, alpha: float, most_images: int) -> None:
    """Makes every model that the host loads by path train exactly the given parts, and read images
    as `valor_plugin.host.images` sends them."""
    from openrlhf.models.actor import Actor

    original = Actor.__init__

    def init(self: Any, pretrain_or_model: Any, *args: Any, **kwargs: Any) -> None:
        original(self, pretrain_or_model, *args, **kwargs)
        if isinstance(pretrain_or_model, str):
            if "lora" in parts:
                lora.add(self.model, rank, alpha)
            train_only(self.model, parts)
            llava = self.model.model
            llava.get_image_features = Encoder(llava, most_images)

    Actor.__init__ = init

    from openrlhf.utils.deepspeed import deepspeed

    deepspeed.get_optimizer_grouped_parameters = optimizer_groups

    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    send = ActorPPOTrainer.broadcast_to_vllm

    def send_and_log(self: Any) -> None:
        began = time.perf_counter()
        module = self.actor.model.module
        with lora.plain(module):
            sent = [p for _, p in module.named_parameters() if p.requires_grad]
            send(self)
        size = sum(getattr(p, "ds_numel", p.shape.numel()) * p.dtype.itemsize for p in sent)
        seconds = time.perf_counter() - began
        if self.strategy.is_rank_0():
            line = "weights to vLLM: %d tensors, %.3f MB in %.2f s"
            logger.warning(line, len(sent), size / 1e6, seconds)

    ActorPPOTrainer.broadcast_to_vllm = send_and_log
