"""Rollout to rewards: the file that `--train.agent_func_path` names.

The host generates; the reward set scores. The set sees what no remote reward of the host sees: the
image, the study and the policy step.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from copy import copy
from typing import Any
from weakref import WeakValueDictionary

from openrlhf.utils.agent import SingleTurnAgentExecutor

from reward_sdk.batching import BatchedSet
from reward_sdk.client import AsyncRewardClient
from reward_sdk.errors import ConfigError, ExhaustedError, ServerError, TokenError
from reward_sdk.reward_set import UNSCORED, RewardSet
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import TOKEN
from valor_plugin.data import labels
from valor_plugin.host.images import GroupImages
from valor_plugin.host.sampling import STEP
from valor_plugin.host.settings import HostSettings

logger = logging.getLogger(__name__)

_SAMPLES = "samples_begun"


def _seeded(sampling_params: Any, seed: int, study: str) -> Any:
    """Sampling parameters of one sample: left to itself, the engine draws all samples from one
    stream, in the order in which they happen to arrive.

    The samples of a group begin in order and share these parameters, which count them.
    """
    shared = sampling_params.extra_args
    number = shared[_SAMPLES] = shared.get(_SAMPLES, -1) + 1
    name = f"{seed} {shared[STEP]} {study} {number}"
    own = copy(sampling_params)
    own.seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return own


async def score_of(
    sample: Sample, step: int, rewards: AsyncRewardClient | BatchedSet, log_keys: Sequence[str]
) -> Score:
    """The sample's score; without a total, under the same keys, if no server gives one, or this
    machine is out of files or memory.

    Raises:
        ConfigError: a server refuses the request.
    """
    try:
        [score] = await rewards.score([sample], step)
    except (ServerError, ExhaustedError) as error:
        logger.warning("study %s: %s", sample.id, error)
        return Score(None, {}, {key: float(key.endswith("/failed")) for key in log_keys})
    except TokenError as error:
        raise ConfigError(
            f"{error}; where a cluster is joined, its nodes must have {TOKEN} in their environment"
        ) from error
    return score


def comparable(score: Score) -> bool:
    """Whether a sample was judged like its siblings, so that it may be compared with them: it has a
    total, and no reward failed on it. One that does not apply to it leaves its total to the others.
    """
    parts = score.parts.values()
    failed = any(part.status == "failed" and part.value is None for part in parts)
    return score.total is not None and not failed


class AgentExecutor(SingleTurnAgentExecutor):
    """Generates one response, as the host does, and scores it with the run's reward set."""

    def __init__(self) -> None:
        super().__init__()
        settings = HostSettings.current()
        if settings is None:
            raise RuntimeError("this executor runs inside `openrlhf train` only")
        self._settings = settings
        self._rewards = (
            AsyncRewardClient(settings.rewards["server"], expected=settings.served)
            if "server" in settings.rewards
            else BatchedSet(RewardSet.from_config(settings.rewards))
        )
        self._images: WeakValueDictionary[str, GroupImages] = WeakValueDictionary()  # in use
        self._step = 1
        self._new_step = asyncio.Lock()

    async def _forget_images(self, step: int, llm_engine: Any) -> None:
        """vLLM keeps what tower and projector made of an image. After a weight update that is the
        old projector's work, and an image that comes again (a second episode) must not get it."""
        async with self._new_step:
            if step != self._step:
                await llm_engine.llm.reset_encoder_cache()
                self._step = step

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict:
        step = sampling_params.extra_args[STEP]
        study = labels.decode(label)
        if self._settings.deterministic:
            sampling_params = _seeded(sampling_params, self._settings.seed, study.id)
        await self._forget_images(step, llm_engine)
        shared = self._images.get(study.id)
        if shared is None:
            shared = self._images[study.id] = GroupImages(images, study.id)
        output = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, shared
        )
        output["images"] = images
        [(start, end)] = output["action_ranges"]
        sample = Sample(
            response=hf_tokenizer.decode(
                output["observation_tokens"][start:end], skip_special_tokens=True
            ),
            reference=study.report,
            image=ImageRef(path=images[0], view=study.view),
            id=study.id,
            age=study.age,
            indication=study.indication,
        )
        score = await score_of(sample, step, self._rewards, self._settings.log_keys)
        for part in score.parts.values():
            if part.status == "failed":
                logger.warning("study %s: %s", sample.id, part.reason)
        unscored = not shared.readable or not comparable(score)
        low, high = self._settings.bounds
        reward = low if score.total is None else score.total
        output.update(
            reward=reward,
            scores=(reward - low) / (high - low) if high > low else 0.0,
            extra_logs={
                **score.logs,
                "image/failed": float(not shared.readable),
                UNSCORED: float(unscored),
            },
        )
        return output
