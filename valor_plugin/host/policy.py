"""Which parts of the policy train.

OpenRLHF's own `--actor.freeze_visual_encoder` trains the language model and freezes the
projector, the reverse of VALOR's stage 2. Here the wanted parts train and everything else is frozen
before DeepSpeed builds the optimizer. The host sends only trainable parameters to vLLM, so a
projector-only run syncs four tensors: 42 MB instead of 15 GB for LLaVA-Med 7B.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from valor_plugin import records
from valor_plugin.host.merged import merged
from valor_plugin.host.settings import HostSettings
from valor_plugin.llava_med import lora
from valor_plugin.llava_med.parts import train_only


def train_parts(init: Callable[..., None], settings: HostSettings) -> Callable[..., None]:
    """For `Actor.__init__`: every model that the host loads by path trains exactly the run's parts,
    which are recorded."""

    def init_and_freeze(self: Any, pretrain_or_model: Any, *args: Any, **kwargs: Any) -> None:
        init(self, pretrain_or_model, *args, **kwargs)
        if isinstance(pretrain_or_model, str):
            if "lora" in settings.trainable:
                lora.add(self.model, settings.lora.rank, settings.lora.alpha)
            table = train_only(self.model, settings.trainable)
            records.write_trainable(Path(settings.records, records.TRAINABLE), table)

    return init_and_freeze


def run_no_code(_: Any, settings: HostSettings) -> Callable[..., NoReturn]:
    """For transformers' `get_class_in_module`, which executes Python files of a model folder: the
    host asks for it everywhere (`trust_remote_code=True`), and LLaVA needs none."""

    def refuse(class_name: str, module_path: str, **_options: Any) -> NoReturn:
        raise RuntimeError(
            f"the model folder's code is not executed: {class_name} of {module_path}"
        )

    return refuse


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


def group_by_shape(_: Any, settings: HostSettings) -> Callable[[Any, float], list[dict]]:
    """For `get_optimizer_grouped_parameters`."""
    return optimizer_groups


def count_synced(
    ppo_train: Callable[..., dict], settings: HostSettings
) -> Callable[[Any, float], dict]:
    """For `ActorPPOTrainer.ppo_train`: its report also has the size of the sync that follows."""

    def ppo_train_and_count(self: Any, kl_ctl: float) -> dict:
        status = ppo_train(self, kl_ctl)
        with merged(self.actor.model.module) as module:
            sent = [p for _, p in module.named_parameters() if p.requires_grad]
        size = sum(getattr(p, "ds_numel", p.shape.numel()) * p.dtype.itemsize for p in sent)
        return {**status, "sync/tensors": len(sent), "sync/bytes": size}

    return ppo_train_and_count


def send_merged(send: Callable[[Any], None], settings: HostSettings) -> Callable[[Any], None]:
    """For `ActorPPOTrainer.broadcast_to_vllm`: the engines get whole weights."""

    def send_whole(self: Any) -> None:
        with merged(self.actor.model.module):
            send(self)

    return send_whole
