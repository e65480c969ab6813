"""The parts of a LLaVA model that can train or be frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Literal

from valor_plugin.records import TrainablePart

Part = Literal["tower", "projector", "language", "lora"]
PARTS: tuple[Part, ...] = ("tower", "projector", "language")

_MARKS = {
    "vision_tower": "tower",
    "multi_modal_projector": "projector",
    "language_model": "language",
    "lm_head": "language",
}


def part_of(parameter: str) -> str:
    """The part that a parameter of `LlavaForConditionalGeneration` belongs to, by its name.

    >>> part_of("model.multi_modal_projector.linear_1.weight")
    'projector'

    LoRA's matrices are a part of their own, "lora", which only `lora.add` makes.

    Raises:
        ValueError: the name belongs to none of the parts, so that a new kind of model is never
            trained by accident.
    """
    names = parameter.split(".")
    if "lora_A" in names or "lora_B" in names:
        return "lora"
    for mark, part in _MARKS.items():
        if mark in names:
            return part
    raise ValueError(
        f"parameter {parameter!r} belongs to none of the parts {', '.join(PARTS)}: "
        "only LLaVA models can be trained by parts"
    )


def train_only(model: Any, parts: Collection[str]) -> list[TrainablePart]:
    """Lets exactly these parts train; gives what trains and what is frozen, in the order of the
    model.

    Raises:
        ValueError: the model lacks one of the parts, or has a parameter outside of them all.
    """
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in parts)
        tensors[part] += 1
        parameters[part] += getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 empties it
    if absent := [part for part in parts if not tensors[part]]:
        raise ValueError(f"{type(model).__name__} has no {', '.join(absent)} that could train")
    return [
        TrainablePart(part, tensors[part], parameters[part], part in parts)
        for part in (*PARTS, "lora")
        if tensors[part]
    ]
