"""Entry point of every vLLM process (entry point group `vllm.general_plugins`).

vLLM calls it in the engine core and its workers, which are not Ray workers: Ray's set-up hook does
not reach them. Outside of our runs it does nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from valor_plugin import records
from valor_plugin.host import failures, seams
from valor_plugin.host.settings import HostSettings


def register() -> None:
    """Adapts vLLM to LLaVA models and, in CPU runs, its worker, and records the exceptions that it
    logs: the host hears only that the engine has died."""
    settings = HostSettings.current()
    if settings is None:
        return
    seams.adapt(seams.IN_VLLM)
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, _FailureHandler) for handler in logger.handlers):
        logger.addHandler(_FailureHandler(Path(settings.records, records.FAILURES)))


class _FailureHandler(logging.Handler):
    """Records the exceptions that are logged with their traceback."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            try:
                records.append(self._path, failures.failure("vLLM", record.exc_info[1]))
            except OSError:
                self.handleError(record)


def read_both_spellings(mapper: Any, settings: HostSettings) -> Any:
    """For LLaVA's mapping of names, so that vLLM loads what transformers 5.15 saves: a LLaVA that
    transformers built and saved has tower tensors without the `vision_model` that vLLM 0.29 looks
    for, and has them with it when it was loaded from an older file."""
    from vllm.model_executor.models.utils import WeightsMapper

    parts = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
    both = {f"vision_tower.{part}": f"vision_tower.vision_model.{part}" for part in parts}
    return mapper | WeightsMapper(orig_to_new_prefix=both)
