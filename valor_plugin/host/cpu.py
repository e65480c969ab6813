"""Stand-ins for what OpenRLHF, DeepSpeed and vLLM can only do on CUDA.

The host's algorithm is untouched: what is replaced is device selection and the transport of weights
to vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from valor_plugin.host.settings import HostSettings

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine works itself: a process less to start
    "TORCHDYNAMO_DISABLE": "1",  # compiling costs more than it could save in small runs
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


def device_name(_: Any, settings: HostSettings) -> Callable[[], str]:
    """For `torch.cuda.current_device`."""
    return lambda: "cpu"


def nothing(_: Any, settings: HostSettings) -> Callable[..., None]:
    """For calls that have nothing to do."""
    return lambda *_args, **_kwargs: None


def gather_one_by_one(_: Any, settings: HostSettings) -> Callable[..., Any]:
    """For DeepSpeed's gathering of several tensors, of which it waits for the last only. NCCL has
    finished the others by then, gloo need not have: a late one overwrites what was loaded in its
    place."""

    def gather(self: Any, param_list: list, hierarchy: int = 0, quantize: bool = False) -> Any:
        if param_list:
            return self._allgather_params_sequential(param_list, hierarchy=hierarchy)
        return None

    return gather


def cpu_mesh(init_device_mesh: Callable[..., Any], settings: HostSettings) -> Callable[..., Any]:
    """For `init_device_mesh`, which the host calls with "cuda"."""
    return lambda _device, *args, **kwargs: init_device_mesh("cpu", *args, **kwargs)


def torch_on_cpu(torch: ModuleType, settings: HostSettings) -> Any:
    """For the module `torch` as the replay buffer sees it: its constructor builds
    `torch.device(f"cuda:{...}")` and uses nothing else that would have to differ."""
    return _Forward(torch, device=lambda _name: torch.device("cpu"))


class _Forward:
    """A module with some members replaced."""

    def __init__(self, module: ModuleType, **members: Any) -> None:
        self._module = module
        vars(self).update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def sync_over_tcp(_: Any, settings: HostSettings) -> Callable[..., SimpleNamespace]:
    """For `stateless_init_process_group`, the group that carries weights to vLLM over NCCL."""
    return tcp_process_group


def tcp_process_group(
    address: str, port: int, rank: int, world_size: int, _device: Any
) -> SimpleNamespace:
    """A group with `broadcast(tensor, src, stream)` over TCP."""
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=address, port=port, rank=rank, world_size=world_size)

    def broadcast(tensor: Any, src: int, stream: Any = None) -> None:
        received = group.broadcast_obj(tensor.detach().clone() if rank == src else None, src)
        if rank != src:
            tensor.copy_(received)

    return SimpleNamespace(broadcast=broadcast)


def reload_together(_: Any, settings: HostSettings) -> Callable[..., None]:
    """For `WorkerWrap.update_weight` in vLLM's worker: vLLM's CPU linear layers are packed after
    loading, so tensors cannot be loaded one by one. They are collected and reloaded together at the
    last."""
    import torch
    from vllm.config import set_current_vllm_config

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

    return update_weight
