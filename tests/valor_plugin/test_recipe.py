from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from reward_sdk.errors import ConfigError
from valor_plugin.recipe import (
    Advantage,
    Data,
    Lora,
    Model,
    Recipe,
    Sft,
    about,
    copy_shipped,
    find_recipe,
    load_recipe,
    shipped_folder,
    shipped_recipes,
)

GRPO = {
    "name": "test",
    "stage": "grpo",
    "model": {"path": "runs/sft/model", "trainable": "projector"},
    "data": {"train": "studies.jsonl"},
    "rewards": {"format": {"weight": 0.1}},
    "openrlhf": {"rollout.batch_size": 8},
}
SFT = {key: GRPO[key] for key in ("name", "model", "data")} | {"stage": "sft", "sft": {"steps": 3}}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Writes a recipe to a file and loads it."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"

    def load(content=GRPO, *overrides: str) -> Recipe:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


@pytest.fixture(scope="module")
def refused(load):
    """The message with which a recipe is refused."""

    def refused(content=GRPO, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(content, *overrides)
        return str(caught.value)

    return refused


def changed(key: str, value, base=GRPO) -> dict:
    content = deepcopy(base)
    *sections, last = key.split(".")
    inner = content
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return content


def test_a_recipe_is_read_with_its_defaults(load):
    recipe = load()
    assert recipe.model == Model(path="runs/sft/model", trainable=("projector",))
    assert recipe.advantage == Advantage(rank="linear", tie_tolerance=1e-6)
    assert (recipe.seed, recipe.data.prompt) == (42, "report")


@pytest.mark.parametrize(
    ("images", "most"), [("frontal", 1), ("all", 2), ("all, max_images: 3", 3)]
)
def test_a_recipe_says_how_many_images_of_a_study_are_shown(load, images, most):
    data = load(GRPO, f"data={{train: s.jsonl, images: {images}}}").data
    assert data.most_images == most


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("data.images=both", r"data\.images: Input should be 'frontal' or 'all'"),
        ("data.max_images=2", "leave it out, or set `images: all`"),
        ("data={train: s.jsonl, images: all, max_images: 0}", r"data\.max_images: .* equal to 1"),
        ("data.prompt=indikation", r"data\.prompt: .*did you mean 'indication'\?"),
        ("data.prompt=<image> What is it?", r"data\.prompt: .*leave it out of the text"),
    ],
)
def test_what_a_model_cannot_be_shown_or_asked_is_refused(load, override, why):
    with pytest.raises(ConfigError, match=why):
        load(GRPO, override)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("projector", ("projector",)),
        ("all", ("tower", "projector", "language")),
        (["projector", "language"], ("projector", "language")),
    ],
)
def test_the_part_that_trains_is_one_some_or_all(load, written, meant):
    assert load(changed("model.trainable", written)).model.trainable == meant


def test_adapters_have_llavas_sizes_unless_the_recipe_names_others(load):
    assert load(GRPO, "model.trainable=lora").model.lora is None
    assert Lora().model_dump() == {"rank": 128, "alpha": 256}
    lora = load(GRPO, "model.trainable=lora", "model.lora={rank: 8, alpha: 16}").model.lora
    assert (lora.rank, lora.alpha) == (8, 16)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.trainable=[language, lora]", "name one of the two"),
        ("model.lora.rank=0", "rank"),
        ("model.lora={rnk: 8}", "unknown key 'rnk': did you mean 'rank'"),
        ("model.lora={rank: 8}", "these adapters do not train"),
    ],
)
def test_adapters_that_cannot_be_are_refused(load, override, why):
    with pytest.raises(ConfigError, match=why):
        load(GRPO, override)


@pytest.mark.parametrize("written", ["off", '"off"', "'off'"])
def test_ranks_can_be_switched_off_with_or_without_quotes(load, written):
    text = yaml.safe_dump(GRPO) + f"advantage: {{rank: {written}}}\n"
    assert load(text).advantage.rank == "off"


