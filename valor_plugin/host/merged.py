"""A model with adapters as the host must see it when it sends or saves weights: without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from valor_plugin.llava_med import lora


@contextmanager
def merged(model: Any) -> Iterator[Any]:
    """Inside, the model's `named_parameters` and `state_dict` show each adapted weight with its
    adapter added, under its usual name; those of a model without adapters are what they were."""
    if not lora.is_adapted(model):
        yield model
        return
    model.named_parameters = partial(lora.merged_parameters, model)
    model.state_dict = partial(lora.merged_state, model)
    try:
        yield model
    finally:
        del model.named_parameters, model.state_dict
