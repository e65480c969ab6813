import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("openrlhf")
import reward_sdk
import valor_plugin
from reward_sdk.commands import boundary
from reward_sdk.reward_set import RewardSet
from valor_plugin.cli import main
from valor_plugin.recipe import shipped_recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def there(tmp_path, monkeypatch, tiny_model) -> Path:
    """The current folder: a model, two studies with films and reports, and a recipe for each
    stage."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for file in tiny_model.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    Image.new("L", (40, 40), 90).save(tmp_path / "film.png")
    rows = [{"id": f"s{i}", "image": "film.png", "report": "Clear."} for i in (1, 2)]
    (tmp_path / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = {
        "model": {"path": "model", "trainable": "projector"},
        "data": {"train": "studies.jsonl"},
    }
    grpo = common | {
        "name": "grpo-test", "stage": "grpo", "rewards": {"rouge_l": {}, "format": {}},
        "openrlhf": {
    "actor.num_gpus_per_node": 1,
"ref.num_gpus_per_node": 1, "data.max_len": 128,
    "rollout.batch_size": 2,
    "rollout.n_samples_per_prompt": 4,
    "train.batch_size": 8,
    "vllm.num_engines": 1,
},
    }  # fmt: skip
    sft = common | {"name": "sft-test", "stage": "sft", "sft": {"steps": 1}}
    for recipe in (grpo, sft):
        text = yaml.safe_dump(recipe, sort_keys=False)
        (tmp_path / f"{recipe['stage']}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    """Nothing here may come as far as starting a run."""
    from valor_plugin.run import process

    def started(*_args, **_kwargs):
        raise AssertionError("training was started")

    monkeypatch.setattr(process, "run", started)


def refused(*arguments: str, code: int = 2) -> str:
    """The one paragraph with which a command is refused."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    paragraph = result.stderr.strip()
    assert paragraph.startswith("error: ")
    assert "\n" not in paragraph
    assert "Traceback" not in paragraph
    return paragraph


def train(recipe: str = "grpo.yaml", *arguments: str) -> str:
    return refused("train", "--recipe", recipe, "--device", "cpu", *arguments)


BOTH = pytest.mark.parametrize("recipe", ["sft.yaml", "grpo.yaml"])


def test_a_missing_recipe_is_refused(there):
    assert "cannot read recipe none.yaml: No such file" in train("none.yaml")


def test_a_folder_is_no_recipe(there):
    assert "cannot read recipe model: Is a directory" in train("model")


def test_the_old_name_of_a_key_is_refused_with_the_new_one(there):
    message = train("grpo.yaml", "--set", "model.train=all")
    assert "grpo.yaml: model: 'train' is called 'trainable' now" in message


@BOTH
def test_an_unknown_key_is_refused_with_file_and_nearest_name(there, recipe):
    message = train(recipe, "--set", "model.trianable=all")
    assert f"{recipe}: model: unknown key 'trianable': did you mean 'trainable'?" in message


