"""Batches of columns to values, for TRL's trainers and ms-swift's: both call one function per
reward, one after another, with the same batch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from reward_sdk.adapters.rows import CONTEXT, IMAGE, REFERENCE, row_sample
from reward_sdk.adapters.scorer import MISSING, Rewards, Scorer, values
from reward_sdk.errors import ConfigError
from reward_sdk.types import Sample

logger = logging.getLogger(__name__)

UNVALUED = ("failed", "not_applicable")
"""The ends of the log keys that say why a reward has no value."""


class Rollouts:
    """The values of a rollout's batch, computed once for all the functions that ask for one each.

    Args:
        rewards: a set, its YAML file, a mapping or a list of names, a client, or the URLs of reward
            servers.

    Attributes:
        names: names of the functions that a trainer gets: the set's rewards, then `MISSING`.
        weights: one weight for each of `names`; that of `MISSING` is 1.
        shares: "<name>/failed" and "<name>/not_applicable" of each reward -> share of the last
            batch on which it failed, or which it does not concern, 0 to 1; empty before the first
            batch.
        samples: samples of the last batch, in its order; empty before the first batch.
    """

    def __init__(self, rewards: Rewards) -> None:
        self._scorer = Scorer(rewards, has_step=True)
        self.names = (*self._scorer.weights, MISSING)
        self.weights = [*self._scorer.weights.values(), 1.0]
        self.shares: dict[str, float] = {}
        self.samples: list[Sample] = []
        self._completions: Any = None
        self._values: list[dict[str, float | None]] = []

    def values(
        self, completions: Sequence[Any], columns: Mapping[str, Any], args: Any
    ) -> list[dict[str, float | None]]:
        """Per sample the values under `names`.

        Args:
            completions: responses of the batch, each a text or a list of messages.
            columns: what else the trainer gives a reward function, by name: the columns of the
                batch, each a list, and `trainer_state`.
            args: the trainer's arguments, as `policy_step` reads them.

        Raises:
            ConfigError: a column that the set needs is not there, or holds values of another type.
        """
        # The trainer gives every function the same list. It is held, so that no other can be taken
        # for it.
        if completions is not self._completions:
            self.samples = to_samples(completions, columns, self._scorer.info.needs)
            state = columns.get("trainer_state")
            step = None if state is None else policy_step(state.global_step, args)
            scores = self._scorer.score(self.samples, step)
            self._values = [values(score, self._scorer.weights) for score in scores]
            keys = [f"{n}/{tail}" for n in self._scorer.weights for tail in UNVALUED]
            self.shares = {
                key: sum(score.logs[key] for score in scores) / max(len(scores), 1) for key in keys
            }
            self._completions = completions
        return self._values


def policy_step(optimizer_steps: int, args: Any) -> int:
    """The policy step, counted from 1: a new one with every rollout, or with every optimizer step
    where one takes several rollouts.

    Args:
        optimizer_steps: number of optimizer steps taken so far, `trainer_state.global_step`.
        args: the trainer's arguments: `steps_per_generation` and `num_iterations` say for how many
            micro steps a rollout is used, `gradient_accumulation_steps` how many an optimizer step
            takes.
    """
    micro, taken = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    # Rounded up, because a rollout may begin between two optimizer steps.
    return (optimizer_steps if micro < taken else -(-optimizer_steps * taken // micro)) + 1


def to_samples(
    completions: Sequence[Any], columns: Mapping[str, Any], needs: Collection[str]
) -> list[Sample]:
    """The samples of a batch.

    Args:
        completions: responses of the batch, each a text or a list of messages.
        columns: column name -> a list with one value for each completion;
            `reward_sdk.adapters.rows` has the names that are read.
        needs: what the set needs of a sample: some of "report", "reference" and "image".

    Raises:
        ConfigError: a column that the set needs is not there, or holds values of another type.
    """
    used = {n: columns[n] for n in (*REFERENCE, *IMAGE, *CONTEXT, "id") if n in columns}
    if "reference" in needs and not used.keys() & set(REFERENCE):
        raise _missing(columns, REFERENCE)
    if "image" in needs and not used.keys() & set(IMAGE):
        used["images"] = _prompt_images(columns)
    rows = [dict(zip(used, cells, strict=True)) for cells in zip(*used.values(), strict=True)]
    return [
        row_sample(text_of(completion), row, needs)
        for completion, row in zip(completions, rows or [{}] * len(completions), strict=True)
    ]


def _missing(columns: Mapping[str, Any], names: Sequence[str]) -> ConfigError:
    found = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list)))
    return ConfigError(
        f"the set needs a column {' or '.join(map(repr, names))}; the training set has: {found}"
    )


def text_of(completion: Any) -> str:
    """What the policy wrote: the text itself, or that of the last message.

    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "Clear."}]}])
    'Clear.'
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or [] if part.get("type") == "text")


def _prompt_images(columns: Mapping[str, Any]) -> list[list[Any]]:
    """Images that stand in the prompts' messages, where there is no column of them."""
    prompts = columns.get("prompts") or columns.get("messages") or []
    if not prompts or isinstance(prompts[0], str):
        raise _missing(columns, IMAGE)
    found = [[*_shown(prompt)] for prompt in prompts]
    if not any(found):
        logger.warning("no image in this batch: neither in a column nor in a message")
    return found


def _shown(prompt: Sequence[Mapping[str, Any]]) -> list[Any]:
    contents = [message.get("content") for message in prompt]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if part.get("image") is not None]
