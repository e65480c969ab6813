"""What a reward is, and the registry that finds one by name."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast, get_type_hints

from reward_sdk.errors import ConfigError, nearest, one_line
from reward_sdk.types import Outcome, Sample


class Reward(Protocol):
    """Scores a batch. Pure: the same samples give the same values.

    Attributes:
        name: name of the reward, under which it is logged, snake_case.
        bounds: closed range (low, high) of every value.
        needs: what must be present in a sample, of {"report", "reference", "image"}. The set
            checks before the call: without a well-formed report a sample gets the lower bound,
            without a reference or an image the reward does not apply.

    A class may leave them out: the name is then the one that a set calls it by, the range is 0 to
    1, and it needs a report.

    A reward without a model, without files and without a network may also say `light = True`: where
    calls are batched, such rewards share one thread, and every other one has a thread of its own.

    A reward may also have a method `explain(sample) -> Sequence[Evidence]`: what it read about each
    finding in a sample that it gave a value. The server's page shows this of a report that a person
    tries there, and `reward-sdk score --explain` writes it down; where only scores are asked, it is
    never called. It may be called in any thread.
    """

    @property
    def name(self) -> str: ...
    @property
    def bounds(self) -> tuple[float, float]: ...
    @property
    def needs(self) -> Collection[str]: ...

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Outcome | float | None]:
        """One value per sample, in order; None where the reward does not apply, an `Outcome` where
        there is a reason to give. An exception fails the batch; the set then retries sample by
        sample, so a reward never has to guard one sample against another."""
        ...


BOUNDS = (0.0, 1.0)
NEEDS = frozenset({"report"})
_RESERVED = frozenset(
    {"rewards", "server", "stage", "tags", "total", "missing_parts", "unscored"}
    | {"weight", "every", "offset", "mode", "on_failure", "deadline"}
)  # what means something else where a reward's name may stand
_CAN_NEED = frozenset({"report", "reference", "image"})

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
    "findings_score": "reward_sdk.rewards.findings_score",
    "chexbert_f1": "reward_sdk.rewards.clinical",
    "chexbert_similarity": "reward_sdk.rewards.clinical",
    "radgraph_f1": "reward_sdk.rewards.clinical",
    "semb_score": "reward_sdk.rewards.clinical",
    "radcliq": "reward_sdk.rewards.radcliq",
    "image_text": "reward_sdk.rewards.image_text",
    "judge": "reward_sdk.rewards.judge",
}


@dataclass(frozen=True)
class Setting:
    """A setting of a reward.

    Attributes:
        kind: type of the setting's value, by its type hint; `Any` without one.
        default: value of the setting where a set gives none; `inspect.Parameter.empty` if a set
            must.
    """

    kind: Any
    default: Any

    @property
    def wanted(self) -> bool:
        """Whether a set must give the setting a value."""
        return self.default is inspect.Parameter.empty


class Factory:
    """What makes a reward: a function of its settings, a class, or a function of samples.

    Args:
        name: name by which sets ask for the reward.
        made_of: the function of settings, the class, or the function of samples.
        bounds: closed range (low, high) of the reward's values, where it does not say so itself.
        needs: what a sample must have, of "report", "reference" and "image", where the reward does
            not say so itself.
        code: digest of the Python file that a set names the reward by, since its content may
            change; "" for any other reward.

    Raises:
        ConfigError: the name means something else in a set.
    """

    def __init__(
        self,
        name: str,
        made_of: Callable[..., Any],
        bounds: tuple[float, float] = BOUNDS,
        needs: Collection[str] = NEEDS,
        code: str = "",
    ) -> None:
        if name in _RESERVED:
            raise ConfigError(f"{name!r} means something else in a set: name the reward otherwise")
        self.name, self.made_of, self.code = name, made_of, code
        self._bounds, self._needs = bounds, needs

    @property
    def scores(self) -> bool:
        """Whether it is a function of samples, and no function that makes a reward."""
        return inspect.isfunction(self.made_of) and "samples" in _parameters(self.made_of)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.made_of) or "").partition("\n")[0]

    @property
    def needs(self) -> Collection[str] | None:
        """What the reward needs, where that can be told before it is built."""
        if self.scores:
            return self._needs
        if inspect.isclass(self.made_of):
            return getattr(self.made_of, "needs", self._needs)
        try:
            made = get_type_hints(self.made_of).get("return")
        except NameError:
            return None
        found = getattr(made, "needs", None)
        return found if isinstance(found, frozenset) else None

    @property
    def settings(self) -> dict[str, Setting]:
        """What a set can say of the reward, by name; NameError if types in it cannot be read."""
        made_of = self.made_of
        hints = get_type_hints(made_of.__init__ if inspect.isclass(made_of) else made_of)
        return {
            key: Setting(hints.get(key, Any), parameter.default)
            for key, parameter in _parameters(made_of).items()
            if not (self.scores and key == "samples")
        }

    def __call__(self, **settings: Any) -> Reward:
        """The reward.

        Raises:
            ConfigError: what was made is no reward.
        """
        made = _Function(self.made_of, settings) if self.scores else self.made_of(**settings)
        if not callable(made):
            raise ConfigError(
                f"gave {type(made).__name__}, which cannot be called. A reward is a function of "
                "`samples` that returns one number for each, or has the method "
                "`__call__(self, samples)`"
            )
        reward = cast(Reward, made)
        own = getattr(reward, "name", None)
        if own not in (None, self.name):
            raise ConfigError(
                f"calls itself {own!r}: write name = {self.name!r} in it, or leave its name out"
            )
        for key, value in (("name", self.name), ("bounds", self._bounds), ("needs", self._needs)):
            if getattr(reward, key, None) is None:
                _give(reward, key, value)
        _check(reward)
        if self.code:
            _give(reward, "code", self.code)
        return reward


class _Function:
    """A function of samples as a reward."""

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self._function, self._settings = function, settings

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Outcome | float | None]:
        return self._function(samples, **self._settings)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _give(reward: Any, key: str, value: Any) -> None:
    try:
        setattr(reward, key, value)
    except AttributeError:  # slots, a frozen dataclass
        raise ConfigError(f"has no {key!r} and takes none: write {key} = {value!r} in it") from None


def _check(reward: Reward) -> None:
    try:
        low, high = map(float, reward.bounds)
        ordered = low <= high and isfinite(high - low)
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ConfigError(f"its bounds are {reward.bounds!r}: write the range, such as (0.0, 1.0)")
    needs = reward.needs
    kind = isinstance(needs, Collection) and not isinstance(needs, str)
    if not kind or not all(need in [*_CAN_NEED] for need in needs):
        raise ConfigError(f"its needs are {needs!r}: write a set of {', '.join(sorted(_CAN_NEED))}")


_factories: dict[str, Factory] = {}
_in_files: dict[Callable[..., Any], Factory] = {}  # what files that sets name have registered
_IN_FILE = "reward_sdk_file_"  # begins the name of such a file's module

Made = TypeVar("Made", bound=Callable[..., Any])


def reward(
    name: str, *, bounds: tuple[float, float] = BOUNDS, needs: Collection[str] = NEEDS
) -> Callable[[Made], Made]:
    """Registers a reward under the name by which sets ask for it.

        from reward_sdk import reward

        @reward("brevity")
        def brevity(samples, words: int = 60) -> list[float]:
            return [min(1.0, words / len(sample.report.split())) for sample in samples]

    What is decorated is a function of `samples`, a class (see `Reward`), or a function that makes
    a reward. The other arguments, with their type hints, are the reward's settings in YAML.

    Args:
        name: name by which sets ask for the reward, snake_case.
        bounds: closed range (low, high) of the values of a function of samples, and of a reward
            that does not say its own.
        needs: what a sample must have for a function of samples, and for a reward that does not say
            so itself: some of "report", "reference" and "image".

    Raises:
        ConfigError: another reward has this name already, it is no name, or means something else
            in a set; or what is decorated can be no reward.
    """

    def register(made_of: Made) -> Made:
        _made_of(made_of, f"@reward({name!r})")
        if str(made_of.__module__).startswith(_IN_FILE):  # a set asks for it by its file
            _in_files[made_of] = Factory(name, made_of, bounds, needs)
            return made_of
        known = _factories.get(name)
        home = known.made_of.__module__ if known else _BUILT_IN.get(name)
        again = known is not None and known.made_of.__qualname__ == made_of.__qualname__
        if home is not None and (home != made_of.__module__ or (known and not again)):
            raise ConfigError(f"two rewards are named {name!r}: rename one of them")
        _factories[name] = Factory(name, made_of, bounds, needs)
        return made_of

    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError('a reward is registered with its name: @reward("my_reward")')
    return register


def _installed() -> dict[str, EntryPoint]:
    """Rewards of other distributions: entry points in the group `reward_sdk.rewards`, each of which
    names what `reward` would decorate."""
    return {entry.name: entry for entry in entry_points(group="reward_sdk.rewards")}


def names() -> tuple[str, ...]:
    """Every reward that a set can name, sorted."""
    return tuple(sorted(_BUILT_IN.keys() | _factories.keys() | _installed().keys()))


def factory(name: str) -> Factory:
    """What makes the reward of this name, or of "path/to/file.py:name".

    Raises:
        ConfigError: no reward has this name (the nearest one is given), or it does not load.
    """
    if is_in_file(name):
        return _in_file(name)
    if ".py" in name:
        file = name.partition(".py")[0]
        raise ConfigError(f"{name!r} names a file and no reward in it: write {file}.py:NAME")
    if name not in _factories and name in _BUILT_IN:
        import_module(_BUILT_IN[name])
    if name not in _factories:
        entry = _installed().get(name)
        if entry is None:
            raise ConfigError(f"no reward is named {name!r}: {nearest(name, names())}")
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # foreign code
            raise ConfigError(
                f"reward {name!r} of {entry.value!r} does not load: {one_line(error)}"
            ) from error
        _factories.setdefault(name, Factory(name, _made_of(found, entry.value)))
    return _factories[name]


def is_in_file(name: str) -> bool:
    """Whether a set names a reward by the file that it stands in.

    >>> is_in_file("rewards/mine.py:brevity"), is_in_file("rouge_l")
    (True, False)
    """
    file, _, name = name.rpartition(":")
    return file.endswith(".py") and bool(name)


def name_of(key: str) -> str:
    """The name of the reward that a set asks for under this key.

    >>> name_of("rewards/mine.py:brevity"), name_of("rouge_l")
    ('brevity', 'rouge_l')
    """
    return key.rpartition(":")[2] if is_in_file(key) else key


def _in_file(key: str) -> Factory:
    file, _, name = key.rpartition(":")
    path = Path(file).resolve()
    try:
        code = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    module = _module(path, code)
    if name not in vars(module):
        own = _own(module)
        raise ConfigError(f"{file} has no {name!r}: {nearest(name, own)}")
    found = _made_of(vars(module)[name], key)
    known = _in_files.get(found, Factory(name, found))
    return Factory(name, found, known._bounds, known._needs, code)


@cache
def _module(path: Path, code: str) -> ModuleType:
    """The file as a module; loaded again when what stands in it has changed."""
    name = f"{_IN_FILE}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None  # for a file that ends in .py
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # where type hints are looked up
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # foreign code
        raise ConfigError(f"{path} does not load: {one_line(error)}") from error
    return module


def _own(module: ModuleType) -> Iterable[str]:
    """What stands in a module itself and may be a reward."""
    return (
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    )


def _made_of(found: Any, where: str) -> Callable[..., Any]:
    if inspect.isfunction(found) or inspect.isclass(found):
        return found
    raise ConfigError(
        f"{where} is a {type(found).__name__}: name a function of `samples` that returns one "
        "number for each, a class with `__call__(self, samples)`, or a function that makes such an "
        "object"
    )
