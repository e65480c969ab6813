"""The policy step and the tokens that must not be sampled, stamped on every dispatch; the order of
what is dispatched and comes back; and the record of every step.

The host tells rewards no step. It does build the SamplingParams of a whole rollout in the process
that counts steps, and their free-form `extra_args` reach `AgentExecutor.execute`: a step put there
is exact for the whole group. Steps count from 1, as in the host's log.

A policy that samples the image token itself would break the training forward ("Image features and
image tokens do not match"), so that token is biased away.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from valor_plugin import records
from valor_plugin.host.progress import step_record
from valor_plugin.host.settings import HostSettings

STEP = "policy_step"
_NEVER = -100.0  # the lower limit of vLLM's logit_bias


def order_by_seed(prepare: Callable[..., Any], settings: HostSettings) -> Callable[..., Any]:
    """For `prepare_datasets`, whose loader takes the order of the studies from torch's seed."""

    def prepare_seeded(*args: Any, **kwargs: Any) -> Any:
        import torch

        torch.manual_seed(settings.seed)
        return prepare(*args, **kwargs)

    return prepare_seeded


def stamp_step(dispatch: Callable[..., list], settings: HostSettings) -> Callable[..., list]:
    """For `SamplesGenerator._dispatch_prompts_to_vllm`, which builds the SamplingParams."""
    from openrlhf.trainer.ppo_utils import samples_generator

    sampling_params = samples_generator.SamplingParams
    bias = dict.fromkeys(settings.banned_tokens, _NEVER)

    def dispatch_with_step(self: Any, *args: Any, **kwargs: Any) -> list:
        samples_generator.SamplingParams = partial(
            sampling_params, extra_args={STEP: self.policy_step}, logit_bias=bias or None
        )
        return dispatch(self, *args, **kwargs)

    return dispatch_with_step


def count_steps(init: Callable[..., None], settings: HostSettings) -> Callable[..., None]:
    """For `BasePPOTrainer.__init__`: the generator knows its step, and each step is recorded.

    Ray copies inherited methods when it decorates `PPOTrainer`, so replacing them on the base class
    would reach nothing; they are wrapped on the instance.
    """
    steps = Path(settings.records, records.STEPS)
    applied = [key for key in settings.log_keys if key.endswith("/applied")]
    rewards = [key.removesuffix("/applied") for key in applied]

    def init_and_count(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        begin, train, log = (
            self.init_checkpoint_states, self.train_step, self.save_logs_and_checkpoints
        )  # fmt: skip

        def begin_at_step() -> dict:
            states = begin()  # called once, at the start of fit, also when it resumes
            self.samples_generator.policy_step = states["global_step"] + 1
            return states

        def train_and_count(rollout_samples: Any, global_step: int) -> tuple[dict, int]:
            status, global_step = train(rollout_samples, global_step)
            self.samples_generator.policy_step = global_step + 1
            return status, global_step

        def record_and_log(global_step: int, status: dict, *args: Any, **kwargs: Any) -> None:
            records.append(steps, step_record(global_step, status, rewards))
            log(global_step, status, *args, **kwargs)

        self.init_checkpoint_states = begin_at_step
        self.train_step = train_and_count
        self.save_logs_and_checkpoints = record_and_log

    return init_and_count


def order_groups(generate: Callable[..., tuple], settings: HostSettings) -> Callable[..., tuple]:
    """For `SamplesGenerator._generate_vllm`: groups come back as they are finished; the order in
    which gradients are added up decides their last digits, and Adam makes whole steps of the
    smallest of them."""

    def generate_in_order(self: Any, *args: Any, **kwargs: Any) -> tuple:
        experiences, *rest = generate(self, *args, **kwargs)
        return sorted(experiences, key=lambda e: crc32(e.labels[0].encode())), *rest

    return generate_in_order