def test_ranks_can_be_switched_off_on_the_command_line(load):
    assert load(GRPO, "advantage.rank=off").advantage.rank == "off"


SECTIONS: list[tuple[str, type[BaseModel], dict]] = [
    ("", Recipe, GRPO),
    ("model.", Model, GRPO),
    ("data.", Data, GRPO),
    ("advantage.", Advantage, GRPO),
    ("sft.", Sft, SFT),
]


@pytest.mark.parametrize(
    ("base", "section", "key"),
    [(base, prefix, key) for prefix, model, base in SECTIONS for key in model.model_fields],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(refused, base, section, key):
    message = refused(changed(f"{section}{key}x", 1, base))
    place = f"recipe.yaml: {section.replace('.', ': ')}"
    assert f"{place}unknown key '{key}x': did you mean '{key}'?" in message


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (
            changed("path", "m"),
            "recipe.yaml: unknown key 'path': it belongs under `model`, indented",
        ),
        (changed("rank", 8), "it belongs under `advantage` or `lora`, indented"),
        (GRPO | {"rollout.batch_size": 8}, "it belongs under `openrlhf`, indented"),
        (GRPO | {"rouge_l": {}}, "it belongs under `rewards`, indented"),
        (
            changed("model.seed", 1),
            "model: unknown key 'seed': it belongs to the recipe, not indented",
        ),
    ],
)
def test_a_key_that_is_indented_wrongly_is_refused_with_its_place(refused, content, hint):
    assert hint in refused(content)


@pytest.mark.parametrize(
    "text",
    [
        "rewards: {rouge_l: {weight: 1}}\ntags: optional",
        "rouge_l: {weight: 1}\nformat:",
        "bleu: {}",
    ],
)
def test_a_reward_set_that_is_given_as_a_recipe_is_called_one(refused, text):
    assert "this is a reward set; a recipe names it under `rewards`" in refused(text)


def test_an_unknown_reward_is_refused_with_the_nearest_name(refused):
    message = refused(changed("rewards.rogue_l", {}))
    assert "recipe.yaml: rewards: no reward is named 'rogue_l': did you mean 'rouge_l'?" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a/b"),
        ("name", "a b"),
        ("name", ".."),
        ("stage", "ppo"),
        ("seed", "many"),
        ("seed", -1),
        ("seed", 2**32),
        ("model.path", None),
        ("model.trainable", "projectr"),
        ("model.trainable", []),
        ("data.train", 3),
        ("advantage.rank", "logistic"),
        ("advantage.rank", True),
        ("advantage.tie_tolerance", -1),
        ("rewards", None),
        ("rewards", {}),
        ("rewards.format", {"weight": "heavy"}),
        ("openrlhf", ["x"]),
        ("model", "runs/sft/model"),
        ("sft", {"steps": 3}),
    ],
)
def test_a_wrong_value_is_refused_with_its_file(refused, key, value):
    assert "recipe.yaml: " in refused(changed(key, value))


@pytest.mark.parametrize("key", ["name", "stage", "model", "data"])
def test_a_missing_key_is_named(refused, key):
    content = {k: v for k, v in GRPO.items() if k != key}
    assert f"recipe.yaml: {key}: Field required" in refused(content)


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (SFT, "rewards", {"format": {}}),
        (SFT, "openrlhf", {"rollout.batch_size": 8}),
        (SFT, "sft", None),
    ],
)
def test_supervised_stages_take_no_rewards_and_no_host_options(refused, base, key, value):
    assert "stage sft takes `sft`, and neither" in refused(changed(key, value, base))