def test_an_unknown_host_option_is_refused_with_file_and_nearest_name(there):
    message = train("grpo.yaml", "--set", "openrlhf.actor.adam.lrr=1")
    assert "grpo.yaml: OpenRLHF has no option 'actor.adam.lrr'" in message
    assert "did you mean 'actor.adam.lr'?" in message


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ("{image_text: {}}", "rewards.image_text: the reward needs expert"),
        ("{image_text: {expert: 3}}", "rewards.image_text.expert: .*string"),
        ("{findings_f1: {every: 0}}", "rewards.findings_f1: every: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_reward_setting_is_refused_in_a_dry_run_too(there, rewards, why):
    assert re.search(why, train("grpo.yaml", "--dry-run", "--set", f"rewards={rewards}"))


@pytest.mark.parametrize("option", ["train.micro_batch_size", "rollout.batch_size"])
def test_a_batch_of_nothing_is_refused(there, option):
    message = train("grpo.yaml", "--dry-run", "--set", f"openrlhf.{option}=0")
    assert f"openrlhf.{option} must be at least 1, not 0" in message


@pytest.mark.parametrize("content", [b"\x00", b"\xff", b"[" * 10_000])
def test_a_file_that_is_no_yaml_is_refused(there, content):
    (there / "odd.yaml").write_bytes(content)
    assert "odd.yaml is not valid YAML" in train("odd.yaml")


def test_an_unknown_host_option_is_refused_in_a_dry_run_too(there):
    assert "has no option" in train("grpo.yaml", "--dry-run", "--set", "openrlhf.rollout.size=1")


@BOTH
def test_a_missing_checkpoint_is_refused(there, recipe):
    message = train(recipe, "--set", "model.path=runs/none")
    assert "model.path: there is no folder runs/none" in message


@BOTH
def test_a_checkpoint_without_a_processor_is_refused(there, recipe):
    (there / "model/processor_config.json").unlink()
    assert "model has no processor_config.json" in train(recipe)


@BOTH
def test_another_type_of_model_is_refused(there, recipe):
    (there / "model/config.json").unlink()
    (there / "model/config.json").write_text('{"model_type": "qwen2_vl"}', encoding="utf-8")
    assert "is of type 'qwen2_vl'; this plugin trains 'llava'" in train(recipe)


@BOTH
def test_a_missing_image_is_refused_with_file_and_line(there, recipe):
    (there / "film.png").unlink()
    message = train(recipe)
    assert "studies.jsonl, line 1: study 's1': image " in message
    assert "film.png: no such file" in message


@BOTH
def test_an_unreadable_image_is_refused_with_file_and_line(there, recipe):
    (there / "film.png").write_bytes(b"no image")
    message = train(recipe)
    assert "studies.jsonl, line 1: study 's1': image " in message
    assert "film.png: cannot be read" in message


@BOTH
def test_an_empty_dataset_is_refused(there, recipe):
    (there / "studies.jsonl").write_text("\n", encoding="utf-8")
    assert "studies.jsonl holds no study" in train(recipe)


@BOTH
def test_a_missing_dataset_is_refused(there, recipe):
    assert "cannot read studies none.jsonl" in train(recipe, "--set", "data.train=none.jsonl")


@BOTH
@pytest.mark.parametrize("field", ["id", "image"])
def test_a_line_without_a_field_is_refused_with_file_and_line(there, recipe, field):
    row = {"id": "s3", "image": "film.png"}
    del row[field]
    with (there / "studies.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(row))
    assert f"studies.jsonl, line 3: the row has no '{field}'" in train(recipe)


@BOTH
def test_studies_without_reports_are_refused_where_reports_are_needed(there, recipe):
    row = {"id": "s1", "image": "film.png"}
    (there / "studies.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert "studies.jsonl: no study has a 'report'" in train(recipe)


@BOTH
def test_cuda_is_refused_where_there_is_none(there, recipe, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused("train", "--recipe", recipe, "--device", "cuda")
    assert "--device cuda: torch sees no CUDA device" in message


@BOTH
def test_a_folder_with_a_finished_run_is_refused(there, recipe):
    (there / "done/model").mkdir(parents=True)
    assert "done holds a finished run" in train(recipe, "--out", "done")


@pytest.mark.parametrize("option", ["--device=cpu", "--dry-run", "--command-only"])
def test_a_folder_whose_path_the_host_would_split_is_refused(there, option):
    message = train("grpo.yaml", "--out", "lr=1e-4,seed=1", option)
    assert "lr=1e-4,seed=1 has ',' in its path, which separates datasets" in message
    assert not (there / "lr=1e-4,seed=1").exists()


def test_a_model_in_whose_path_vllm_would_see_a_pattern_is_refused(there):
    (there / "model").rename(there / "model[1]")
    message = train("grpo.yaml", "--set", "model.path='model[1]'")
    assert "model.path: model[1] has '[' in it, which matches names of files" in message


def test_missing_weights_of_the_expert_are_refused(there):
    pytest.importorskip("torchxrayvision")
    message = train("grpo.yaml", "--set", "rewards={image_text: {expert: none.pt}}")
    assert "none.pt" in message


def test_an_expert_without_weights_is_refused(there):
    pytest.importorskip("torchxrayvision")
    message = train("grpo.yaml", "--set", "rewards={image_text: {}}")
    assert "grpo.yaml: rewards.image_text: the reward needs expert" in message


@BOTH
def test_what_is_refused_before_its_folder_is_made_leaves_no_folder(there, recipe):
    train(recipe, "--set", "model.path=none", "--out", "new")
    assert not (there / "new").exists()


def printed(option: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["train", option, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def host_command(*arguments: str) -> dict[str, str]:
    """The host's options of the printed command: name -> value, "" for a bare flag."""
    python, dash, module, *rest = shlex.split(printed("--command-only", *arguments))
    assert (python, dash, module) == ("python", "-m", "openrlhf.cli.train_ppo_ray")
    named = " ".join(rest).split("--")[1:]
    return {name: value.strip() for name, _, value in (text.partition(" ") for text in named)}


def test_the_hosts_command_is_printed(there):
    read = host_command("--recipe", "grpo.yaml")
    assert read["rollout.n_samples_per_prompt"] == "4"
    assert read["ckpt.output_dir"] == str(there / "runs/grpo-test/model.part")


@pytest.mark.parametrize("option", ["--dry-run", "--command-only"])
@BOTH
def test_what_only_looks_writes_nothing(there, recipe, option):
    before = sorted(there.rglob("*"))
    printed(option, "--recipe", recipe)
    assert sorted(there.rglob("*")) == before


def test_the_hosts_command_has_what_the_cpu_needs_only_when_asked(there):
    assert "vllm.enforce_eager" in host_command("--recipe", "grpo.yaml", "--device", "cpu")
    assert "vllm.enforce_eager" not in host_command("--recipe", "grpo.yaml")


def test_a_dry_run_says_what_would_run(there):
    more = ("--set", "rewards.rouge_l={weight: 0.9, every: 2}")
    assert printed("--dry-run", "--recipe", "grpo.yaml", "--device", "cpu", *more).splitlines() == [
        "grpo-test can run: stage grpo, on a CPU",
        "model    model: projector will train",
        "studies  2 in studies.jsonl, 2 with a report",
        "steps    1 of 2 studies, 4 reports of each",
        "rewards  rouge_l 0.9 (every 2), format 1",
        f"folder   {there}/runs/grpo-test",
    ]
    assert "steps    9 of 32 studies" in printed(
        "--dry-run", "--recipe", "sft.yaml", "--set", "sft.steps=9"
    )


def problems(*arguments: str) -> list[str]:
    """What a dry run finds wrong."""
    result = CliRunner().invoke(main, ["train", "--dry-run", *arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if "wandb: WARNING" not in line]
    assert all(line.startswith("error: ") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


def test_a_dry_run_lists_everything_that_is_absent_or_wrong(there, monkeypatch):
    pytest.importorskip("torchxrayvision")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(there / "netrc"))
    (there / "runs/grpo-test").mkdir(parents=True)
    (there / "runs/grpo-test/mine").touch()
    (there / "model/chat_template.jinja").unlink()
    rows = [{"id": "s1", "image": "none.png"}, {"id": "s2"}, {"id": "s3", "image": "film.png"}]
    (there / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = problems(
        "--recipe", "grpo.yaml", "--set", "rewards.image_text={expert: x.pt, device: cuda}",
        "--set", "rewards.chexbert_f1={model: none.pth}",
        "--set", "openrlhf.data.max_len=4096", "--set", "openrlhf.logger.wandb.project=p",
    )  # fmt: skip
    wanted = (
        "grpo-test is no run's folder and not empty", "model.path: chat template: none",
        "studies.jsonl, line 2: the row has no 'image'", "line 1: study 's1': image",
        "expert weights x.pt: no such file", "rewards.chexbert_f1: .*none.pth",
        "no study has a 'report', but the rewards", "data.max_len 4096 is more than",
        "W&B has no key",
    )  # fmt: skip
    assert len(found) == len(wanted), found
    for line, words in zip(found, wanted, strict=True):
        assert re.search(words, line), line


def test_a_dry_run_tries_every_reward_on_the_first_study(there):
    (there / "own.py").write_text("def mine(samples):\n    return 0.5\n", encoding="utf-8")
    [found] = problems("--recipe", "grpo.yaml", "--set", "rewards={own.py:mine: {every: 3}}")
    assert "rewards: on study 's1' mine gave one float: return a list" in found


def test_of_a_studies_file_a_dry_run_tells_ten_lines(there):
    rows = [{"id": f"s{i}", "image": "none.png", "report": "Clear."} for i in range(25)]
    (there / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = problems("--recipe", "sft.yaml")
    assert len(found) == 11
    assert found[-1] == "studies.jsonl: 15 more such lines"


def test_a_dry_run_tells_packages_that_are_missing(there, monkeypatch):
    from valor_plugin import doctor

    monkeypatch.setitem(doctor.PURPOSES, "no-such-package", "every stage")
    [line] = problems("--recipe", "sft.yaml")
    assert line.startswith("not installed: no-such-package: pip install 'valor-rrg[openrlhf]'")


def test_a_dry_run_asks_reward_servers(there, monkeypatch):
    from valor_plugin.run import rewards

    monkeypatch.setattr(rewards, "_GLANCE", 0.2)
    [line] = problems("--recipe", "grpo.yaml", "--set", "rewards={server: 'http://127.0.0.1:9'}")
    assert "start it with `reward-sdk serve`" in line


def test_set_overrides_the_recipe(there):
    read = host_command(
        "--recipe", "grpo.yaml", "--set", "openrlhf.rollout.batch_size=64", "--set", "seed=7",
        "--set", "model.path=other", "--out", "here",
    )  # fmt: skip
    assert (read["rollout.batch_size"], read["train.seed"]) == ("64", "7")
    assert read["actor.model_name_or_path"] == "other"
    assert read["ckpt.path"] == str(there / "here/checkpoints")


def test_instead_of_a_command_supervised_fine_tuning_has_settings(there):
    settings = yaml.safe_load(
        printed("--command-only", "--recipe", "sft.yaml", "--set", "sft.steps=9")
    )
    assert settings["sft"]["steps"] == 9


def test_the_set_of_the_recipe_for_nemo_gym_can_be_built():
    rewards = RewardSet.from_config(ROOT / "recipes/nemo_gym/rewards.yaml")
    assert rewards.names == ("rouge_l", "findings_f1", "format")
    assert not rewards.needs_step


def test_every_recipe_is_among_the_shipped_ones():
    assert len(shipped_recipes()) == 11


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_makes_a_command(recipe, there):
    assert printed("--command-only", "--recipe", recipe)


@pytest.mark.parametrize("value", ["2020-13-45", "[" * 5000])
def test_an_override_that_is_no_yaml_is_refused(there, value):
    assert "is not valid YAML" in train("grpo.yaml", "--set", f"seed={value}")


def test_a_run_that_fails_exits_with_1(there, monkeypatch):
    from valor_plugin.run import process

    def fail(*_args):
        raise process.RunError("The run failed: no room.")

    monkeypatch.setattr(process, "run", fail)
    assert "no room" in refused("train", "--recipe", "grpo.yaml", "--device", "cpu", code=1)


def test_ctrl_c_exits_with_130(there, monkeypatch):
    from valor_plugin.run import process

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "run", interrupt)
    message = refused("train", "--recipe", "grpo.yaml", "--device", "cpu", code=130)
    assert "stopped; every process of the run has ended" in message


def test_prepare_refuses_a_folder_without_images(there):
    assert "holds no PNG or JPEG image" in refused("prepare", "folder", "model", "x")


def test_a_package_that_is_missing_is_one_line_with_what_installs_it(there, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = train()
    assert message == "error: safetensors is not installed: pip install 'valor-rrg[openrlhf]'"


def test_an_import_of_our_own_that_is_wrong_stays_a_traceback(there, monkeypatch):
    monkeypatch.setitem(sys.modules, "valor_plugin.recipe", None)
    result = CliRunner().invoke(main, ["train", "--recipe", "grpo.yaml"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_every_extra_that_a_message_names_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert boundary._EXTRAS.keys() <= project["optional-dependencies"].keys()


BARE = """
import sys
for module in ("torch", "transformers", "safetensors", "openrlhf", "vllm", "trl", "matplotlib",
               "jinja2", "torchxrayvision", "datasets", "ray", "deepspeed", "peft"):
    sys.modules[module] = None
import valor_plugin.train, valor_plugin.doctor, valor_plugin.demo.pipeline
import valor_plugin.data.studies
"""


def test_what_commands_import_first_needs_no_extra():
    subprocess.run([sys.executable, "-c", BARE], check=True, cwd=ROOT)


def test_recipes_are_listed_and_copied(there):
    listed = CliRunner().invoke(main, ["recipes"]).output
    assert "valor_stage2         Stage 2 in the manner of VALOR" in listed
    copied = CliRunner().invoke(main, ["recipes", "--copy", "mine"])
    assert re.fullmatch(r"\d+ files: mine\n", copied.output)
    assert "is there already" in refused("recipes", "--copy", "mine")


def test_the_version_says_of_what_it_is_the_version():
    printed = CliRunner().invoke(main, ["--version"], prog_name="openrlhf").output
    assert re.fullmatch(
        r"valor-rrg [\d.]+ \(command `openrlhf` of valor_plugin; host OpenRLHF 0\.11\.2\)\n",
        printed,
    )


def test_the_packages_know_their_version():
    assert valor_plugin.__version__ == reward_sdk.__version__ == version("valor-rrg")
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        _ = valor_plugin.version


@pytest.mark.parametrize("package", [reward_sdk, valor_plugin])
def test_the_packages_say_that_they_are_typed(package):
    assert files(package).joinpath("py.typed").is_file()


def test_the_citation_names_the_release_and_the_paper():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["references"][0]["url"] == project["urls"]["Paper"]


def test_the_demo_runs_the_shipped_recipes_in_any_folder(there, monkeypatch):
    from valor_plugin.demo import pipeline

    monkeypatch.setattr(pipeline, "run", lambda recipes, *_: sorted(recipes.glob("stage*.yaml")))
    printed = CliRunner().invoke(main, ["demo"]).output
    assert printed.count("recipes/demo/stage") == 2
