"""OpenRLHF without the plugin: its own remote reward, as a file or over HTTP.

    # rewards.py, for: --reward.remote_url rewards.py
    from reward_sdk.adapters.openrlhf import make_reward_func
    reward_func = make_reward_func("rewards.yaml")

Receives: the decoded query, the prompt and the label column: JSON with `report` (or `reference`,
    `ground_truth`), `id`, `image` (a path), `view`, `age`, `indication`; any other text is the
    report itself.
Returns: the total as `rewards`, and in [0, 1], for dynamic filtering, as `scores`.
Logs: every key of the set's logs and `unscored`, the same for every sample, as `train/<key>`.
On failure: the parts that are left, with `<name>/failed` 1; a sample without any score, also for
    want of a server or by `on_failure: raise`, gets the set's lowest total and `unscored` 1. It
    never raises: OpenRLHF would drop the sample without a word.
Not applicable: the parts that are left, with `<name>/not_applicable` 1 and `<name>/failed` 0; a
    sample to which no reward applies gets the set's lowest total and `unscored` 1.
Does not: see the policy step, so every reward counts on every call; nor the image, which only the
    label can name; nor rank. A file scores one sample at a time: serve sets that have models. The
    plugin in this distribution has none of these limits.
Run for real: openrlhf 0.11.2, its HTTP client, its file loader and its rollout code.

Over HTTP, `--reward.remote_url http://node1:8000/get_reward` needs no code; images that labels name
must lie in the server's `--images` folders. OpenRLHF sends no token.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from reward_sdk.adapters.rows import row_sample
from reward_sdk.adapters.scorer import Rewards, Scorer
from reward_sdk.errors import ScoringError, one_line
from reward_sdk.reward_set import UNSCORED
from reward_sdk.types import Sample, Score
from reward_sdk.wire import MAX_SAMPLES, MAX_TEXT

logger = logging.getLogger(__name__)

_Prompted = Annotated[str, Field(max_length=4 * MAX_TEXT)]  # image tokens are expanded in it
_SPECIAL = re.compile(r"</?s>|<(?:pad|unk|eos)>|<\|[^|<>]{1,40}\|>")


class Query(BaseModel):
    """The body of `POST /get_reward`.

    Attributes:
        query: prompt and response of each sample, decoded with special tokens.
        prompts: prompt of each sample alone, before images were expanded.
        labels: label of each sample: a JSON text or object, which is a row of
            `reward_sdk.adapters.rows`; any other text is the reference report itself.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": ["[INST] Describe. [/INST] <report> No effusion. </report></s>"],
                    "prompts": ["[INST] Describe. [/INST]"],
                    "labels": ['{"id": "s1", "report": "No pleural effusion."}'],
                }
            ]
        }
    )

    query: Annotated[list[_Prompted], Field(max_length=MAX_SAMPLES)]
    prompts: Annotated[list[_Prompted], Field(max_length=MAX_SAMPLES)]
    labels: Annotated[list[Any], Field(max_length=MAX_SAMPLES)]


class Reply(BaseModel):
    """What stock OpenRLHF reads: one object of lists."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def sample(query: str, prompt: str, label: Any, needs: Collection[str]) -> Sample:
    """One sample of a call.

    Raises:
        ScoringError: the response cannot be found in the query, or the label cannot be read.
        ConfigError: the reference is no text, the age is none, or the image is of no known type.
    """
    return row_sample(response_of(query, prompt), _row(label), needs)


def _row(label: Any) -> dict[str, Any]:
    if isinstance(label, str):
        if not label.lstrip().startswith("{"):
            return {"report": label}
        try:
            label = json.loads(label)
        except (ValueError, RecursionError) as error:
            raise ScoringError(f"label: no JSON: {error}") from None
    if not isinstance(label, dict | None):
        raise ScoringError(f"label: neither a text nor an object, but {type(label).__name__}")
    return label or {}


def response_of(query: str, prompt: str) -> str:
    """What the policy wrote, without the special tokens at its end.

    The query need not start with the prompt, since images are expanded in it; but it holds the
    prompt's end. ScoringError if it does not.

    >>> response_of("<image><image> Describe. [/INST] Clear.</s>", "<image> Describe. [/INST]")
    'Clear.'
    """
    # The longest end of the prompt that the query holds; without images all of it.
    short, long = len(prompt) if prompt in query else 0, len(prompt)
    while short < long:
        middle = (short + long + 1) // 2
        short, long = (middle, long) if prompt[-middle:] in query else (short, middle - 1)
    end = prompt[len(prompt) - short :]
    if prompt.strip() and not end.strip():
        raise ScoringError("the query does not hold the end of its prompt")
    response = query[query.index(end) + len(end) :].strip()
    last = len(response)
    while response[last - 1 : last] == ">":
        start = response.rfind("<", 0, last)
        if start < 0 or not _SPECIAL.fullmatch(response, start, last):
            break
        last = start
        while response[last - 1 : last].isspace():
            last -= 1
    return response[:last]


def reply(
    scores: Sequence[Score | None], bounds: tuple[float, float], log_keys: Sequence[str]
) -> dict[str, Any]:
    """What OpenRLHF is told: the content of a `Reply`.

    Args:
        scores: score of each sample; None for those that could not be scored at all.
        bounds: range of the set's totals, which becomes [0, 1] in `scores` for dynamic filtering; a
            sample without a total gets its lower end.
        log_keys: keys of the set's logs; each is 0 for a sample without a score.
    """
    low, high = bounds
    totals = [None if score is None else score.total for score in scores]
    rewards = [low if total is None else total for total in totals]
    empty = dict.fromkeys(log_keys, 0.0)
    rows = [empty if score is None else score.logs for score in scores]
    logs = {key: [row[key] for row in rows] for key in log_keys}
    return {
        "rewards": rewards,
        "scores": [(total - low) / (high - low) if high > low else 0.0 for total in rewards],
        "extra_logs": {**logs, UNSCORED: [float(total is None) for total in totals]},
    }


def make_reward_func(
    rewards: Rewards,
) -> Callable[[list[str], list[str], list[Any]], dict[str, Any]]:
    """The `reward_func` that OpenRLHF looks for in a file.

    Args:
        rewards: a set, its YAML file, a mapping or a list of names, a client, or the URLs of reward
            servers.

    Raises:
        ConfigError: the set cannot be built.
        ServerError: no server became ready in time.
    """
    scorer = Scorer(rewards)

    def one(query: str, prompt: str, label: Any) -> Score | None:
        try:
            [score] = scorer.score([sample(query, prompt, label, scorer.info.needs)])
            return score
        except Exception as error:  # OpenRLHF would drop the sample without a word
            logger.warning("unscored: %s", one_line(error))
            return None

    def reward_func(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
        scores = [one(*row) for row in zip(queries, prompts, labels, strict=True)]
        return reply(scores, scorer.info.bounds, scorer.info.log_keys)

    return reward_func