@pytest.mark.parametrize(
    "text", ["", "- name", "name", "{", "name: \x00", "a: 1\na: b: c", "1: 2", "? [1]\n: 2"]
)
def test_a_file_that_holds_no_recipe_is_refused_by_name(refused, text):
    assert "recipe.yaml" in refused(text)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not valid YAML"):
        load_recipe(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read recipe .*none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_rewards_can_be_a_file_of_their_own(load, tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("rewards: {rouge_l: {weight: 0.3}}", encoding="utf-8")
    assert load(changed("rewards", str(path))).rewards == {"rouge_l": {"weight": 0.3}}


@pytest.fixture
def beside(tmp_path, monkeypatch) -> Path:
    """A recipe in a folder of its own that names sets/text.yaml beside it; the current folder is
    another."""
    for folder, weight in (("mine", 0.3), ("here", 0.7)):
        (tmp_path / folder / "sets").mkdir(parents=True)
        text = f"rewards: {{rouge_l: {{weight: {weight}}}}}"
        (tmp_path / folder / "sets/text.yaml").write_text(text, encoding="utf-8")
    path = tmp_path / "mine/recipe.yaml"
    path.write_text(yaml.safe_dump(changed("rewards", "sets/text.yaml")), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return path


def test_a_set_that_a_recipe_names_lies_relative_to_the_recipe(beside):
    assert load_recipe(beside).rewards == {"rouge_l": {"weight": 0.3}}


def test_a_set_that_the_command_line_names_lies_relative_to_the_current_folder(beside):
    recipe = load_recipe(beside, ("rewards=sets/text.yaml",))
    assert recipe.rewards == {"rouge_l": {"weight": 0.7}}


def test_a_set_that_is_only_in_the_current_folder_is_refused_with_what_to_write(beside):
    (beside.parent / "sets/text.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        load_recipe(beside)
    assert f"there is no {beside.parent}/sets/text.yaml" in str(caught.value)
    assert "write `rewards: ../here/sets/text.yaml`" in str(caught.value)
    assert "or give `--set rewards=sets/text.yaml`" in str(caught.value)


def test_set_reaches_into_a_set_that_the_recipe_names(beside):
    recipe = load_recipe(beside, ("rewards.rouge_l.weight=0.5", "rewards.format.weight=0.1"))
    assert recipe.rewards == {"rouge_l": {"weight": 0.5}, "format": {"weight": 0.1}}
    assert (
        yaml.safe_load(recipe.to_yaml())["rewards"] == recipe.rewards
    )  # as the run's folder has it


def test_set_reaches_into_a_set_that_the_command_line_names(beside):
    recipe = load_recipe(beside, ("rewards=sets/text.yaml", "rewards.rouge_l.every=2"))
    assert recipe.rewards == {"rouge_l": {"weight": 0.7, "every": 2}}


def test_set_reaches_into_a_reward_that_stands_without_keys(load):
    assert load(changed("rewards.format", None), "rewards.format.weight=2").rewards == {
        "format": {"weight": 2}
    }


def test_set_reaches_a_reward_in_a_file_by_its_name(beside):
    own = beside.parent / "own.py"
    own.write_text("def mine(samples, limit: int = 3): ...\n", encoding="utf-8")
    beside.write_text(yaml.safe_dump(changed("rewards", {"own.py:mine": {}})), encoding="utf-8")
    assert load_recipe(beside, ("rewards.mine.limit=7",)).rewards == {f"{own}:mine": {"limit": 7}}


def test_a_path_wins_over_the_name_of_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("valor_stage2") == shipped_folder() / "valor_stage2.yaml"
    (tmp_path / "valor_stage2").write_text("name: mine", encoding="utf-8")
    assert find_recipe("valor_stage2") == Path("valor_stage2")


def test_a_recipe_that_is_neither_a_file_nor_shipped_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no shipped .*: did you mean 'demo/stage1'"):
        find_recipe("demo/stage11")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_read_in_any_folder_and_says_what_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = find_recipe(name)
    assert load_recipe(path).name.replace("-", "_") == name.replace("/", "_").replace(
        "demo_real", "real"
    )
    assert 30 < len(about(path)) < 160


def test_copies_of_the_shipped_recipes_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = copy_shipped(tmp_path / "mine")
    assert count == sum(path.is_file() for path in (tmp_path / "mine").rglob("*"))
    assert (tmp_path / "mine/nemo_gym/app.py").is_file()
    for name in shipped_recipes():
        assert (
            load_recipe(Path(f"mine/{name}.yaml")).rewards == load_recipe(find_recipe(name)).rewards
        )


def test_copies_of_the_shipped_recipes_overwrite_nothing(tmp_path):
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards/valor_stage2.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rewards/valor_stage2\.yaml is there already"):
        copy_shipped(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["valor_stage2.yaml"]


@given(seed=st.integers(0, 2**31))
def test_set_replaces_a_key(load, seed):
    assert load(GRPO, f"seed={seed}").seed == seed


def test_set_reaches_into_sections_that_the_recipe_leaves_out(load):
    assert load(GRPO, "advantage.tie_tolerance=0.5").advantage.tie_tolerance == 0.5


def test_set_replaces_one_key_of_a_reward(load):
    recipe = load(GRPO, "rewards.format.every=4")
    assert recipe.rewards == {"format": {"weight": 0.1, "every": 4}}


@given(option=st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,3}", fullmatch=True), value=st.integers())
def test_set_takes_the_rest_of_a_key_under_openrlhf_as_one_option(load, option, value):
    recipe = load(GRPO, f"openrlhf.{option}={value}")
    assert recipe.openrlhf == {"rollout.batch_size": 8, option: value}


def test_set_reads_values_as_yaml(load):
    assert load(GRPO, "model.trainable=[tower, language]").model.trainable == ("tower", "language")


def test_set_splits_at_the_first_equals_sign(load):
    assert load(GRPO, "data.prompt=is a=b?").data.prompt == "is a=b?"


def test_the_last_set_wins(load):
    assert load(GRPO, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("seed", "write it as dotted.key=value"),
        ("seed={", "not valid YAML"),
        ("name.first=x", "'name' in the recipe holds a value"),
        ("sede=1", "did you mean 'seed'?"),
        ("model.pth=x", "did you mean 'path'?"),
        ("=1", "unknown key ''"),
        ("rewards=none.yaml", "cannot read reward set none.yaml"),
    ],
)
def test_a_wrong_set_is_refused_with_its_reason(refused, override, why):
    assert why in refused(GRPO, override)


def test_a_resolved_recipe_is_a_recipe(load):
    recipe = load()
    assert load(recipe.model_dump(mode="json", exclude_none=True)) == recipe


def with_rewards(tmp_path, rewards):
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nstage: grpo\nmodel: {path: m, trainable: projector}\ndata: {train: d}\n"
        f"rewards: {rewards}\n"
    )
    return path


@pytest.mark.parametrize("text", ["[http://a:1, http://b:2/]", "'http://a:1,http://b:2'"])
def test_rewards_may_come_from_servers(tmp_path, text):
    recipe = load_recipe(with_rewards(tmp_path, f"{{server: {text}}}"))
    assert recipe.reward_servers == ["http://a:1", "http://b:2"]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("{server: []}", "rewards.server: no URLs of reward servers: []"),
        ("{server: [3]}", "rewards.server: no URLs"),
        ("{server: node1}", "rewards.server: no URLs of reward servers: 'node1'"),
        ("{server: 'http://a', format: {}}", "remove what is beside it"),
    ],
)
def test_what_is_no_server_is_named(tmp_path, rewards, message):
    with pytest.raises(ConfigError) as error:
        load_recipe(with_rewards(tmp_path, rewards))
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_what_is_wrong_in_a_set_of_its_own_is_said_of_that_file(tmp_path):
    (tmp_path / "set.yaml").write_text("rewards: {image_text: {weights: x.pt}}")
    (tmp_path / "recipe.yaml").write_text(
        f"name: r\nstage: grpo\nmodel: {{path: m, trainable: projector}}\ndata: {{train: d}}\n"
        f"rewards: {tmp_path}/set.yaml\n"
    )
    old = r"set\.yaml: rewards\.image_text: 'weights' is called 'expert' now"
    with pytest.raises(ConfigError, match=old):
        load_recipe(tmp_path / "recipe.yaml")
