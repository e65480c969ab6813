"""verl: a `compute_score` for `reward.custom_reward_function`; no code of your own.

    reward.custom_reward_function.path=pkg://reward_sdk.adapters.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.rewards=rewards.yaml

Receives: the response's text; `reward_model.ground_truth` as the reference; of `extra_info` the
    keys `image` (a path or bytes), `view`, `id`, `age`, `indication`.
Returns: the total under `score`.
Logs: every key of the set's logs and `unscored`, the same for every sample, in validation and in
    dumped rollouts; verl does not log extra keys of training batches.
On failure: the parts that are left, with `<name>/failed` 1; a sample without any score gets the
    set's lowest total and `unscored` 1. A server that stays away, a value of another type, and
    `on_failure: raise` end the run.
Not applicable: the parts that are left, with `<name>/not_applicable` 1 and `<name>/failed` 0; a
    sample to which no reward applies gets the set's lowest total and `unscored` 1.
Does not: see the policy step, so every reward counts on every call; nor images that are only in the
    prompt. In process each of verl's reward workers loads the set: serve those that have models,
    with quotes that the shell leaves: `'...rewards="http://node1:8000"'`.
Run for real: verl 0.9.1, its configuration, loader and reward loop on Ray, `naive` and `remote`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from os import getpid
from pathlib import Path
from threading import Lock
from typing import Any

from reward_sdk.adapters.rows import row_sample
from reward_sdk.adapters.scorer import Scorer
from reward_sdk.config import Source
from reward_sdk.reward_set import UNSCORED
from reward_sdk.types import Sample, Score

_building = Lock()


def _scorer(rewards: Source) -> Scorer:
    """The one scorer of a set: verl gives the settings anew with every sample, in any thread."""
    with _building:
        return _built(json.dumps(_plain(rewards)), getpid())


@cache
def _built(rewards: str, process: int) -> Scorer:
    return Scorer(json.loads(rewards))  # its threads do not live on in a fork


def _plain(value: Any) -> Any:
    """A value of verl's configuration without the types of OmegaConf."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    rewards: Source,
    **_: Any,
) -> dict[str, float]:
    """The score of one sample, made in one batch with those of concurrent calls.

    Args:
        data_source: name of the data set, which verl gives; not used.
        solution_str: the text that the policy wrote.
        ground_truth: the radiologist's report; None where the row has none.
        extra_info: a row with `image`, `view`, `id`, `age` and `indication`, where they are known.
        rewards: the set's YAML file, a mapping or a list of names, or the URLs of reward servers.

    Raises:
        ConfigError: the set cannot be built, the reference is no text, the age is none, or the
            image is of no known type.
        ServerError: no server answered in time.
    """
    scorer = _scorer(rewards)
    sample = _sample(solution_str, ground_truth, extra_info, scorer.info.needs)
    return _result(scorer, await scorer.score_one(sample))


def compute_score_sync(
    data_source: str,
    solution_str: str,
    ground_truth: str | None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    rewards: Source,
    **_: Any,
) -> dict[str, float]:
    """`compute_score` for managers that are not asynchronous, such as verl's `remote`: one sample
    at a time."""
    scorer = _scorer(rewards)
    [score] = scorer.score([_sample(solution_str, ground_truth, extra_info, scorer.info.needs)])
    return _result(scorer, score)


def _sample(
    response: str, reference: str | None, row: Mapping[str, Any] | None, needs: Collection[str]
) -> Sample:
    return row_sample(response, {**(row or {}), "reference": reference}, needs)


def _result(scorer: Scorer, score: Score) -> dict[str, float]:
    total = scorer.info.bounds[0] if score.total is None else score.total
    return {"score": total, **score.logs, UNSCORED: float(score.total is None)}
