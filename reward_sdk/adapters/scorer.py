"""A reward set as adapters use it: in this process or behind servers, through one interface."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from reward_sdk.batching import BatchedSet
from reward_sdk.client import RewardClient
from reward_sdk.config import Source
from reward_sdk.errors import ConfigError, ServerError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample, Score, SetInfo

logger = logging.getLogger(__name__)

Rewards = RewardSet | RewardClient | Source
"""What a stack can be given as its rewards."""

_SILENT = 5.0  # ours: seconds until one hears that a server is waited for

MISSING = "missing_parts"
"""What the total has beyond the weighted sum of the parts, because some are missing; else 0."""


class Scorer:
    """Scores for a stack.

    Args:
        rewards: a set; its YAML file, a mapping or a list of names, see `reward_sdk.config`; a
            client; or the URLs of reward servers ("http://node1:8000,http://node2:8000").
        has_step: whether the stack says its policy step. Where it does not, every reward of a set
            with a schedule counts on every call, with a warning.

    Attributes:
        info: what the set is, in plain values.
        weights: reward name -> weight, in the set's order.

    Raises:
        ConfigError: the set cannot be built; or it has a schedule and is served, for which each
            request must say its step, while this stack does not.
        ServerError: no server became ready in time.
    """

    def __init__(self, rewards: Rewards, has_step: bool = False) -> None:
        if isinstance(rewards, str) and "://" in rewards:
            rewards = RewardClient(rewards)
        elif not isinstance(rewards, RewardSet | RewardClient):
            rewards = RewardSet.from_config(rewards)
        self.info: SetInfo = (
            _connected(rewards) if isinstance(rewards, RewardClient) else rewards.info
        )
        self.weights = {reward.name: reward.weight for reward in self.info.rewards}
        if self.info.needs_step and not has_step:
            late = ", ".join(reward.name for reward in self.info.rewards if reward.every > 1)
            if isinstance(rewards, RewardClient):
                raise ConfigError(
                    f"this stack does not say its policy step, and the served set has rewards of a "
                    f"schedule ({late}): serve a set without `every`"
                )
            logger.warning("no policy steps in this stack: %s count on every call", late)
            rewards = rewards.without_schedule()
        self._rewards = rewards
        self._turn = nullcontext() if isinstance(rewards, RewardClient) else threading.Lock()
        if isinstance(rewards, RewardSet):
            self._batched = BatchedSet(rewards)

    def score(self, samples: Sequence[Sample], step: int | None = None) -> list[Score]:
        """One score per sample, in order; see `RewardSet.score`. For one thread at a time in
        process, because models are not made for more."""
        with self._turn:
            return self._told(samples, self._rewards.score(samples, step))

    async def score_one(self, sample: Sample) -> Score:
        """The score of one sample, made in one batch with those of concurrent callers."""
        if isinstance(self._rewards, RewardClient):
            scores = await asyncio.wrap_future(self._rewards.submit([sample]))
        else:
            scores = await self._batched.score([sample])
        return self._told([sample], scores)[0]

    @staticmethod
    def _told(samples: Sequence[Sample], scores: list[Score]) -> list[Score]:
        for sample, score in zip(samples, scores, strict=True):
            for part in score.parts.values():
                if part.status == "failed":
                    logger.warning("sample %r: %s", sample.id, part.reason)
        return scores


def _connected(client: RewardClient) -> SetInfo:
    """What the client's servers serve; says so if one waits for them."""
    try:
        return client.connect(_SILENT)
    except ServerError as error:
        logger.warning("%s; waiting on", error)
        return client.connect()


def values(score: Score, weights: Mapping[str, float]) -> dict[str, float | None]:
    """Per reward its value, None where it has none, and `MISSING`: a stack that sums them by their
    weights, `MISSING` by 1, gets the set's total. All None if there is no total.

    Args:
        score: the score of one sample.
        weights: reward name -> weight, for every reward of the set.
    """
    if score.total is None:
        return dict.fromkeys((*weights, MISSING))
    found = {name: score.parts[name].value for name in weights}
    known = 0.0
    for name, value in found.items():
        known += 0.0 if value is None else weights[name] * value
    return {**found, MISSING: score.total - known}
