"""Stand-ins for what OpenRLHF, DeepSpeed and vLLM can only do on CUDA. Imported in CPU mode only.

The host's algorithm is untouched: what is replaced is device selection, the flash-attention
helpers that it imports at module level, and the transport of weights to vLLM.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}

LOGICAL_GPUS = 8
"""What Ray is told there were; the host's placement asks for them and nothing uses them."""

HOST_OPTIONS = {
    "ds.attn_implementation": "sdpa",
    "vllm.sync_backend": "gloo",
    "vllm.enforce_eager": True,
    "vllm.enable_sleep": False,
    "ds.enable_sleep": False,
    "train.colocate_all": False,
}
"""What the host must be told on a machine without CUDA, whatever the recipe says."""


def install() -> None:
    """Replaces device selection and the modules of flash-attn; before the host is imported."""
    _flash_attn()
    _cuda()


def _flash_attn() -> None:
    """The helpers that `openrlhf.models.ring_attn_utils` imports; used only with packing."""
    from einops import rearrange
    from transformers import modeling_flash_attention_utils as flash

    package = _module("flash_attn")
    package.bert_padding = _module(
        "flash_attn.bert_padding",
        index_first_axis=flash._index_first_axis,
        pad_input=flash._pad_input,
        unpad_input=flash._unpad_input,
        rearrange=rearrange,
    )
    package.utils = _module("flash_attn.utils")
    package.utils.distributed = _module("flash_attn.utils.distributed", all_gather=None)


def _module(name: str, **members: Any) -> Any:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(members)
    sys.modules[name] = module
    return module


def _cuda() -> None:
    import torch

    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment]
    torch.cuda.current_stream = lambda device=None: None  # type: ignore[assignment]
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *_args, **_kwargs: None)


def adapt_host() -> None:
    """Replaces names inside the host's modules, which must be importable by now."""
    import torch
    from deepspeed.runtime.zero.partition_parameters import Init
    from openrlhf.trainer.ppo_utils import replay_buffer
    from openrlhf.trainer.ray import ppo_actor
    from openrlhf.utils import distributed_util
    from openrlhf.utils.deepspeed import deepspeed
    from torch.distributed.device_mesh import init_device_mesh

    # Of tensors that are gathered together DeepSpeed waits for the last only. NCCL has finished the
    # others by then, gloo need not have: a late one overwrites what was loaded in its place.
    Init._allgather_params_coalesced = lambda self, param_list, hierarchy=0, quantize=False: (
        self._allgather_params_sequential(param_list, hierarchy=hierarchy) if param_list else None
    )
    deepspeed.init_device_mesh = lambda _device, *args, **kwargs: init_device_mesh(
        "cpu", *args, **kwargs
    )
    # NaiveReplayBuffer.__init__ builds torch.device(f"cuda:{...}") and uses nothing else of torch
    # that would have to differ; the stand-in forwards everything but `device`.
    replay_buffer.torch = _Forward(torch, device=lambda _name: torch.device("cpu"))
    for module in (distributed_util, ppo_actor):
        module.stateless_init_process_group = stateless_process_group  # type: ignore[attr-defined]


class _Forward:
    """A module with some members replaced."""

    def __init__(self, module: ModuleType, **members: Any) -> None:
        self._module = module
        vars(self).update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def stateless_process_group(
    address: str, port: int, rank: int, world_size: int, _device: Any
) -> SimpleNamespace:
    """The trainer-to-vLLM group with `broadcast(tensor, src, stream)` over TCP instead of NCCL."""
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=address, port=port, rank=rank, world_size=world_size)

    def broadcast(tensor: Any, src: int, stream: Any = None) -> None:
        received = group.broadcast_obj(tensor.detach().clone() if rank == src else None, src)
        if rank != src:
            tensor.copy_(received)

    return SimpleNamespace(broadcast=broadcast)


def adapt_vllm_worker() -> None:
    """Weight updates in vLLM's worker: vLLM's CPU linear layers are packed after loading, so
    tensors cannot be loaded one by one. They are collected and reloaded together at the last."""
    import torch
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap
    from openrlhf.utils import distributed_util
    from vllm.config import set_current_vllm_config

    distributed_util.stateless_init_process_group = stateless_process_group

    def update_weight(
        self: Any, name: str, dtype: torch.dtype, shape: torch.Size, empty_cache: bool = False
    ) -> None:
        weight = torch.empty(shape, dtype=dtype)
        self._model_update_group.broadcast(weight, src=0)
        pending = self.__dict__.setdefault("_pending_weights", [])
        pending.append((name, weight))
        if empty_cache:  # the host says so with the last tensor of a sync
            with set_current_vllm_config(self.vllm_config):
                self.model_runner.reload_weights(weights_iterator=iter(pending))
            pending.clear()

    WorkerWrap.update_weight = update_weight
