import json
from collections.abc import Sequence
from typing import Literal

import pytest

from reward_sdk.config import Entry, build_reward, parse_set, read_set
from reward_sdk.errors import ConfigError
from reward_sdk.registry import factory, names, reward
from reward_sdk.types import Outcome, Sample

built: list[dict] = []


class Constant:
    name = "test_constant"
    bounds = (0.0, 1.0)
    needs: frozenset[str] = frozenset()

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Outcome(0.5)] * len(samples)


@reward("test_constant")
def make(*, path: str, size: int = 3, kind: Literal["plain", "smooth"] = "plain") -> Constant:
    built.append({"path": path, "size": size, "kind": kind})
    if size == 13:
        raise ConfigError("size 13 brings bad luck")
    return Constant()


def refused(keys, name: str = "test_constant") -> str:
    """The message for a set with one reward."""
    where = "set.yaml: rewards"
    with pytest.raises(ConfigError) as caught:
        build_reward(name, parse_set({name: keys}, where).entries[name], where)
    return str(caught.value)


def test_settings_reach_the_factory_with_their_types():
    entry = Entry.model_validate({"weight": 2, "path": "x", "size": "7", "kind": "smooth"})
    build_reward("test_constant", entry)
    assert built[-1] == {"path": "x", "size": 7, "kind": "smooth"}


def test_checking_a_set_builds_nothing():
    before = len(built)
    parse_set({"test_constant": {"path": "x"}})
    assert len(built) == before


def test_a_reward_without_keys_has_weight_1_on_every_step():
    assert parse_set({"format": None}).entries["format"] == Entry(
        weight=1, every=1, on_failure="skip"
    )


def test_an_unknown_reward_is_refused_with_the_nearest_name():
    message = refused({}, name="rogue_l")
    assert message.startswith("set.yaml: rewards: no reward is named 'rogue_l'")
    assert "did you mean 'rouge_l'?" in message


@pytest.mark.parametrize(
    ("key", "near"),
    [("wieght", "weight"), ("evry", "every"), ("sise", "size"), ("on_fail", "on_failure")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key, near):
    message = refused({"path": "x", key: 1})
    assert f"rewards.test_constant: unknown key {key!r}: did you mean {near!r}?" in message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("image_text", "weights", "expert"),
        ("image_text", "baseline", "calibration"),
        ("chexbert_f1", "weights", "model"),
        ("chexbert_similarity", "weights", "model"),
        ("radgraph_f1", "weights", "model"),
    ],
)
def test_a_setting_under_its_old_name_is_refused_with_the_new_one(name, old, new):
    with pytest.raises(ConfigError) as error:
        parse_set({name: {old: "x"}}, "set.yaml: rewards")
    assert str(error.value) == f"set.yaml: rewards.{name}: {old!r} is called {new!r} now"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", "heavy"),
        ("weight", float("nan")),
        ("every", 0),
        ("every", 1.5),
        ("on_failure", "ignore"),
        ("on_failure", float("inf")),
        ("size", "big"),
        ("kind", "rough"),
        ("path", None),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_was_given(key, value):
    message = refused({"path": "x"} | {key: value})
    assert key in message
    assert f"got {value!r}" in message


def test_a_setting_that_the_reward_cannot_do_without_is_asked_for():
    assert "the reward needs path" in refused({})


def test_what_the_factory_refuses_is_told_with_its_place():
    message = refused({"path": "x", "size": 13})
    assert message == "set.yaml: rewards.test_constant: size 13 brings bad luck"


@pytest.mark.parametrize("rewards", [None, {}, [], 3, [1], "", {"format": 3}, {1: {}}])
def test_something_else_than_a_set_of_rewards_is_refused_with_its_place(rewards, tmp_path):
    (tmp_path / "set.yaml").write_text(json.dumps({"rewards": rewards}))
    with pytest.raises(ConfigError, match=r"set\.yaml: rewards|cannot read"):
        parse_set(*read_set(tmp_path / "set.yaml"))


def test_a_set_is_the_same_however_it_is_written(tmp_path):
    rewards = {"format": {"weight": 0.1}, "rouge_l": None}
    path, recipe, pointing = (tmp_path / name for name in ("set.yaml", "r.yaml", "p.yaml"))
    path.write_text(json.dumps(rewards))
    recipe.write_text(json.dumps({"name": "r", "stage": "grpo", "rewards": rewards}))
    pointing.write_text("name: p\nstage: grpo\nrewards: set.yaml\n")
    ways = [rewards, {"rewards": rewards}, path, str(path), recipe, pointing]
    assert [read_set(way)[0] for way in ways] == [rewards] * len(ways)


