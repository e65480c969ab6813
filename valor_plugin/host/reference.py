"""The KL reference inside of the policy: no second model.

Where the language model is frozen, policy and reference differ in a few tensors: 42 MB of LLaVA-Med
7B for the projector. The policy's own workers keep these as they were before the first step, put
them in place for the reference's log-probabilities and take them out again; the host's reference
model, 15 GB, is not started. Where the language model trains, the host's own is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valor_plugin.host.settings import HostSettings

logger = logging.getLogger(__name__)

_FORWARD = "reference_forward"  # what the policy is asked for in the reference's place


def is_shared(trainable: Collection[str]) -> bool:
    """Whether a policy of which these parts train holds its own reference."""
    return "language" not in trainable


class ReferenceWeights:
    """The trainable tensors of a model, as they are now; to be had back for a while later on.

    Attributes:
        kept: trainable tensors that are not in place just now: those of the start or, inside
            `in_place`, those that were trained.
    """

    def __init__(self, model: Any, sharded: bool) -> None:
        """`sharded` says that ZeRO-3 keeps a piece of every tensor in every process."""
        self._sharded = sharded
        self._tensors = [p for p in model.parameters() if p.requires_grad]
        with self._whole():
            self.kept = [p.data.clone() for p in self._tensors]
        size = sum(tensor.nbytes for tensor in self.kept) / 1e6
        logger.warning("KL reference: no model, %d tensors (%.3f MB)", len(self.kept), size)

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
            for tensor, other in zip(self._tensors, self.kept, strict=True):
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


def start_none(initiate: Callable[..., None], settings: HostSettings) -> Callable[..., None]:
    """For `RayActorGroup._initiate_actors`: a group of reference models stays empty."""
    from openrlhf.trainer.ray.launcher import ReferenceModelActor

    def initiate_others(self: Any, *args: Any) -> None:
        if self.ray_actor_type is ReferenceModelActor:
            self._actor_handlers = []
        else:
            initiate(self, *args)

    return initiate_others


def ask_the_policy(dispatch: Callable[..., Any], settings: HostSettings) -> Callable[..., Any]:
    """For `RemoteExperienceMaker._dispatch_forward`: what is wanted of the reference's group is
    asked of the policy's."""

    def dispatch_to_policy(self: Any, asked: Any, sync_condition: Any, **kwargs: Any) -> Any:
        if asked is not self.initial_model_group:
            return dispatch(self, asked, sync_condition, **kwargs)
        return self.actor_model_group.async_run_method_batch(_FORWARD, **kwargs)

    return dispatch_to_policy


def keep_the_start(prepare: Callable[..., tuple], settings: HostSettings) -> Callable[..., tuple]:
    """For `DeepspeedStrategy._ds_init_train_model`: the policy keeps what it starts from, before a
    checkpoint is loaded."""
    from openrlhf.models.actor import Actor

    def prepare_and_keep(self: Any, policy: Any, cfg: dict) -> tuple:
        prepared = prepare(self, policy, cfg)
        if isinstance(policy, Actor) and self.args.algo.kl.init_coef > 0:
            self.reference = ReferenceWeights(policy.model.module, sharded=self.stage == 3)
        return prepared

    return prepare_and_keep


def answer_for_the_reference(actor: type, settings: HostSettings) -> type:
    """For `BaseModelActor`, which gets a method more: the log-probabilities of one micro-batch with
    the kept weights in place. (Ray copies the methods that a class inherits when it decorates it,
    so replacing one on the base would reach nothing; it does not copy what is new.)"""

    def reference_forward(self: Any, **kwargs: Any) -> Any:
        with self.strategy.reference.in_place():
            return self.forward(**kwargs)

    setattr(actor, _FORWARD, reference_forward)
    return actor
