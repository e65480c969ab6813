import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("openrlhf")
from reward_sdk.errors import ConfigError, RewardSDKError
from valor_plugin import chain
from valor_plugin.cli import main
from valor_plugin.recipe import find_recipe, load_recipe
from valor_plugin.run.folder import RunFolder


def write(folder: Path, model: Path) -> None:
    """Two studies, and the recipes a, b and c, each of which names the first model."""
    Image.new("L", (40, 40), 90).save(folder / "film.png")
    rows = [{"id": f"s{i}", "image": "film.png", "report": "Clear."} for i in (1, 2)]
    (folder / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in "abc":
        recipe = {
            "name": name, "stage": "sft", "model": {"path": str(model), "trainable": "projector"},
            "data": {"train": "studies.jsonl"},
            "sft": {"steps": 3, "batch_size": 2, "learning_rate": 1e-2},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


@dataclass(frozen=True)
class Ran:
    """A command as it ended."""

    code: int
    out: str
    err: str


def run(*arguments: str) -> Ran:
    done = CliRunner().invoke(main, ["train", "--device", "cpu", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


AB = ("--recipe", "a.yaml", "--then", "b.yaml")
ABC = (*AB, "--then", "c.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model) -> Iterator[tuple[Path, Ran]]:
    """Where a chain of two stages was trained, and how the command ended. Read only."""
    folder = tmp_path_factory.mktemp("chain")
    write(folder, tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, run(*AB)


@pytest.fixture
def there(tmp_path, monkeypatch, tiny_model) -> Path:
    """The current folder: studies and recipes, and nothing was trained."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny_model)
    return tmp_path


@pytest.fixture
def begun(there, monkeypatch) -> list[str]:
    """Names of the stages that were begun: training only copies the model."""

    def train(recipe, out, device):
        begun.append(recipe.name)
        folder = RunFolder(out)
        folder.begin(recipe.to_yaml(), device)
        shutil.copytree(recipe.model.path, folder.unsaved)
        return folder.finish()

    begun = []
    monkeypatch.setattr(chain, "train_stage", train)
    return begun


def test_each_stage_trains_the_model_of_the_one_before(trained, tiny_model):
    folder, ran = trained
    assert ran.code == 0, ran.err
    recipe = yaml.safe_load((folder / "runs/b/recipe.yaml").read_text())
    assert recipe["model"]["path"] == "runs/a/model"
    files = [tiny_model, folder / "runs/a/model", folder / "runs/b/model"]
    before, first, second = (load_file(file / "model.safetensors") for file in files)
    name = "multi_modal_projector.linear_2.bias"
    assert not first[name].equal(before[name])
    assert not second[name].equal(first[name])  # as from the same model it would be


def test_the_screen_says_which_model_a_stage_trains_and_where_the_last_one_is(trained, tiny_model):
    folder, ran = trained
    told = [line for line in ran.out.splitlines() if line.startswith(("[", "model: "))]
    wanted = (
        rf"\[1/2\] a: trains the model {tiny_model}", r"\[1/2\] a: done in \d+ s, runs/a",
        r"\[2/2\] b: trains the model runs/a/model", r"\[2/2\] b: done in \d+ s, runs/b",
        f"model: {folder}/runs/b/model",
    )  # fmt: skip
    assert len(told) == len(wanted), told
    for line, words in zip(told, wanted, strict=True):
        assert re.fullmatch(words, line), line


def test_finished_stages_are_skipped_and_said_to_be(trained):
    folder, _ = trained
    ran = run(*AB)
    assert (ran.code, ran.out.splitlines()) == (
        0,
        ["[1/2] a: done before, runs/a", "[2/2] b: done before, runs/b",
         f"model: {folder}/runs/b/model"],
    )  # fmt: skip


def test_a_dry_run_looks_at_a_model_that_is_made_and_says_which_stages_are_finished(trained):
    ran = run(*ABC, "--dry-run")
    assert ran.code == 0, ran.err
    finished, also, rest = ran.out.split("\n\n", 2)
    assert (finished, also) == ("a is finished: runs/a", "b is finished: runs/b")
    assert "model    runs/b/model: projector will train\n" in rest


def test_a_finished_run_of_another_recipe_is_refused_with_the_keys_that_differ(trained):
    ran = run(*ABC, "--set", "b.sft.steps=9", "--set", "b.seed=1")
    assert ran.code == 2
    assert "runs/b holds a finished run whose recipe was another" in ran.err
    assert "not the same: seed, sft.steps)" in ran.err
    assert not Path("runs/c").exists()


def test_a_stage_that_was_run_alone_counts_as_finished(begun):
    assert run("--recipe", "a.yaml", "--then", "c.yaml").code == 0
    recipe = load_recipe("b.yaml", ("model.path=runs/a/model",))
    chain.train_stage(recipe, Path("runs/b"), "cpu")
    assert run(*AB).code == 0
    assert begun == ["a", "c", "b"]


def test_a_finished_run_of_another_model_is_refused(begun):
    chain.train_stage(load_recipe("b.yaml"), Path("runs/b"), "cpu")
    ran = run(*AB)
    assert ran.code == 2
    assert "not the same: model.path)" in ran.err
    assert begun == ["b"]


@pytest.mark.parametrize("again", [False, True])
def test_a_finished_run_of_an_earlier_model_is_refused(begun, again):
    assert run(*AB).code == 0
    shutil.rmtree("runs/a")
    if again:
        chain.train_stage(load_recipe("a.yaml"), Path("runs/a"), "cpu")
    before = list(begun)
    ran = run(*AB)
    assert ran.code == 2
    assert "runs/b holds a run of b that trained another model than a leaves in runs/a" in ran.err
    assert begun == before


def test_checkpoints_of_another_recipe_are_refused_before_anything_starts(begun, monkeypatch):
    RunFolder(Path("runs/b")).begin("name: b\n", "cpu")
    monkeypatch.setattr(
        "valor_plugin.run.folder.has_checkpoint", lambda path: "runs/b" in str(path)
    )
    ran = run(*AB)
    assert ran.code == 2
    assert "runs/b holds checkpoints of an unfinished run whose recipe was another" in ran.err
    assert begun == []


def test_a_folder_of_something_else_is_refused_before_anything_starts(begun, there):
    (there / "runs/b").mkdir(parents=True)
    (there / "runs/b/mine").touch()
    ran = run(*AB)
    assert ran.code == 2
    assert "runs/b is no run's folder and not empty" in ran.err
    assert begun == []


@pytest.mark.parametrize(
    ("error", "code"), [(RewardSDKError("no room"), 1), (ConfigError("no room"), 2)]
)
def test_a_stage_that_fails_ends_the_chain_with_its_name_and_the_same_command_goes_on(
    begun, monkeypatch, error, code
):
    train = chain.train_stage

    def fail(recipe, out, device):
        if recipe.name == "b":
            raise error
        return train(recipe, out, device)

    with monkeypatch.context() as patch:
        patch.setattr(chain, "train_stage", fail)
        ran = run(*ABC)
    assert (ran.code, ran.err.splitlines()) == (
        code,
        ["[2/3] b: failed. The same command goes on with this stage.", "error: no room"],
    )
    assert run(*ABC).code == 0
    assert begun == ["a", "b", "c"]


def test_ctrl_c_ends_the_chain_as_it_ends_a_run(begun, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "train_stage", interrupt)
    ran = run(*AB)
    assert (ran.code, ran.err) == (130, "error: stopped; every process of the run has ended\n")


def test_two_recipes_of_one_name_are_refused(begun):
    ran = run(*ABC, "--then", "b.yaml")
    assert ran.code == 2
    assert "two recipes of the chain have the name b" in ran.err
    assert begun == []


def test_a_later_recipe_that_is_wrong_is_refused_before_anything_starts(begun):
    ran = run(*AB, "--then", "valor_stage2", "--set", "valor-stage2.openrlhf.actor.adam.lrr=1")
    assert ran.code == 2
    assert "OpenRLHF has no option 'actor.adam.lrr'" in ran.err
    assert begun == []


@pytest.mark.parametrize("key", ["train", "validate"])
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (None, "b.yaml: cannot read studies other.jsonl"),
        ('{"id": "s1", "image": "none.png"}', "b.yaml: other.jsonl, line 1: study 's1'"),
        ('{"id": "s1", "image": "film.png"}', "b.yaml: other.jsonl: no study has a 'report'"),
    ],
)
def test_what_is_wrong_with_studies_of_a_later_stage_is_said_before_anything_starts(
    begun, key, line, why
):
    if line:
        Path("other.jsonl").write_text(line)
    ran = run(*AB, "--set", f"b.data.{key}=other.jsonl")
    assert ran.code == 2
    assert why in ran.err
    assert begun == []


def test_out_is_the_folder_of_the_runs_folders(begun):
    assert run(*AB, "--out", "mine").code == 0
    assert yaml.safe_load(Path("mine/b/recipe.yaml").read_text())["model"]["path"] == "mine/a/model"


def test_a_finished_chain_is_known_again_by_any_name_of_its_folder(begun, there):
    assert run(*AB).code == 0
    assert run(*AB, "--out", str(there / "runs")).code == 0
    assert begun == ["a", "b"]


def test_set_reaches_the_recipe_whose_name_it_begins_with(there):
    stages = chain.read(["a.yaml", "b.yaml"], ["b.seed=7", "b.sft.steps=9"], Path("runs"))
    assert [(stage.recipe.seed, stage.recipe.sft.steps) for stage in stages] == [(42, 3), (7, 9)]


def test_the_shipped_recipes_name_the_models_that_a_chain_gives_them():
    files = ["valor_sft", "valor_stage1", "valor_stage2"]
    stages = chain.read(files, [], Path("runs"))
    assert [stage.recipe for stage in stages] == [load_recipe(find_recipe(file)) for file in files]


def test_set_without_the_name_of_a_recipe_is_refused_with_the_names(there):
    ran = run(*AB, "--set", "seed=7")
    assert ran.code == 2
    assert "begin with its name, such as --set a.seed=7. The names are a, b" in ran.err


def test_a_dry_run_does_not_miss_a_model_that_is_to_be_made(there):
    ran = run(*AB, "--dry-run")
    assert ran.code == 0, ran.err
    assert "a can run: stage sft" in ran.out
    assert (
        "model    runs/a/model: projector will train; it is checked when it has been made"
        in ran.out
    )
    assert not (there / "runs").exists()


def test_a_dry_run_names_the_stages_whose_problems_it_lists(there):
    ran = run(*AB, "--dry-run", "--set", "a.model.path=none", "--set", "b.data.train=none.jsonl")
    assert ran.code == 2
    first, second = ran.err.splitlines()
    assert first.startswith("error: a: model.path: there is no folder none")
    assert second.startswith("error: b: cannot read studies none.jsonl")


def test_the_commands_of_all_stages_are_printed_with_their_names(there):
    ran = run(*AB, "--command-only")
    assert ran.code == 0
    first, second = ran.out.split("# b\n")
    assert first.startswith("# a\n")
    assert yaml.safe_load(second)["model"]["path"] == "runs/a/model"
