"""verifiers (v1) and prime-rl: a reward that a taskset's configuration plugs in.

    # rewards.py, for the task's configuration: rewards.report.fn = "rewards.py:report"
    from reward_sdk.adapters.verifiers import make_reward
    report = make_reward("rewards.yaml")

Receives: the trace's last reply; of the task's data `reference` (or `report`, `ground_truth`) and
    `xray` (a path; the framework's own `image` names a container), `view`, `id`, `age`,
    `indication`; without `xray` the first image of the prompt, if it is a data URL.
Returns: each reward's value with its weight, and `missing_parts`, whose sum is the set's total.
Logs: the rewards on the trace; `<name>/applied`, `<name>/failed` and `<name>/not_applicable` as
    metrics.
On failure: None for the part, and `missing_parts` makes up for it. A sample without any score
    raises, as does `on_failure: raise`: verifiers records the error on the trace.
Not applicable: None for the part, as where it failed, with `<name>/not_applicable` 1. A sample to
    which no reward applies raises, too.
Does not: see the policy step, so every reward counts on every call.
Run for real: verifiers 0.4.0, a task's own scoring, and its NeMo Gym client against `/verify`; no
    rollout of a model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from reward_sdk.adapters.rows import CONTEXT, REFERENCE, row_sample, url_image
from reward_sdk.adapters.scorer import Rewards, Scorer, values
from reward_sdk.errors import ScoringError
from reward_sdk.types import Sample

if TYPE_CHECKING:
    from verifiers.v1 import TaskData, Trace  # type: ignore[import-not-found]


def make_reward(
    rewards: Rewards,
) -> Callable[[Trace], Awaitable[dict[str, float]]]:
    """A reward function for `TaskConfig.rewards`.

    Args:
        rewards: a set, its YAML file, a mapping or a list of names, a client, or the URLs of reward
            servers.

    Raises:
        ConfigError: the set cannot be built.
        ServerError: no server became ready in time; or, from the function, none answered.
        ScoringError: from the function: nothing of the sample could be scored.
    """
    scorer = Scorer(rewards)

    async def report(trace: Trace) -> dict[str, float]:
        """Scores a trace; records the parts itself, since each has a weight of its own."""
        score = await scorer.score_one(_sample(trace, scorer.info.needs))
        for name in scorer.weights:
            for tail in ("applied", "failed", "not_applicable"):
                trace.record_metric(f"{name}/{tail}", score.logs[f"{name}/{tail}"])
        if score.total is None:
            reasons = {part.reason for part in score.parts.values() if part.reason}
            raise ScoringError(f"nothing could be scored: {'; '.join(sorted(reasons))}")
        for name, value in values(score, scorer.weights).items():
            trace.rewards[name] = None
            if value is not None:
                trace.record_reward(name, value, scorer.weights.get(name, 1.0))
        return {}

    return report


def _sample(trace: Trace, needs: Collection[str]) -> Sample:
    data = trace.task.data
    row = {name: getattr(data, name, None) for name in (*REFERENCE, *CONTEXT)}
    image = getattr(data, "xray", None) or _prompt_image(data)
    return row_sample(trace.last_reply, {**row, "image": image, "id": data.id or data.name}, needs)


def _prompt_image(data: TaskData) -> bytes | str | None:
    """The first image of the prompt; an URL that is no data URL is never fetched, and the rewards
    that look at it fail."""
    for message in data.prompt if isinstance(data.prompt, list) else []:
        for part in message.content if isinstance(message.content, list) else []:
            if part.type == "image_url":
                return url_image(part.image_url.url)
    return None
