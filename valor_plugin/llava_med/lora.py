"""LoRA on the language model of a LLaVA (Hu et al., arXiv 2106.09685), with peft's layers.

Adapters sit beside the linear layers of attention and MLP. Whoever reads the model from outside,
vLLM or a file, is shown each such weight with its adapter added, under its usual name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TARGETS = r".*\blanguage_model\.(.*\.)?(q|k|v|o|qkv|gate|up|gate_up|down)_proj"
_ADAPTER = "default"


def add(model: Any, rank: int, alpha: float) -> None:
    """Adds adapters that change nothing as yet: their second matrix is zero.

    Raises:
        ValueError: the model has no layer that could have an adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_TARGETS)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model, _ADAPTER)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # bfloat16 would lose many of an optimizer's steps
            parameter.data = parameter.data.float()


def count_parameters(shapes: Mapping[str, tuple[int, ...]], rank: int) -> int:
    """How many parameters adapters of this rank add to a model, given the shapes of its tensors by
    their names."""
    pattern = re.compile(rf"{_TARGETS}\.weight")
    return sum(rank * sum(shape) for name, shape in shapes.items() if pattern.fullmatch(name))


class Merged:
    """A weight with its adapter added, computed whenever `data` is read."""

    requires_grad = True

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        weight = layer.get_base_layer().weight
        self.shape, self.dtype = weight.shape, weight.dtype

    @property
    def data(self) -> Any:
        weight = self._layer.get_base_layer().weight.data
        delta = self._layer.get_delta_weight(_ADAPTER).detach()
        return (weight.float() + delta.float()).to(weight.dtype)


def is_adapted(model: Any) -> bool:
    """Whether the model has adapters."""
    return any(hasattr(layer, "lora_A") for layer in model.modules())


def merged_parameters(model: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
    """The model's `named_parameters` as if it had no adapters: each adapted weight is a `Merged`,
    under its usual name."""
    return _shown(model, type(model).named_parameters(model, *args, **kwargs))


def merged_state(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The model's `state_dict` as if it had no adapters: each adapted weight with its adapter
    added, under its usual name."""
    return {
        # on the CPU: a whole model more may not fit beside this one
        name: tensor.data.cpu() if isinstance(tensor, Merged) else tensor
        for name, tensor in _shown(model, type(model).state_dict(model, *args, **kwargs).items())
    }


def _shown(model: Any, named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    layers = ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))
    merged = {f"{name}.weight": Merged(layer) for name, layer in layers}
    for name, tensor in named:
        if ".lora_A." not in name and ".lora_B." not in name:
            name = name.replace(".base_layer.", ".") if merged else name
            yield name, merged.get(name, tensor)
