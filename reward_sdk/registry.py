"""What a reward is, and the registry that finds one by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar

from reward_sdk.errors import ConfigError, nearest
from reward_sdk.types import Outcome, Sample


class Reward(Protocol):
    """Scores a batch. Pure: the same samples give the same outcomes.

    Attributes:
        name: metric key, snake_case.
        bounds: closed range of every ok value.
        needs: what must be present in a sample, of {"report", "reference", "image"}. The set
            checks before the call: without a well-formed report a sample gets the lower bound,
            without a reference or an image the reward is skipped.

    A reward without a model, without files and without a network may also say `light = True`: where
    calls are batched, such rewards share one thread, and every other one has a thread of its own.

    A reward may also have a method `explain(sample) -> Sequence[Evidence]`: what it read about each
    finding in a sample that it gave a value. The server's page shows this of a report that a person
    tries there; where only scores are asked, it is never called. It may be called in any thread.
    """

    name: str
    bounds: tuple[float, float]
    needs: frozenset[str]

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Outcome]:
        """One outcome per sample, in order. An exception fails the batch; the set then retries
        sample by sample, so a reward never has to guard one sample against another."""
        ...


Factory = TypeVar("Factory", bound=Callable[..., Reward])

# Where each built-in reward lives; nothing is imported before it is asked for.
_BUILT_IN = {
    "format": "reward_sdk.rewards.format",
    "length": "reward_sdk.rewards.guards",
    "repetition": "reward_sdk.rewards.guards",
    "rouge_l": "reward_sdk.rewards.wording",
    "bleu": "reward_sdk.rewards.wording",
    "gleu": "reward_sdk.rewards.wording",
    "meteor": "reward_sdk.rewards.wording",
    "cider": "reward_sdk.rewards.cider",
    "bertscore": "reward_sdk.rewards.bertscore",
    "findings_f1": "reward_sdk.rewards.findings",
    "chexbert_f1": "reward_sdk.rewards.clinical",
    "chexbert_similarity": "reward_sdk.rewards.clinical",
    "radgraph_f1": "reward_sdk.rewards.clinical",
    "image_text": "reward_sdk.rewards.image_text",
}
_factories: dict[str, Callable[..., Reward]] = {}


def reward(name: str) -> Callable[[Factory], Factory]:
    """Registers a factory under the name by which reward sets ask for it.

        from reward_sdk import reward

        @reward("brevity")
        def brevity(words: int = 60) -> Brevity: ...

    The factory's keyword arguments, with their type hints, are the reward's settings in YAML.

    Raises:
        ConfigError: another factory has this name already.
    """

    def register(factory: Factory) -> Factory:
        if _factories.get(name, factory) is not factory:
            raise ConfigError(f"two rewards are named {name!r}: rename one of them")
        _factories[name] = factory
        return factory

    return register


def _installed() -> dict[str, EntryPoint]:
    """Rewards of other distributions: entry points in the group `reward_sdk.rewards` that name a
    factory."""
    return {entry.name: entry for entry in entry_points(group="reward_sdk.rewards")}


def names() -> tuple[str, ...]:
    """Every reward that a set can name, sorted."""
    return tuple(sorted(_BUILT_IN.keys() | _factories.keys() | _installed().keys()))


def factory(name: str) -> Callable[..., Reward]:
    """The factory registered under `name`; ConfigError with the nearest name if there is none."""
    if name not in _factories and name in _BUILT_IN:
        import_module(_BUILT_IN[name])
    if name not in _factories:
        entry = _installed().get(name)
        if entry is None:
            raise ConfigError(f"no reward is named {name!r}: {nearest(name, names())}")
        try:
            _factories[name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"reward {name!r} of {entry.value!r} does not load: {error}"
            ) from error
    return _factories[name]
