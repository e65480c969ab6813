"""The policy step and the tokens that must not be sampled, stamped on every dispatch; and the order
of what is dispatched and comes back.

The host tells rewards no step. It does build the SamplingParams of a whole rollout in the process
that counts steps, and their free-form `extra_args` reach `AgentExecutor.execute`: a step put there
is exact for the whole group. Steps count from 1, as in the host's log.

A policy that samples the image token itself would break the training forward ("Image features and
image tokens do not match"), so that token is biased away.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from zlib import crc32

STEP = "policy_step"
_NEVER = -100.0  # the lower limit of vLLM's logit_bias


def install(banned_tokens: tuple[int, ...], seed: int, deterministic: bool) -> None:
    """Adapts the trainer's process. Ray copies inherited methods when it decorates `PPOTrainer`, so
    replacing them on the base class would reach nothing; they are wrapped on the instance."""
    import torch
    from openrlhf.trainer import ppo_trainer
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ppo_utils import samples_generator

    generator = samples_generator.SamplesGenerator
    sampling_params = samples_generator.SamplingParams
    generate = generator._generate_vllm
    dispatch, init = generator._dispatch_prompts_to_vllm, BasePPOTrainer.__init__
    prepare_datasets = ppo_trainer.prepare_datasets
    bias = dict.fromkeys(banned_tokens, _NEVER)

    def prepare_seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(seed)  # the loader takes the order of the studies from here
        return prepare_datasets(*args, **kwargs)

    def dispatch_with_step(self: Any, *args: Any, **kwargs: Any) -> list:
        samples_generator.SamplingParams = partial(
            sampling_params, extra_args={STEP: self.policy_step}, logit_bias=bias or None
        )
        return dispatch(self, *args, **kwargs)

    def init_and_count(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        begin, train_step = self.init_checkpoint_states, self.train_step

        def begin_at_step() -> dict:
            states = begin()  # called once, at the start of fit, also when it resumes
            self.samples_generator.policy_step = states["global_step"] + 1
            return states

        def train_step_and_count(rollout_samples: Any, global_step: int) -> tuple[dict, int]:
            status, global_step = train_step(rollout_samples, global_step)
            self.samples_generator.policy_step = global_step + 1
            return status, global_step

        self.init_checkpoint_states = begin_at_step
        self.train_step = train_step_and_count

    def generate_in_order(self: Any, *args: Any, **kwargs: Any) -> tuple:
        # Groups come back as they are finished; the order in which gradients are added up decides
        # their last digits, and Adam makes whole steps of the smallest of them.
        experiences, *rest = generate(self, *args, **kwargs)
        return sorted(experiences, key=lambda e: crc32(e.labels[0].encode())), *rest

    if deterministic:
        generator._generate_vllm = generate_in_order
    ppo_trainer.prepare_datasets = prepare_seeded
    generator._dispatch_prompts_to_vllm = dispatch_with_step
    BasePPOTrainer.__init__ = init_and_count  # type: ignore[method-assign]
