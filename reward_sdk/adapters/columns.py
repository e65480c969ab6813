"""Rows of a training set to samples, for stacks that hand over the columns of a batch.

reference, report or ground_truth    the radiologist's report; None where there is none
image or images                      the X-ray: a path, a PIL image, a file's bytes, a mapping
                                     with `path` or `bytes`, or a list of these, whose first
                                     counts; None where there is none
view, id                             see `ImageRef` and `Sample`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from reward_sdk.adapters.scorer import MISSING, Scorer, values
from reward_sdk.client import RewardClient
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError
from reward_sdk.types import ImageRef, Sample

REFERENCE = ("reference", "report", "ground_truth")
IMAGE = ("image", "images")


class Rollouts:
    """The values of a rollout's batch, computed once for all the functions that ask for one each.

    Args:
        rewards: see `Scorer`.
        args: the trainer's `GRPOConfig`, which says how many optimizer steps a rollout serves.

    Attributes:
        names: of the functions: the rewards', and `MISSING`.
        weights: of the functions.
        failed: reward name -> share of the batch on which it failed.
    """

    def __init__(self, rewards: RewardSet | RewardClient | str, args: Any = None) -> None:
        self._scorer = Scorer(rewards, has_step=True)
        self.names = (*self._scorer.weights, MISSING)
        self.weights = [*self._scorer.weights.values(), 1.0]
        self.args = args
        self._completions: Any = None
        self._values: list[dict[str, float | None]] = []
        self.failed: dict[str, float] = {}

    def values(
        self, completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[dict[str, float | None]]:
        """Per sample the values under `names`.

        Args:
            completions: what the policy wrote: texts, or lists of messages.
            columns: the other arguments of a reward function: columns, and `trainer_state`.

        Raises:
            ConfigError: a column that the set needs is not there, or holds something else.
        """
        # The trainer gives every function the same list. It is held, so that no other can be taken
        # for it.
        if completions is not self._completions:
            samples = to_samples(completions, columns, self._scorer.info.needs)
            scores = self._scorer.score(samples, self.step(columns["trainer_state"].global_step))
            self._values = [values(score, self._scorer.weights) for score in scores]
            self.failed = {
                name: sum(score.logs[f"{name}/failed"] for score in scores) / len(scores)
                for name in self._scorer.weights
            }
            self._completions = completions
        return self._values

    def step(self, optimizer_steps: int) -> int:
        """The policy step, counted from 1: a new one with every rollout, or with every optimizer
        step where one takes several rollouts.

        Args:
            optimizer_steps: that were taken, `trainer_state.global_step`.
        """
        args = self.args
        micro_steps = args.steps_per_generation * args.num_iterations
        return optimizer_steps // max(1, micro_steps // args.gradient_accumulation_steps) + 1


def to_samples(
    completions: Sequence[Any], columns: Mapping[str, Any], needs: Sequence[str]
) -> list[Sample]:
    """The samples of a batch.

    Args:
        completions: what the policy wrote: texts, or lists of messages.
        columns: of the batch, each a list.
        needs: of the set, see `RewardSet.needs`.

    Raises:
        ConfigError: a column that the set needs is not there, or holds something else.
    """
    absent: list[Any] = [None] * len(completions)
    references = images = absent
    if "reference" in needs:
        references = _column(columns, REFERENCE)
    if "image" in needs:
        images = _prompt_images(columns) or _column(columns, IMAGE)
    views, ids = columns.get("view", absent), columns.get("id", absent)
    return [
        Sample(
            response=text_of(completion),
            reference=_text(reference),
            image=image_ref(image, view),
            id="" if id_ is None else str(id_),
        )
        for completion, reference, image, view, id_ in zip(
            completions, references, images, views, ids, strict=True
        )
    ]


def _column(columns: Mapping[str, Any], names: Sequence[str]) -> Sequence[Any]:
    for name in names:
        if name in columns:
            return columns[name]
    found = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list)))
    raise ConfigError(
        f"the set needs a column {' or '.join(map(repr, names))}; the training set has: {found}"
    )


def _text(reference: Any) -> str | None:
    if reference is None or isinstance(reference, str):
        return reference
    raise ConfigError(f"a reference is a text or None, not {type(reference).__name__}")


def text_of(completion: Any) -> str:
    """What the policy wrote: the text itself, or that of the last message.

    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "Clear."}]}])
    'Clear.'
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or [] if part.get("type") == "text")


def _prompt_images(columns: Mapping[str, Any]) -> list[Any] | None:
    """Images that stand in the prompts' messages, if there is no column of them."""
    prompts = columns.get("prompts")
    if any(name in columns for name in IMAGE) or not prompts or isinstance(prompts[0], str):
        return None
    found = [[*_shown(prompt)] for prompt in prompts]
    return found if any(found) else None


def _shown(prompt: Sequence[Mapping[str, Any]]) -> list[Any]:
    parts = [part for m in prompt if isinstance(m["content"], list) for part in m["content"]]
    return [part["image"] for part in parts if part.get("image") is not None]


def image_ref(image: Any, view: str | None = None) -> ImageRef | None:
    """The X-ray of a row, see the module.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(image, list | tuple):
        image = image[0] if image else None
    if image is None:
        return None
    if isinstance(image, Mapping):
        # An empty file rather than none: a row that has an image must not be taken for one without.
        image = image.get("bytes") or image.get("path") or b""
    if isinstance(image, str):
        return ImageRef(path=image, view=view)
    if isinstance(image, bytes):
        return ImageRef(data=image, view=view)
    if isinstance(image, Image):
        return ImageRef(pixels=image, view=view)
    raise ConfigError(f"an image is a path, bytes or a PIL image, not {type(image).__name__}")