def test_a_list_of_names_is_a_set_of_equal_weights():
    mapping, where = read_set(["format", "rouge_l"])
    assert [entry.weight for entry in parse_set(mapping, where).entries.values()] == [1, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"rewards": {"format": {}}, "tags": "optional"}, "put tags there too"),
        ({"name": "r", "stage": "sft"}, "a recipe of stage sft, without rewards"),
        ({"rewards": {"server": ["http://x"]}}, "name the set that they serve"),
        ({"rouge_l": None, "weight": 0.9}, "'weight' is a key of a reward and stands beside it"),
        ({"rouge_l": 0.9}, r"write \{weight: 0.9\}"),
        ({"rouge_l": {"weight": "0,9"}}, "decimal point"),
        ({"mine": len}, "Put `@reward"),
        ([len], "Put `@reward"),
        ({"rouge_l": {"weight": 0, 9: None}}, "a decimal point"),
        ({"rouge_l": "0,9"}, r"write \{weight: 0.9\}"),
        ({"rouge_l": {"tags": "optional"}}, "it stands beside the rewards"),
        ({"BLEU-4": {}}, "did you mean 'bleu'"),
        ({"rouge_l": len}, "Put `@reward"),
        ({"rouge_l": {}, "tags": "maybe"}, "tags"),
        (["rouge_l", "rouge_l"], "a reward stands twice"),
        ("rouge_l", r'named in a list, \["rouge_l"\]'),
        ("rouge_l,format", r'named in a list, \["rouge_l", "format"\]'),
    ],
)
def test_what_is_no_set_is_answered_with_what_to_change(source, message):
    with pytest.raises(ConfigError, match=message):
        parse_set(*read_set(source))


def test_two_rewards_cannot_have_one_name():
    with pytest.raises(ConfigError, match="two rewards are named 'test_constant'"):
        reward("test_constant")(lambda: Constant())


@pytest.mark.parametrize("name", names())
def test_every_name_that_a_set_can_use_has_a_factory(name):
    if name == "image_text":
        pytest.importorskip("torchxrayvision")
    assert callable(factory(name))


def test_a_file_gives_its_rewards(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("rewards:\n  format: {weight: 0.1}\n", encoding="utf-8")
    assert read_set(path) == ({"format": {"weight": 0.1}}, f"{path}: rewards")


@pytest.mark.parametrize(
    "content",
    [b"", b"rewards: {}\nmore: 1", b"- rewards", b"{", b"\xff\xfe", b"a: \x00"],
)
def test_a_file_that_is_no_reward_set_is_refused_by_name(tmp_path, content):
    path = tmp_path / "set.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"set\.yaml"):
        parse_set(*read_set(path))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        read_set(tmp_path / "none.yaml")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "set.yaml").write_text("rewards:\n  bleu: {}\n  bleu: {weight: 2}\n")
    with pytest.raises(ConfigError, match="key 'bleu' stands twice"):
        read_set(tmp_path / "set.yaml")


def bomb(levels: int) -> str:
    """Anchors in anchors: 9 to the power of the levels."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [bomb(9), bomb(5), "a: &a [*a]", "a: &a {b: [*a, *a]}"],
    ids=["large", "not so large", "in itself", "twice in itself"],
)  # fmt: skip
def test_anchors_that_stand_for_too_much_are_refused_in_a_line(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml: its anchors stand for more") as caught:
        read_set(tmp_path / "x.yaml")
    assert len(str(caught.value)) < 200


def test_anchors_that_spare_a_line_are_taken(tmp_path):
    text = "rewards: {bleu: &one {weight: 0.5}, rouge_l: *one, format: {<<: *one}}"
    (tmp_path / "x.yaml").write_text(text)
    assert read_set(tmp_path / "x.yaml")[0]["format"] == {"weight": 0.5}


def test_a_file_that_is_far_too_large_for_a_set_is_refused_unread(tmp_path):
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"x\.yaml: more than 262,144 characters"):
        read_set(tmp_path / "x.yaml")


@pytest.mark.parametrize("keys", [0, False, [], ""])
def test_keys_that_are_no_mapping_are_refused_and_not_the_defaults(keys):
    with pytest.raises(ConfigError):
        parse_set({"rouge_l": keys})


def test_a_value_for_failures_lies_in_the_range_of_the_reward():
    assert "outside of the reward's range" in refused(
        {"path": "x", "on_failure": 7}, name="test_constant"
    )


def test_a_factory_that_raises_or_builds_something_else_is_named():
    @reward("test_raises")
    def raises() -> Constant:
        raise RuntimeError("no gpu")

    @reward("test_other")
    def other() -> Constant:
        return Constant()

    assert "cannot be built: RuntimeError: no gpu" in refused({}, name="test_raises")
    assert "calls itself 'test_constant'" in refused({}, name="test_other")
