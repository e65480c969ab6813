"""Rewards of a group become rank-normalised advantages.

VALOR's second stage uses rank-normalised advantages (paper); the formula and the treatment of ties
are not public, so both are ours. Ranks make the size of an update independent of the reward's
scale, which has a price: any difference counts fully, numerical noise included. Hence the tie
tolerance, and exact zeros for a group in which nothing differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from reward_sdk.reward_set import UNSCORED
from valor_plugin.host.settings import HostSettings

TIED = "group_tied"
SPREAD = "group_reward_std"
Scale = Literal["linear", "zscore", "off"]


class Experience(Protocol):
    """What is used of the host's micro-batch of samples.

    Attributes:
        index: place in the rollout of each sample; the samples of a group have consecutive ones.
        rewards: reward of each sample, (samples,).
        info: name -> values that are logged, (samples,).
    """

    index: list[int]
    rewards: torch.Tensor
    info: dict[str, torch.Tensor]


def rank_normalise(
    rewards: torch.Tensor,
    scale: Literal["linear", "zscore"],
    tie_tolerance: float,
    scored: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average ranks inside each group, centred and scaled.

    Args:
        rewards: raw rewards, (groups, n); higher is better.
        scale: "linear" maps the ranks of n distinct rewards evenly onto [-1, 1]; "zscore" divides
            centred ranks by their (population) standard deviation.
        tie_tolerance: largest distance from the smallest reward of a run at which a reward still
            shares its rank.
        scored: whether each sample has a score, (groups, n) bool; those without get 0 and do not
            take part in the ranking. By default all have one.

    Returns:
        The advantages, (groups, n), each row summing to 0; a row whose rewards are all tied, or
        with fewer than two scored samples, is exactly 0.
    """
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    for row, values in enumerate(rewards.tolist()):
        members = [i for i in range(len(values)) if scored is None or bool(scored[row, i])]
        ranks = _average_ranks([values[i] for i in members], tie_tolerance)
        centre = (len(members) - 1) / 2
        centred = torch.tensor([rank - centre for rank in ranks])
        if not centred.any():
            continue
        size = centre if scale == "linear" else centred.std(correction=0).item()
        advantages[row, members] = centred / size
    return advantages


def _average_ranks(values: list[float], tolerance: float) -> list[float]:
    """Ranks from 0; a run of values within `tolerance` of its smallest shares the mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] - values[order[start]] > tolerance:
            for i in order[start:end]:
                ranks[i] = (start + end - 1) / 2
            start = end
    return ranks


@dataclass(frozen=True)
class GroupAdvantages:
    """What becomes of the rewards of a policy step; all (groups, n).

    Attributes:
        rewards: rewards as they came, but that a sample which could not be scored has the mean of
            its group, or of the whole step where no sample of its group was scored.
        ranked: what the host's estimator is given as rewards: advantages by rank, or, with scale
            "off", `rewards`.
        spread: standard deviation of the rewards of the sample's group.
        tied: 1 in groups whose rewards lie within the tolerance of each other, else 0.
    """

    rewards: torch.Tensor
    ranked: torch.Tensor
    spread: torch.Tensor
    tied: torch.Tensor


def group_advantages(
    rewards: torch.Tensor, scored: torch.Tensor, scale: Scale, tie_tolerance: float
) -> GroupAdvantages:
    """Advantages of whole groups, by rank, or the rewards themselves with scale "off".

    Args:
        rewards: raw rewards, (groups, n); higher is better.
        scored: whether each sample has a score, (groups, n) bool; those without neither gain nor
            lose.
        scale: "linear" or "zscore" ranks inside each group, as `rank_normalise` does; "off" leaves
            the rewards as they are.
        tie_tolerance: largest distance from the smallest reward of a run at which a reward still
            shares its rank.

    Raises:
        ValueError: a scored reward is NaN or infinite: it would share a rank with the best.
    """
    if not rewards[scored].isfinite().all():
        raise ValueError(f"rewards that are no numbers: {rewards[scored].tolist()}")
    rewards = torch.where(scored, rewards, 0.0)
    count = scored.sum(-1, keepdim=True)
    everywhere = rewards.sum() / scored.sum().clamp(min=1)
    mean = rewards.sum(-1, keepdim=True) / count.clamp(min=1)
    filled = torch.where(scored, rewards, torch.where(count > 0, mean, everywhere))
    ranked = filled if scale == "off" else rank_normalise(filled, scale, tie_tolerance, scored)
    tied = filled.amax(-1, keepdim=True) - filled.amin(-1, keepdim=True) <= tie_tolerance
    return GroupAdvantages(
        rewards=filled,
        ranked=ranked,
        spread=filled.std(-1, keepdim=True).expand_as(filled),
        tied=tied.float().expand_as(filled),
    )


def rank_groups(
    compute: Callable[[Any, list], list], settings: HostSettings
) -> Callable[[Any, list], list]:
    """For `RemoteExperienceMaker.compute_advantages_and_returns`, where groups are seen whole.

    With ranks the host runs its `dr_grpo` estimator, which subtracts the group mean (0 already) and
    nothing else. With `rank: off` the host's own estimator sees the rewards. A KL term holds for
    samples that could not be scored as for all. A policy step in which everything failed ends the
    run: it would go on without learning.
    """
    advantage = settings.advantage

    def compute_by_rank(self: Any, experiences: list[Experience]) -> list[Experience]:
        size = self.strategy.args.rollout.n_samples_per_prompt
        index = torch.tensor([i for experience in experiences for i in experience.index])

        def by_group(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            flat = torch.cat([part.float().flatten() for part in parts])
            grouped = torch.empty_like(flat)
            grouped[index] = flat
            return grouped.view(-1, size)

        def by_experience(grouped: torch.Tensor) -> list[torch.Tensor]:
            lengths = [len(experience.index) for experience in experiences]
            return list(grouped.reshape(-1)[index].split(lengths))

        scored = by_group([experience.info[UNSCORED] for experience in experiences]) == 0
        if not scored.any() and (failed := _failed(experiences)):
            raise RuntimeError(
                f"no sample of this policy step could be scored (failed: {', '.join(failed)}); the "
                "log says why, study by study"
            )
        rewards = by_group([experience.rewards for experience in experiences])
        found = group_advantages(rewards, scored, advantage.rank, advantage.tie_tolerance)
        for experience, ranked in zip(experiences, by_experience(found.ranked), strict=True):
            experience.rewards = ranked
        experiences = compute(self, experiences)
        logged = {"reward": found.rewards, SPREAD: found.spread, TIED: found.tied}
        for name, grouped in logged.items():
            for experience, values in zip(experiences, by_experience(grouped), strict=True):
                experience.info[name] = values
        for experience in experiences:  # ranks have done their work
            experience.rewards = experience.info["reward"]
        return experiences

    return compute_by_rank


def _failed(experiences: Sequence[Experience]) -> list[str]:
    """What failed for some sample: rewards, or "image" where it could not be read."""
    keys = [key for key in experiences[0].info if key.endswith("/failed")]
    return [
        key.removesuffix("/failed")
        for key in keys
        if any(experience.info[key].any() for experience in experiences)
    ]
