"""Rewards of a group become rank-normalised advantages.

VALOR's second stage uses rank-normalised advantages (paper); the formula and the treatment of ties
are not public, so both are ours. Ranks make the size of an update independent of the reward's
scale, which has a price: any difference counts fully, numerical noise included. Hence the tie
tolerance, and exact zeros for a group in which nothing differs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from reward_sdk.reward_set import UNSCORED

TIED = "group_tied"


def rank_normalise(
    rewards: torch.Tensor,
    scale: Literal["linear", "zscore"],
    tie_tolerance: float,
    scored: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average ranks inside each group, centred and scaled.

    Args:
        rewards: (groups, n) raw rewards, higher is better.
        scale: "linear" maps the ranks of n distinct rewards evenly onto [-1, 1]; "zscore" divides
            centred ranks by their (population) standard deviation.
        tie_tolerance: rewards this close to the smallest of a run of equals share one rank.
        scored: (groups, n) bool; others get 0 and do not take part in the ranking.

    Returns:
        (groups, n) advantages, each row summing to 0; a row whose rewards are all tied, or with
        fewer than two scored samples, is exactly 0.
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


def install(scale: Literal["linear", "zscore", "off"], tie_tolerance: float) -> None:
    """Wraps the one place where the host sees groups whole.

    With ranks the host runs its `dr_grpo` estimator, which subtracts the group mean (0 already) and
    nothing else. With `scale="off"` the host's own estimator sees the raw rewards. Samples that no
    reward could score get the mean of their group, so that they neither gain nor lose (a KL term
    holds for them as for all). A policy step in which everything failed ends the run: it would go
    on without learning.
    """
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    original = RemoteExperienceMaker.compute_advantages_and_returns

    def compute(self: Any, experiences: list[Any]) -> list[Any]:
        size = self.strategy.args.rollout.n_samples_per_prompt
        index = torch.tensor([i for experience in experiences for i in experience.index])

        def by_group(parts: list[torch.Tensor]) -> torch.Tensor:
            flat = torch.cat([part.float().flatten() for part in parts])
            grouped = torch.empty_like(flat)
            grouped[index] = flat
            return grouped.view(-1, size)

        def by_experience(grouped: torch.Tensor) -> list[torch.Tensor]:
            lengths = [len(experience.index) for experience in experiences]
            return list(grouped.reshape(-1)[index].split(lengths))

        raw = by_group([experience.rewards for experience in experiences])
        scored = by_group([experience.info[UNSCORED] for experience in experiences]) == 0
        if not scored.any() and (failed := _failed(experiences)):
            raise RuntimeError(
                f"no sample of this policy step could be scored (failed: {', '.join(failed)}); the "
                "log says why, study by study"
            )
        # Of its group, or of the whole step where no sample of the group could be scored.
        count = scored.sum(-1, keepdim=True)
        everywhere = (raw * scored).sum() / scored.sum().clamp(min=1)
        mean = (raw * scored).sum(-1, keepdim=True) / count.clamp(min=1)
        raw = torch.where(scored, raw, torch.where(count > 0, mean, everywhere))
        spread = raw.amax(-1, keepdim=True) - raw.amin(-1, keepdim=True)
        tied = (spread <= tie_tolerance).float().expand_as(raw)
        ranked = raw if scale == "off" else rank_normalise(raw, scale, tie_tolerance, scored)

        for experience, rewards in zip(experiences, by_experience(ranked), strict=True):
            experience.rewards = rewards
        experiences = original(self, experiences)
        deviation = raw.std(-1, keepdim=True).expand_as(raw)
        for experience, rewards, std, tie in zip(
            experiences,
            by_experience(raw),
            by_experience(deviation),
            by_experience(tied),
            strict=True,
        ):
            # Ranks have done their work; what the host logs are the rewards.
            experience.rewards = experience.info["reward"] = rewards
            experience.info["group_reward_std"] = std  # of the rewards, not of their ranks
            experience.info[TIED] = tie
        return experiences

    RemoteExperienceMaker.compute_advantages_and_returns = compute


def _failed(experiences: list[Any]) -> list[str]:
    """What failed for some sample: rewards, or "image" where it could not be read."""
    keys = [key for key in experiences[0].info if key.endswith("/failed")]
    return [
        key.removesuffix("/failed")
        for key in keys
        if any(experience.info[key].any() for experience in experiences)
    ]
