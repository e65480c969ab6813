"""The KL reference inside of the policy: no second model.

Where the language model is frozen, policy and reference differ in a few tensors: 42 MB of LLaVA-Med
7B for the projector. The policy's own workers keep these as they were before the first step, put
them in place for the reference's log-probabilities and take them out again; the host's reference
model, 15 GB, is not started. Where the language model trains, the host's own is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def is_shared(parts: Collection[str]) -> bool:
    """Whether a policy of which these parts train holds its own reference."""
    return "language" not in parts


class Initial:
    """The trainable tensors of a model, as they are now; to be had back for a while later on."""

    def __init__(self, model: Any, sharded: bool) -> None:
        """`sharded` says that ZeRO-3 keeps a piece of every tensor in every process."""
        self._sharded = sharded
        self._tensors = [p for p in model.parameters() if p.requires_grad]
        with self._whole():
            self._others = [p.data.clone() for p in self._tensors]
        size = sum(tensor.nbytes for tensor in self._others) / 1e6
        logger.warning("KL reference: no model, %d tensors (%.3f MB)", len(self._others), size)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is what it was; afterwards again what it became, to the last bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        # Copied, because DeepSpeed's flat buffers must stay the storage of the parameters.
        with self._whole():
            for tensor, other in zip(self._tensors, self._others, strict=True):
                kept = tensor.data.clone()
                tensor.data.copy_(other)
                other.copy_(kept)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        if not self._sharded:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(self._tensors, modifier_rank=0):
            yield


def install() -> None:
    """Adapts the driver (no reference model), the trainer (whom it asks) and the policy."""
    from openrlhf.models.actor import Actor
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ray import launcher
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    group: Any = launcher.RayActorGroup
    maker: Any = RemoteExperienceMaker
    worker: Any = launcher.BaseModelActor  # Ray carries PolicyModelActor by value, this by name
    initiate, dispatch = group._initiate_actors, maker._dispatch_forward
    strategy: Any = DeepspeedStrategy
    prepare = strategy._ds_init_train_model

    def initiate_policies(self: Any, *args: Any) -> None:
        if self.ray_actor_type is launcher.ReferenceModelActor:
            self._actor_handlers = []
        else:
            initiate(self, *args)

    def dispatch_to_policy(self: Any, asked: Any, sync_condition: Any, **kwargs: Any) -> Any:
        if asked is not self.initial_model_group:
            return dispatch(self, asked, sync_condition, **kwargs)
        return self.actor_model_group.async_run_method_batch("reference_forward", **kwargs)

    def prepare_and_keep(self: Any, policy: Any, cfg: dict) -> tuple:
        prepared = prepare(self, policy, cfg)
        if isinstance(policy, Actor) and self.args.algo.kl.init_coef > 0:
            self.initial = Initial(policy.model.module, sharded=self.stage == 3)
        return prepared

    def reference_forward(self: Any, **kwargs: Any) -> Any:
        with self.strategy.initial.in_place():
            return self.forward(**kwargs)

    group._initiate_actors = initiate_policies
    maker._dispatch_forward = dispatch_to_policy
    strategy._ds_init_train_model = prepare_and_keep
    worker.reference_forward = reference_forward
