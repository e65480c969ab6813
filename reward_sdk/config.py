"""A reward set in words: which rewards, their weights, schedule and settings.

    rewards:
      rouge_l:     {weight: 0.45}
      findings_f1: {weight: 0.5, every: 4}
      format:      {weight: 0.1, on_failure: raise}
      mine.py:brevity: {weight: 0.1, words: 60}

The keys of `Entry` belong to the set; every other key is a setting of that reward. `tags: optional`
among the rewards reads responses without `<report>` tags, too. The key `rewards` may be left out, a
list of names is a set whose weights are 1, a recipe is the set of its `rewards`, and in Python each
of these is a dict or a list. Python files that a set names lie relative to its YAML file, or to the
current folder where it has none, and are executed; other paths are relative to the current folder.

Everything is checked when the set is read, and an error names the place and the nearest name.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reward_sdk.errors import ConfigError, explain, nearest, one_line, plain
from reward_sdk.registry import Reward, factory, is_in_file, name_of, names
from reward_sdk.text import Tags

# Settings that had other names: reward -> old name -> new one.
_RENAMED = {
    "image_text": {"weights": "expert", "baseline": "calibration"},
    "chexbert_f1": {"weights": "model"},
    "chexbert_similarity": {"weights": "model"},
    "radgraph_f1": {"weights": "model"},
}

MAX_YAML = 1 << 18  # ours: characters of a set or a recipe; they have a few thousand
MAX_NODES = 10_000  # ours: keys and values of one
Source = str | Path | Mapping[str, Any] | Sequence[str]
"""What a set can be made of: a YAML file, or what could stand in one."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Entry(BaseModel):
    """How a set uses one reward.

    Attributes:
        weight: factor of the reward's value in the total; 0 logs the value without training on it.
        every: length in policy steps of a period of the schedule, on one step of which the reward
            counts (the paper's k_clin); 1 for every step.
        offset: step of each period on which the reward counts: steps s, counted from 1, with s %
            every == offset. It must be smaller than `every`; 0 is the last step of a period.
        mode: "add": the reward counts beside the others. "replace", for an `every` above 1: on its
            steps it counts instead of those that compare with the reference at every step, guards
            aside. The paper does not say which it does.
        on_failure: what becomes of a part that failed: "skip" leaves it out, "raise" ends the call,
            and a number within the reward's range counts as its value.
        deadline: seconds after which a call to the reward has failed for the samples that it does
            not come back from, above 0 and at most a day; None for no limit. After half of it each
            sample is judged alone.
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
        """The settings of the reward itself: the keys that are not those of every entry."""
        return dict(self.model_extra or {})


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file.

    Args:
        path: the YAML file.
        what: what messages call the file, such as "reward set".

    Raises:
        ConfigError: the file cannot be read or is no YAML; names it.
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


def read_set(source: Source) -> tuple[dict[str, Any], str]:
    """A set's mapping, not yet checked further, and how messages name its place.

    Args:
        source: a YAML file, or what could stand in one: a mapping, or a list of rewards' names.

    Raises:
        ConfigError: the set cannot be read or has another shape; names its place.
    """
    if not isinstance(source, str | Path):
        return normalised(source, Path(), "rewards")
    _refuse_names(str(source), Path())
    return normalised(read_yaml(source, "reward set"), Path(source).parent, str(source))


def _refuse_names(source: str, folder: Path) -> None:
    """ConfigError if these are names of rewards, and no file."""
    words = [word.strip() for word in source.split(",")]
    if set(map(name_of, words)) <= {*names()} and not (folder / source).exists():
        raise ConfigError(f"no file {source}: rewards are named in a list, {json.dumps(words)}")


def normalised(content: Any, folder: Path, where: str) -> tuple[dict[str, Any], str]:
    """A set that is written in one of several ways as one mapping, and how messages name its place.

    Args:
        content: a set: a mapping with or without the key `rewards`, or a list of rewards' names; or
            a recipe.
        folder: folder that Python files which the set names, and a set that a recipe names, are
            relative to.
        where: how messages name the place of `content`, such as "recipe.yaml".
    """
    if isinstance(content, Mapping) and "stage" in content:
        if "rewards" not in content:
            raise ConfigError(f"{where}: a recipe of stage {content['stage']}, without rewards")
        content = {"rewards": content["rewards"]}
    if isinstance(content, Mapping) and "rewards" in content:
        if beside := [str(key) for key in content if key != "rewards"]:
            raise ConfigError(
                f"{where}: a set stands whole under 'rewards'; put {', '.join(beside)} there too"
            )
        content = content["rewards"]
        where = where if where.endswith("rewards") else f"{where}: rewards"
        if isinstance(content, str):
            _refuse_names(content, folder)
            return read_set(folder / content)
    named = content
    if isinstance(content, list | tuple) and all(isinstance(key, str) for key in content):
        content = dict.fromkeys(content)
    if callable(content) or (isinstance(content, list | tuple) and any(map(callable, content))):
        raise ConfigError(f"{where}: {_NO_OBJECTS}")
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{where}: a reward set is a mapping, such as `rouge_l: {{weight: 1}}`, or a list of "
            f"rewards' names, not {plain(repr(content)[:100])}"
        )
    if "server" in content:
        raise ConfigError(f"{where}: scored by servers: name the set that they serve")
    located = {_located(key, folder): keys for key, keys in content.items()}
    if len(located) < len(named):
        raise ConfigError(f"{where}: a reward stands twice")
    return located, where


def _located(key: Any, folder: Path) -> Any:
    """The key of a reward in a file with its whole path, as other processes find it."""
    if not isinstance(key, str) or not is_in_file(key):
        return key
    file, _, name = key.rpartition(":")
    return f"{(folder / Path(file).expanduser()).resolve()}:{name}"


@dataclass(frozen=True)
class SetConfig:
    """A set's configuration, checked.

    Attributes:
        entries: key under which the set names a reward -> how the set uses it.
        tags: whether a response needs `<report>` tags. "required": without a well-formed pair it
            has no report (paper). "optional": without any such tag it is a report itself.
    """

    entries: Mapping[str, Entry]
    tags: Tags


def parse_set(
    rewards: Mapping[str, Any],
    where: str = "rewards",
    given: Mapping[str, Collection[str]] | None = None,
) -> SetConfig:
    """Checks a set's mapping without building anything: names, keys, and what values they take.

    Args:
        rewards: the set's mapping, as `read_set` gives it.
        where: how messages name the place of the set, such as "recipe.yaml: rewards".
        given: key of a reward -> names of its settings that are filled in later, so that they may
            be missing yet.
    """
    try:
        tags = TypeAdapter(Tags).validate_python(rewards.get("tags", "required"))
    except ValidationError as error:
        raise ConfigError(f"{where}.tags: {explain(error)}") from None
    entries: dict[str, Entry] = {}
    for key, keys in rewards.items():
        if key == "tags":
            continue
        place = _place(where, key)
        if callable(keys):
            raise ConfigError(f"{place}: {_NO_OBJECTS}")
        if key in Entry.model_fields:
            raise ConfigError(
                f"{where}: {key!r} is a key of a reward and stands beside it: indent it, or write "
                f"`rouge_l: {{{key}: {keys}}}`"
            )
        try:
            factory(str(key))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        entries[key] = _entry(keys, place)
        _settings(str(key), entries[key], place, (given or {}).get(str(key), ()))
    if not entries:
        raise ConfigError(f"{where}: name at least one reward, e.g. `rouge_l: {{weight: 1}}`")
    for name, times in Counter(map(name_of, entries)).items():
        if times > 1:
            raise ConfigError(f"{where}: {times} rewards are named {name!r}: rename one of them")
    return SetConfig(entries, tags)


_NO_OBJECTS = (
    "a set names rewards and holds none. Put `@reward(NAME)` before the function or class and "
    "write {'weight': 1} here, or name it by its file, 'path/to/file.py:name'"
)


def _entry(keys: Any, place: str) -> Entry:
    if isinstance(keys, int | float | str):
        weight = str(keys).replace(",", ".")
        raise ConfigError(f"{place}: a reward's keys are a mapping: write {{weight: {weight}}}")
    if isinstance(keys, Mapping) and any(isinstance(key, int) for key in keys):
        raise ConfigError(f"{place}: a key is a number: numbers have a decimal point, as in 0.9")
    try:
        return Entry.model_validate({} if keys is None else keys)
    except ValidationError as error:
        raise ConfigError(f"{place}: {explain(error)}") from None


def _place(where: str, key: object) -> str:
    """How messages name the place of a reward in a set."""
    return f"{where}: {key}" if is_in_file(str(key)) else f"{where}.{key}"


def _settings(key: str, entry: Entry, place: str, given: Collection[str] = ()) -> dict[str, Any]:
    """An entry's settings, checked against those that the reward has."""
    try:
        known = factory(key).settings
    except NameError as error:  # in foreign code
        raise ConfigError(f"{place}: its settings have no readable types: {error}") from None
    if taken := known.keys() & Entry.model_fields.keys():
        raise ConfigError(f"{place}: its {sorted(taken)[0]!r} is a key of every set: rename it")
    settings = {}
    for name, value in entry.settings.items():
        if name not in known:
            if new := _RENAMED.get(key, {}).get(name):
                raise ConfigError(f"{place}: {name!r} is called {new!r} now")
            hint = nearest(name, [*Entry.model_fields, *known])
            hint = "it stands beside the rewards" if name == "tags" else hint
            raise ConfigError(f"{place}: unknown key {name!r}: {hint}")
        try:
            settings[name] = TypeAdapter(known[name].kind).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{place}.{name}: {explain(error)}") from None
    missing = [
        name
        for name, setting in known.items()
        if setting.wanted and name not in settings and name not in given
    ]
    if missing:
        hint = "" if all(known[name].kind is not Any for name in missing) else _NO_SAMPLES
        raise ConfigError(f"{place}: the reward needs {', '.join(missing)}{hint}")
    return settings


_NO_SAMPLES = ". A function that scores calls its first argument `samples`"


def build_reward(key: str, entry: Entry, where: str = "rewards") -> Reward:
    """The reward with its settings checked against its type hints."""
    settings = _settings(key, entry, _place(where, key))
    try:
        built = factory(key)(**settings)
    except ConfigError as error:
        raise ConfigError(f"{_place(where, key)}: {error}") from None
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise ConfigError(f"{_place(where, key)}: cannot be built: {one_line(error)}") from error
    low, high = built.bounds
    if isinstance(entry.on_failure, float) and not low <= entry.on_failure <= high:
        raise ConfigError(
            f"{_place(where, key)}.on_failure: {entry.on_failure:g} lies outside of the reward's "
            f"range, {low:g} to {high:g}"
        )
    return built
