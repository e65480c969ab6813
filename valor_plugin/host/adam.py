"""AdamW for DeepSpeed without a compiler.

DeepSpeed's FusedAdam is compiled at the first start on a machine, which takes 40 s and more and,
for GPUs, a CUDA toolkit. torch has the same algorithm, fused too. It takes FusedAdam's place as a
class, because DeepSpeed asks for that class before it lets a policy sleep under ZeRO-3. An
optimizer that is offloaded to the CPU (`ds.adam_offload`) stays DeepSpeed's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from valor_plugin.host.settings import HostSettings


def torch_adam(_: type, settings: HostSettings) -> type:
    """For `FusedAdam`: torch's fused AdamW, under the same name."""
    import torch

    class FusedAdam(torch.optim.AdamW):
        """torch's fused AdamW, made as DeepSpeed makes its FusedAdam."""

        def __init__(self, params: Any, adam_w_mode: bool = True, **options: Any) -> None:
            if not adam_w_mode:
                raise ValueError("adam_w_mode: only decoupled weight decay, AdamW, is there")
            super().__init__(params, fused=True, **options)

        def step(self, closure: Callable | None = None) -> Any:
            for parameter, state in self.state.items():
                # What a checkpoint gives back may be a number, or be padded as its moments are.
                if state and getattr(state["step"], "shape", None) != ():
                    step = torch.as_tensor(state["step"], dtype=torch.float32)
                    state["step"] = step.flatten()[0].to(parameter.device)
            return super().step(closure)

    return FusedAdam
