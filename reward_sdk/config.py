"""The YAML of a reward set: which rewards, their weights, schedule and settings.

    rewards:
      rouge_l:     {weight: 0.45}
      findings_f1: {weight: 0.5, every: 4}
      format:      {weight: 0.1, on_failure: raise}

The keys of `Entry` belong to the set; every other key is a setting of that reward.
Everything is checked when the set is read, and an error names the place and the nearest name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reward_sdk.errors import ConfigError, explain, nearest, one_line, plain
from reward_sdk.registry import Reward, factory

# Settings that had other names: reward -> old name -> new one.
_RENAMED = {
    "image_text": {"weights": "expert", "baseline": "calibration"},
    "chexbert_f1": {"weights": "model"},
    "chexbert_similarity": {"weights": "model"},
    "radgraph_f1": {"weights": "model"},
}

MAX_YAML = 1 << 18  # ours: characters of a set or a recipe; they have a few thousand
MAX_NODES = 10_000  # ours: keys and values of one
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Entry(BaseModel):
    """How a set uses one reward.

    Attributes:
        weight: factor of the reward's value in the total; 0 logs it without training on it.
        every: the reward counts on one policy step of so many (the paper's k_clin), ...
        offset: ... on steps s, counted from 1, with s % every == offset: 0 is the last of a period.
        mode: "add" counts beside the others; "replace", on its steps, instead of those that compare
            with the reference at every step, guards aside. The paper does not say which it does.
        on_failure: a failed part is left out ("skip"), ends the call ("raise") or counts as the
            given value.
        deadline: seconds after which a call to the reward has failed for the samples that it does
            not come back from; a day at most. After half of it each sample is judged alone.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    weight: Finite = 1.0
    every: Annotated[int, Field(ge=1)] = 1
    offset: Annotated[int, Field(ge=0)] = 0
    mode: Literal["add", "replace"] = "add"
    on_failure: Literal["skip", "raise"] | Finite = "skip"
    deadline: Annotated[Finite, Field(gt=0, le=86_400)] | None = None

    @model_validator(mode="after")
    def _schedule(self) -> Entry:
        if self.offset >= self.every:
            raise ValueError(f"offset {self.offset} must be smaller than every, {self.every}")
        if self.mode == "replace" and self.every == 1:
            raise ValueError("mode replace with every 1 would leave the replaced rewards no step")
        return self

    def due(self, step: int | None) -> bool:
        """Whether the schedule lets the reward count on this step."""
        return self.every == 1 or (step is not None and step % self.every == self.offset)

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file.

    Args:
        path: the file.
        what: what the message calls it, such as "reward set".

    Raises:
        ConfigError: naming the file, when it cannot be read or is no YAML.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_YAML + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:  # no text, or a path that cannot be one
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    return parse_yaml(text, str(path))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = {"<<"}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", node.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says; ConfigError, in one line, if it is none, or too large: more than
    `MAX_YAML` characters, or more than `MAX_NODES` values once its anchors are written out."""
    if len(text) > MAX_YAML:
        raise ConfigError(f"{where}: more than {MAX_YAML:,} characters, so no YAML of ours")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _nodes(node, {}) > MAX_NODES:
            raise ConfigError(f"{where}: its anchors stand for more than {MAX_NODES:,} values")
        return node and loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {plain(str(error))}") from None


def _nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """How many there are in a tree whose anchors are written out; infinite for one that holds
    itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        below = (n for pair in pairs for n in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_nodes(n, known) for n in below)
    return known[id(node)]


def read_set(path: str | Path) -> dict[str, Any]:
    """The `rewards` mapping of a YAML file, not yet checked further; of a recipe's too, which may
    name another file.

    Raises:
        ConfigError: naming the file, when it cannot be read or has another shape.
    """
    content = read_yaml(path, "reward set")
    is_recipe = isinstance(content, dict) and "stage" in content and "rewards" in content
    if not is_recipe and (not isinstance(content, dict) or set(content) != {"rewards"}):
        raise ConfigError(f"{path}: a reward set is one mapping under the key 'rewards'")
    rewards = content["rewards"]
    return read_set(rewards) if is_recipe and isinstance(rewards, str) else rewards


def parse_set(
    rewards: Any, where: str = "rewards", given: Mapping[str, Collection[str]] | None = None
) -> dict[str, Entry]:
    """Checks a set's mapping without building anything: names, keys, and what values they take.

    Args:
        rewards: reward name -> its keys.
        where: how messages name the place, e.g. "recipe.yaml: rewards".
        given: reward name -> settings that will be filled in, so that they may be missing yet.
    """
    if not isinstance(rewards, Mapping) or not rewards:
        raise ConfigError(f"{where}: name at least one reward, e.g. `rouge_l: {{weight: 1}}`")
    entries = {}
    for name, keys in rewards.items():
        place = f"{where}.{name}"
        try:
            factory(str(name))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        try:
            entry = Entry.model_validate({} if keys is None else keys)
        except ValidationError as error:
            raise ConfigError(f"{place}: {explain(error)}") from None
        _settings(str(name), entry, place, (given or {}).get(str(name), ()))
        entries[name] = entry
    return entries


def _settings(name: str, entry: Entry, place: str, given: Collection[str] = ()) -> dict[str, Any]:
    """An entry's settings, checked against the factory's parameters and their type hints."""
    build = factory(name)
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(build).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    try:
        hints = get_type_hints(build)
    except NameError as error:  # of a factory of another distribution
        raise ConfigError(f"{place}: its settings have no readable types: {error}") from None
    settings = {}
    for key, value in entry.settings.items():
        if key not in parameters:
            if new := _RENAMED.get(name, {}).get(key):
                raise ConfigError(f"{place}: {key!r} is called {new!r} now")
            known = [*Entry.model_fields, *parameters]
            raise ConfigError(f"{place}: unknown key {key!r}: {nearest(key, known)}")
        try:
            settings[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{place}.{key}: {explain(error)}") from None
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in settings and key not in given
    ]
    if missing:
        raise ConfigError(f"{place}: the reward needs {', '.join(missing)}")
    return settings


def build_reward(name: str, entry: Entry, where: str = "rewards") -> Reward:
    """The reward with its settings checked against the factory's type hints."""
    settings = _settings(name, entry, f"{where}.{name}")
    try:
        built = factory(name)(**settings)
    except ConfigError as error:
        raise ConfigError(f"{where}.{name}: {error}") from None
    except Exception as error:  # a factory of another distribution may raise anything
        raise ConfigError(f"{where}.{name}: cannot be built: {one_line(error)}") from error
    if getattr(built, "name", None) != name:
        raise ConfigError(f"{where}.{name}: its factory built {built!r}, no reward of this name")
    low, high = built.bounds
    if isinstance(entry.on_failure, float) and not low <= entry.on_failure <= high:
        raise ConfigError(
            f"{where}.{name}.on_failure: {entry.on_failure:g} lies outside of the reward's range, "
            f"{low:g} to {high:g}"
        )
    return built
