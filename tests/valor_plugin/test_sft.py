"""Supervised fine-tuning: what it learns from, what it records, and what a restart goes on from."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("trl")
from support.hostrun import COMMAND, openrlhf
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.trainer_utils import EvalLoopOutput

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.text import wrap_report
from valor_plugin.data.prompts import PLAIN_REPORT
from valor_plugin.data.studies import read_studies
from valor_plugin.host import machine
from valor_plugin.llava_med.parts import part_of
from valor_plugin.recipe import Recipe
from valor_plugin.records import Failure, Follower, SupervisedStep, read_steps
from valor_plugin.run import finetune, sft
from valor_plugin.run.folder import RunFolder, processes_of

REPORTS = ("No pleural effusion.", "The heart is enlarged. Lungs are clear.", "Lungs are clear.")
STUDIES, HELD_OUT, SEED = 17, 5, 7


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, here and in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """A folder with films that are told apart by their brightness, and two studies files."""
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for i in range(STUDIES + HELD_OUT):
        Image.new("L", (40, 60), 10 + 10 * i).save(folder / f"film{i}.png")
        rows.append(
            {"id": f"s{i}", "image": str(folder / f"film{i}.png"), "report": REPORTS[i % 3]}
        )
    files = {"train": rows[:STUDIES], "validate": rows[STUDIES:]}
    for name, some in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return folder


def recipe(model: Path, studies: Path, trainable="projector", held_out=True, **keys) -> Recipe:
    data = {"train": str(studies / "train.jsonl")}
    if held_out:
        data["validate"] = str(studies / "validate.jsonl")
    section = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 3}
    if "epochs" in keys:
        del section["steps"]
    return Recipe.model_validate(
        {
            "name": "test", "stage": "sft", "seed": SEED, "data": data, "sft": section | keys,
            "model": {"path": str(model)} | (
                trainable if isinstance(trainable, dict) else {"trainable": trainable}
            ),
        }
    )  # fmt: skip


def prepared(recipe: Recipe, out: Path) -> RunFolder:
    return sft.prepare(recipe, RunFolder(out), "cpu").folder


def trained(recipe: Recipe, out: Path) -> RunFolder:
    """A run in this process."""
    run = sft.prepare(recipe, RunFolder(out), "cpu")
    finetune.train(run.folder, sft.fitted(recipe, "cpu").sft, "cpu")
    return run.folder


def steps(folder: Path) -> list[SupervisedStep]:
    return read_steps(folder / "steps.jsonl", SupervisedStep)


def losses(folder: Path) -> list[float | None]:
    return [step.loss for step in steps(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> list[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return [name for name in old if not old[name].equal(new[name])]


@pytest.fixture(scope="module")
def whole(tiny_model, studies, tmp_path_factory) -> RunFolder:
    """A run over two epochs and more, in one process, that nobody disturbed."""
    wanted = recipe(tiny_model, studies, ["projector", "language"], steps=12, save_every=5)
    return trained(wanted, tmp_path_factory.mktemp("whole") / "run")


def batch(processor, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of a studies file as the model takes them, put together by hand."""
    content = [{"type": "image"}, {"type": "text", "text": PLAIN_REPORT}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = [Image.open(row["image"]).convert("RGB") for row in rows]
    plain = {"add_special_tokens": False, "return_tensors": "pt"}
    prompt = processor(text=[asked] * len(rows), images=images, **plain)
    answers = [
        processor.tokenizer(f" {wrap_report(row['report'])} </s>", **plain)["input_ids"][0]
        for row in rows
    ]
    longest = max(map(len, answers))
    ids, labels = [], []
    for asked_ids, answer in zip(prompt["input_ids"], answers, strict=True):
        fill = torch.full((longest - len(answer),), -100)
        ids.append(torch.cat([asked_ids, answer, fill.clamp(min=0)]))
        labels.append(torch.cat([torch.full_like(asked_ids, -100), answer, fill]))
    there = [label.ne(-100) for label in labels]
    mask = torch.stack(there)
    mask[:, : prompt["input_ids"].shape[1]] = True
    return {
        "input_ids": torch.stack(ids), "attention_mask": mask.long(),
        "labels": torch.stack(labels), "pixel_values": prompt["pixel_values"],
    }  # fmt: skip


def rows_of(studies: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (studies / f"{name}.jsonl").read_text().splitlines()]


def test_the_first_losses_are_those_of_a_plain_loop_with_adamw_by_hand(whole, tiny_model, studies):
    model = LlavaForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tiny_model)
    trains = [p for name, p in model.named_parameters() if part_of(name) != "tower"]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in trains]
    rows, found = rows_of(studies, "train"), steps(whole.path)
    order = torch.randperm(STUDIES, generator=torch.Generator().manual_seed(SEED)).tolist()
    for t in range(1, 5):
        inputs = batch(processor, [rows[i] for i in order[4 * t - 4 : 4 * t]])
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        assert found[t - 1].loss == pytest.approx(loss.item(), rel=1e-4), t
        assert found[t - 1].tokens == (inputs["labels"] != -100).sum()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in trains))
        assert found[t - 1].gradient_norm == pytest.approx(norm.item(), rel=1e-3)
        # A warm-up of one step, then a cosine over the other eleven.
        rate = 0 if t == 1 else 1e-2 * (1 + math.cos(math.pi * (t - 2) / 11)) / 2
        assert found[t - 1].learning_rate == pytest.approx(rate)
        with torch.no_grad():
            for p, (first, second) in zip(trains, moments, strict=True):
                gradient = p.grad * min(1, 1 / norm)
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).add_(gradient**2, alpha=0.001)
                p -= rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)


def test_only_the_report_and_its_closing_token_carry_loss(tiny_model, studies, tmp_path):
    seen = []

    class Watched(finetune.Trainer):
        def compute_loss(self, model, inputs, **options):
            seen.append(inputs["labels"])
            return super().compute_loss(model, inputs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "Trainer", Watched)
        folder = trained(recipe(tiny_model, studies, held_out=False, epochs=1), tmp_path / "run")
    tokenizer = AutoProcessor.from_pretrained(tiny_model).tokenizer
    said = [tokenizer.decode(row[row != -100]) for labels in seen for row in labels]
    wanted = [f"{wrap_report(REPORTS[i % 3])} </s>" for i in range(STUDIES)]
    assert sorted(text.strip() for text in said) == sorted(wanted)
    assert sum(step.tokens for step in steps(folder.path)) == sum(
        (labels != -100).sum() for labels in seen
    )


def test_the_loss_of_an_evaluation_is_the_mean_over_the_tokens_of_the_held_out_reports(
    whole, studies
):
    evaluated = {s.step: s.evaluation_loss for s in steps(whole.path) if s.evaluation_loss}
    assert list(evaluated) == [3, 6, 9, 12]
    model = LlavaForConditionalGeneration.from_pretrained(whole.unsaved, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(whole.unsaved)
    inputs = batch(processor, rows_of(studies, "validate"))
    with torch.no_grad():
        loss = model(**inputs).loss.item()
    # The saved weights are rounded to bfloat16.
    assert evaluated[12] == pytest.approx(loss, rel=2e-2)


def test_parts_that_do_not_train_stay_as_they_are_to_the_last_bit(whole, tiny_model):
    assert {part_of(name) for name in changed(tiny_model, whole.unsaved)} == {
        "projector",
        "language",
    }


def test_the_batch_is_the_same_however_it_is_divided(tiny_model, studies, tmp_path, whole):
    wanted = recipe(
        tiny_model, studies, ["projector", "language"], steps=12, save_every=5, micro_batch_size=2
    )
    folder = trained(wanted, tmp_path / "run")
    assert losses(folder.path) == pytest.approx(losses(whole.path), rel=1e-4)


def test_adapters_train_and_leave_whole_weights(tiny_model, studies, tmp_path):
    adapters = {"trainable": "lora", "lora": {"rank": 8, "alpha": 32}}
    folder = trained(recipe(tiny_model, studies, adapters, steps=3, save_every=2), tmp_path / "run")
    names = changed(tiny_model, folder.unsaved)
    assert len(names) == 14  # of two layers, seven each
    assert all(part_of(n) == "language" and n.endswith("_proj.weight") for n in names)
    kept = load_file(folder.checkpoint(2) / "model.safetensors")
    assert len(kept) == 28
    assert all(".lora_" in name for name in kept)


def test_a_run_ends_after_evaluations_without_a_better_one_and_keeps_the_best(
    tiny_model, studies, tmp_path
):
    # So high a rate that the held-out loss soon rises.
    wanted = recipe(
        tiny_model, studies, "language", learning_rate=0.3, steps=40, eval_every=2, early_stop=2,
        schedule="constant", warmup=0,
    )  # fmt: skip
    folder = trained(wanted, tmp_path / "run")
    evaluated = {s.step: s.evaluation_loss for s in steps(folder.path) if s.evaluation_loss}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert list(evaluated)[-1] == best + 4 < 40
    kept = load_file(folder.checkpoint(best) / "model.safetensors")
    saved = weights(folder.unsaved)
    name = "lm_head.weight"
    assert saved[f"language_model.{name}"].equal(kept[name].bfloat16())


def test_a_loss_that_is_not_finite_ends_a_run_at_its_step_without_a_model(
    tiny_model, studies, tmp_path, monkeypatch
):
    def compute_loss(self, *a, **o):
        found = usual(self, *a, **o)
        return found * math.nan if self.state.global_step == 2 else found

    usual = finetune.Trainer.compute_loss
    monkeypatch.setattr(finetune.Trainer, "compute_loss", compute_loss)
    with pytest.raises(
        FloatingPointError, match=r"step 3: loss is nan, .* lower sft.learning_rate"
    ):
        trained(recipe(tiny_model, studies, save_every=3), tmp_path / "run")
    assert losses(tmp_path / "run")[2:] == [None]
    assert not (tmp_path / "run/model.part").exists()
    assert RunFolder(tmp_path / "run").last_checkpoint is None


def test_an_evaluation_loss_that_is_not_finite_ends_a_run(
    tiny_model, studies, tmp_path, monkeypatch
):
    best_is(monkeypatch, math.nan)
    wanted = recipe(tiny_model, studies, eval_every=2, early_stop=1)
    with pytest.raises(FloatingPointError, match="step 2: eval_loss is nan"):
        trained(wanted, tmp_path / "run")


def test_weights_that_are_not_finite_are_not_left_as_a_model(tiny_model, studies, tmp_path):
    wanted = recipe(tiny_model, studies, held_out=False, steps=1, warmup=0, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="not finite after step 1"):
        trained(wanted.model_copy(update={"sft": wanted.sft.model_copy(
            update={"weight_decay": 1e30})}), tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run/model.part").exists()


def test_no_checkpoint_is_written_at_the_step_at_which_a_run_stops_early(
    tiny_model, studies, tmp_path, monkeypatch
):
    best_is(monkeypatch, 2)
    wanted = recipe(tiny_model, studies, eval_every=1, early_stop=2, save_every=4)
    folder = trained(wanted, tmp_path / "run")
    assert len(steps(folder.path)) == 4
    assert folder.last_checkpoint == folder.checkpoint(2)
    trained(wanted, tmp_path / "run")  # as if it had been killed before the model was saved
    assert len(steps(folder.path)) == 4


def test_what_a_run_that_could_end_early_has_left_is_said(capsys):
    losses = {3: 5.0, 6: 3.999, 9: 4.5}
    records = [
        SupervisedStep(step, 0.0, 1.0, 1e-3, 1.0, 9, 0.1, losses.get(step)) for step in range(1, 10)
    ]
    sft._say_the_best(records, 40)
    sft._say_the_best(records, 9)
    assert capsys.readouterr().out.splitlines() == [
        "stopped early; the model of step 6, held-out loss 3.999",
        "the model of step 6, held-out loss 3.999",
    ]


def best_is(patch: pytest.MonkeyPatch, step: float) -> None:
    """Makes the held-out loss lowest after a step."""

    def evaluation_loop(self, *_: object, **__: object) -> EvalLoopOutput:
        loss = 1.0 + abs(self.state.global_step - step)
        return EvalLoopOutput(None, None, {"eval_loss": loss}, HELD_OUT)

    patch.setattr(finetune.Trainer, "evaluation_loop", evaluation_loop)


def test_a_run_that_was_moved_keeps_its_best_checkpoint_and_is_refused_without_it(
    tiny_model, studies, tmp_path, monkeypatch
):
    wanted = recipe(
        tiny_model, studies, "language", steps=6, eval_every=1, early_stop=9, save_every=4
    )
    best_is(monkeypatch, 2)

    def killed(self, step: int, best: int | None) -> None:
        close(self, step, best)
        if step == 4:
            raise Killed

    close = RunFolder.close_checkpoint
    monkeypatch.setattr(RunFolder, "close_checkpoint", killed)
    with pytest.raises(Killed):
        trained(wanted, tmp_path / "before")
    monkeypatch.setattr(RunFolder, "close_checkpoint", close)
    (tmp_path / "before").rename(tmp_path / "run")
    best = RunFolder(tmp_path / "run").checkpoint(2)
    shutil.copytree(tmp_path / "run", tmp_path / "without")
    folder = trained(wanted, tmp_path / "run")
    kept, saved = load_file(best / "model.safetensors"), weights(folder.unsaved)
    name = "lm_head.weight"
    assert saved[f"language_model.{name}"].equal(kept[name].bfloat16())
    shutil.rmtree(tmp_path / "without/checkpoints" / best.name)
    with pytest.raises(ConfigError, match=f"{best.name}, which the run needs, is missing"):
        trained(wanted, tmp_path / "without")


def test_a_run_of_epochs_sees_every_study_that_often(tiny_model, studies, tmp_path):
    folder = trained(
        recipe(tiny_model, studies, held_out=False, epochs=1.5, batch_size=5), tmp_path / "run"
    )
    assert len(steps(folder.path)) == math.ceil(1.5 * math.ceil(STUDIES / 5))
    assert all(step.evaluation_loss is None for step in steps(folder.path))


def test_the_last_two_checkpoints_are_kept(whole):
    assert {path.name for path in whole.checkpoints.iterdir()} == {"checkpoint-5", "checkpoint-10"}
    assert whole.last_checkpoint == whole.checkpoint(10)


def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (90, 100):
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "trainer_state.json").write_text("{}")
    assert folder.last_checkpoint is None
    folder.close_checkpoint(90)
    assert folder.last_checkpoint == folder.checkpoint(90)


def checkpoints(folder: RunFolder, *written: int) -> None:
    for step in written:
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "optimizer.pt").touch()


def test_a_checkpoint_of_which_a_file_is_missing_does_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    checkpoints(folder, 90, 100)
    folder.close_checkpoint(90)
    folder.close_checkpoint(100)
    (folder.checkpoint(100) / "optimizer.pt").unlink()
    assert folder.last_checkpoint == folder.checkpoint(90)


def test_an_old_checkpoint_goes_when_the_new_one_counts_and_counts_no_more_while_it_goes(
    tmp_path, monkeypatch
):
    folder = RunFolder(tmp_path)
    counted = []
    for step in (5, 10):
        checkpoints(folder, step)
        folder.close_checkpoint(step)
    checkpoints(folder, 15)

    def removed(path: Path, **_: object) -> None:
        counted.append((path, (path / "whole").exists(), folder.last_checkpoint))

    monkeypatch.setattr(shutil, "rmtree", removed)
    folder.close_checkpoint(15)
    assert counted == [(folder.checkpoint(5), False, folder.checkpoint(15))]


def test_the_best_checkpoint_stays_beside_the_last(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (5, 10, 15, 20):
        checkpoints(folder, step)
        folder.close_checkpoint(step, best=5)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "checkpoint-20",
        "checkpoint-5",
    ]


class Killed(BaseException):
    """Stands for SIGKILL between two lines."""


def test_a_run_that_ends_within_a_checkpoint_goes_on_from_the_one_before(
    whole, tiny_model, studies, tmp_path, monkeypatch
):
    wanted = recipe(tiny_model, studies, ["projector", "language"], steps=12, save_every=5)

    def killed(folder: RunFolder, step: int, best: int | None) -> None:
        if step == 10:
            raise Killed

    close = RunFolder.close_checkpoint
    monkeypatch.setattr(RunFolder, "close_checkpoint", lambda *a: killed(*a) or close(*a))
    with pytest.raises(Killed):
        trained(wanted, tmp_path / "run")
    monkeypatch.setattr(RunFolder, "close_checkpoint", close)
    folder = trained(wanted, tmp_path / "run")
    written = (tmp_path / "run/steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [*range(1, 11), *range(6, 13)]
    assert losses(folder.path) == losses(whole.path)
    assert changed(whole.unsaved, folder.unsaved) == []


def test_a_changed_recipe_is_refused_where_checkpoints_are(whole, tiny_model, studies):
    other = recipe(tiny_model, studies, ["projector", "language"], steps=13, save_every=5)
    with pytest.raises(ConfigError, match="recipe was another"):
        prepared(other, whole.path)


def test_a_run_goes_on_whatever_devices_its_recipe_names(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run", ignore=shutil.ignore_patterns("model.part"))
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    written["sft"] |= {"devices": 2, "micro_batch_size": 1}
    run = sft.prepare(Recipe.model_validate(written), RunFolder(tmp_path / "run"), "cpu")
    assert run.resumes
    assert run.command.devices == 2


def test_changed_studies_are_refused_where_checkpoints_are(whole, tmp_path):
    for name in ("recipe.yaml", "train.jsonl", "validate.jsonl", "versions.json"):
        (tmp_path / name).write_text((whole.path / name).read_text())
    folder = RunFolder(tmp_path)
    folder.checkpoint(5).mkdir(parents=True)
    folder.close_checkpoint(5)
    rows = (tmp_path / "validate.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "validate.jsonl").write_text("".join(rows[1:]))
    same = Recipe.model_validate(yaml.safe_load((tmp_path / "recipe.yaml").read_text()))
    with pytest.raises(ConfigError, match=r"studies of the unfinished run .* have changed"):
        prepared(same, tmp_path)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"steps": 3, "epochs": 1}, "either `steps` or `epochs`$"),
        ({}, "either `steps` or `epochs`$"),
        ({"steps": 3, "early_stop": 2}, "early_stop needs held-out studies.*`data.validate`$"),
        ({"steps": True}, "sft.steps: .* a number is wanted"),
        ({"epochs": True}, "sft.epochs: .* a number is wanted"),
        ({"epochs": 1e300}, "sft.epochs"),
        ({"steps": 3, "micro_batch_size": 3, "batch_size": 16, "devices": 2},
         "3 does not divide the 8 studies .* 1, 2, 4, 8 would"),
        ({"steps": 3, "batch_size": 9, "devices": 4}, "9 studies cannot be shared .* 8 or 12"),
        ({"steps": 3, "zero_stage": 3}, "DeepSpeed on GPUs alone"),
        ({"steps": 3, "schedule": "cosin"}, "schedule"),
        ({"steps": 3, "warmup": 1.5}, "warmup"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(tmp_path, keys, why):
    from valor_plugin.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"name": "r", "stage": "sft", "model": {"path": "m", "trainable": "projector"},
             "data": {"train": "s.jsonl"}, "sft": keys}
        )
    )  # fmt: skip
    with pytest.raises(ConfigError, match=why):
        sft.fitted(load_recipe(path), "cpu")


def test_a_study_that_is_longer_than_the_models_positions_is_refused_with_its_id(
    tiny_model, studies, tmp_path
):
    rows = rows_of(studies, "train")
    rows[3]["report"] = "Lungs are clear. " * 3000
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wanted = recipe(tiny_model, tmp_path, held_out=False)
    with pytest.raises(ConfigError, match=r"study 's3' of .* has .* tokens with its images"):
        prepared(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_how_many_studies_have_no_report_is_said(tiny_model, studies, tmp_path, capsys):
    rows = rows_of(studies, "train")
    del rows[3]["report"]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared(recipe(tiny_model, tmp_path, held_out=False), tmp_path / "run")
    assert "1 of 17 studies, without a report" in capsys.readouterr().out


def test_the_length_of_a_study_is_that_of_its_row(whole, tiny_model, studies):
    found = read_studies(studies / "train.jsonl")
    length = sft.longest_of(recipe(tiny_model, studies), "train.jsonl", found, None)
    processor = AutoProcessor.from_pretrained(tiny_model)
    each = [batch(processor, [row])["input_ids"].shape[1] for row in rows_of(studies, "train")]
    assert length == max(each)


def test_more_images_need_more_memory(tiny_model, studies):
    one = sft.fitted(recipe(tiny_model, studies), "cpu")
    two = one.model_copy(update={"data": one.data.model_copy(update={"images": "all"})})
    least, more, most = sft.memory_of(one), sft.memory_of(two), sft.memory_of(two, 2048)
    assert more.activations == pytest.approx(least.activations * (1024 + 576) / 1024)
    assert most.activations == pytest.approx(least.activations * 2)


def test_more_gpus_than_there_are_are_refused(tiny_model, studies, monkeypatch):
    monkeypatch.setattr(machine, "count_gpus", lambda: 2)
    with pytest.raises(ConfigError, match=r"asks for 4 GPUs and there are 2"):
        sft.fitted(recipe(tiny_model, studies, devices=4), "cuda")


def test_all_gpus_are_used_and_the_batch_stays_the_same(tiny_model, studies, monkeypatch):
    monkeypatch.setattr(machine, "count_gpus", lambda: 8)
    found = sft.fitted(recipe(tiny_model, studies, batch_size=64, micro_batch_size=4), "cuda").sft
    assert found is not None
    assert (found.devices, found.batch_size, found.micro_batch_size) == (8, 64, 4)
    assert found.gradient_checkpointing


def test_of_several_gpus_one_is_shown_to_a_run_that_wants_one(tiny_model, studies, monkeypatch):
    monkeypatch.setattr(machine, "count_gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    wanted = recipe(tiny_model, studies, devices=1).sft
    assert wanted is not None
    shown = sft.SftSettings("r", Path("out"), wanted, "cuda").environment()
    assert shown["CUDA_VISIBLE_DEVICES"] == "4"


def failure(wanted: Recipe, folder: RunFolder, monkeypatch) -> str:
    """What a process of the run says of its end."""
    found = Follower(folder.failures, Failure)
    monkeypatch.setattr(sys, "argv", ["finetune", str(folder.path), "cpu"])
    settings = sft.SftSettings("r", folder.path, sft.fitted(wanted, "cpu").sft, "cpu")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ScoringError, torch.OutOfMemoryError)):
        finetune.main()
    [told] = found.new()
    return told.error


def test_an_image_that_breaks_off_ends_a_run_with_its_name(
    tiny_model, studies, tmp_path, monkeypatch
):
    film = tmp_path / "film.png"
    Image.effect_noise((200, 200), 60).save(film)
    row = {"id": "s1", "image": str(film), "report": "Clear."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    wanted = recipe(tiny_model, tmp_path, held_out=False)
    folder = prepared(wanted, tmp_path / "run")
    film.write_bytes(film.read_bytes()[:9000])
    told = failure(wanted, folder, monkeypatch)
    assert f"ScoringError: image {film}: cannot be read" in told


def test_memory_that_does_not_suffice_ends_a_run_with_torchs_words(
    tiny_model, studies, tmp_path, monkeypatch
):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    wanted = recipe(tiny_model, studies)
    folder = prepared(wanted, tmp_path / "run")
    monkeypatch.setattr(finetune.Trainer, "training_step", full)
    told = failure(wanted, folder, monkeypatch)
    assert "CUDA out of memory. Tried to allocate 20.00 GiB" in told


# From here on, runs as a user starts them.


def written(tmp_path: Path, wanted: Recipe) -> tuple[str, ...]:
    """The arguments that start a recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(wanted.to_yaml())
    return ("train", "--recipe", str(path), "--out", str(tmp_path / "run"), "--device", "cpu")


def started(tmp_path: Path, wanted: Recipe, then: Callable[[list[int]], None]) -> str:
    """Runs a recipe, does something to its processes after the sixth step, and gives what it
    printed."""
    command = subprocess.Popen(
        [COMMAND, *written(tmp_path, wanted)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    path, mark = tmp_path / "run/steps.jsonl", f'"records":"{tmp_path / "run"}"'
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 6:
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    then([command.pid, *processes_of(mark)])
    printed, _ = command.communicate(timeout=60)
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    return f"{printed}exit code {command.returncode}"


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def long(tiny_model, studies) -> Recipe:
    """So long that it can be killed, with epochs of whole batches: where there is a rest, several
    processes fill their last batch up."""
    rows = (studies / "train.jsonl").read_text().splitlines()[:16]
    (studies / "even").mkdir()
    (studies / "even/train.jsonl").write_text("\n".join(rows))
    (studies / "even/validate.jsonl").write_bytes((studies / "validate.jsonl").read_bytes())
    parts = ["projector", "language"]
    return recipe(tiny_model, studies / "even", parts, steps=60, save_every=5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def undisturbed(long, tmp_path_factory) -> RunFolder:
    return trained(long, tmp_path_factory.mktemp("long") / "run")


def test_a_run_that_was_killed_goes_on_with_the_losses_of_one_that_was_not(
    long, undisturbed, tmp_path
):
    started(tmp_path, long, lambda pids: [os.kill(pid, signal.SIGKILL) for pid in pids])
    assert 5 < len(steps(tmp_path / "run")) < 60
    done = openrlhf(*written(tmp_path, long))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the last checkpoint" in done.stdout
    assert "step   60/60  loss " in done.stdout
    assert "step    1/60" not in done.stdout
    assert losses(tmp_path / "run") == losses(undisturbed.path)
    assert changed(undisturbed.unsaved, tmp_path / "run/model") == []


def test_two_processes_of_which_one_is_killed_go_on_and_have_the_losses_of_one_process(
    long, undisturbed, tmp_path
):
    two = long.model_copy(update={"sft": long.sft.model_copy(update={"devices": 2})})

    def one(pids: list[int]) -> None:
        environments = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in pids}
        [worker] = [pid for pid, text in environments.items() if b"\0LOCAL_RANK=1\0" in text]
        os.kill(worker, signal.SIGKILL)

    said = started(tmp_path, two, one).splitlines()
    assert "The run ended without a model" in said[-2]
    assert "SIGKILL" in said[-2]
    assert said[-1] == "exit code 1"
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    done = openrlhf(*written(tmp_path, two))
    assert done.returncode == 0, done.stdout + done.stderr
    finetune.train(RunFolder(tmp_path / "alone"), sft.fitted(long, "cpu").sft, "cpu")
    for run in ("run", "alone"):  # the second goes on in one process
        for found, wanted in zip(steps(tmp_path / run), steps(undisturbed.path), strict=True):
            assert found.tokens == wanted.tokens
            assert found.loss == pytest.approx(wanted.loss, rel=1e-2)
            there = wanted.evaluation_loss or 0
            assert (found.evaluation_loss or 0) == pytest.approx(there, rel=1e-2)


def test_sigterm_ends_every_process(tiny_model, studies, tmp_path):
    wanted = recipe(tiny_model, studies, steps=5000, held_out=False, devices=2)
    said = started(tmp_path, wanted, lambda pids: os.kill(pids[0], signal.SIGTERM))
    assert "stopped; every process of the run has ended" in said
    assert said.endswith("exit code 130")


OVER_GLOO = """
import deepspeed.comm as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)

gather = dist.all_gather_into_tensor
def gather_and_wait(*args, **options):
    handle = gather(*args, **options)
    if handle is not None:
        handle.wait()
    return handle
dist.all_gather_into_tensor = gather_and_wait

from valor_plugin.run import finetune
arguments = finetune.SFTConfig
finetune.SFTConfig = lambda **o: arguments(**o | {"use_cpu": False, "ddp_backend": None})
finetune.main()
"""
"""DeepSpeed over gloo, for want of GPUs. accelerate 1.15 knows no backend for it on a CPU, and
DeepSpeed 0.19.6 waits for the last of several gathers, which is enough with NCCL's streams."""


def divided(wanted: Recipe, out: Path, stage: int) -> RunFolder:
    """A run of two processes between which ZeRO divides the model."""
    two = sft.fitted(wanted.model_copy(update={"sft": wanted.sft.model_copy(
        update={"devices": 2})}), "cpu")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        zero = two.model_copy(update={"sft": two.sft.model_copy(update={"zero_stage": stage})})
        patch.setattr(sft, "fitted", lambda *_: zero)
        folder = prepared(wanted, out)
    (out.parent / "over_gloo.py").write_text(OVER_GLOO)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, out.parent / "over_gloo.py", folder.path, "cpu"],
        env=os.environ | sft.SftSettings("r", folder.path, zero.sft, "cpu").environment(),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_what_zero_divides_trains_as_if_it_did_not_and_goes_on_from_its_checkpoint(
    long, undisturbed, tmp_path, stage
):
    folder = divided(long, tmp_path / "run", stage)
    found, wanted = losses(folder.path)[:20], losses(undisturbed.path)[:20]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert {part_of(name) for name in changed(Path(long.model.path), folder.unsaved)} == {
        "projector",
        "language",
    }
    first = {**weights(folder.unsaved)}
    folder = divided(long, tmp_path / "run", stage)
    again = [json.loads(line) for line in folder.steps.read_text().splitlines()[60:]]
    assert [step["step"] for step in again] == [56, 57, 58, 59, 60]
    assert [step["loss"] for step in again] == losses(folder.path)[55:]
    assert all(tensor.equal(first[name]) for name, tensor in weights(folder.unsaved).items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bfloat16 and DeepSpeed are for GPUs")
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_on_a_gpu_a_run_is_whole_with_and_without_zero(tiny_model, studies, tmp_path, stage):
    wanted = recipe(
        tiny_model, studies, ["projector", "language"], steps=30, save_every=10, devices=1,
        zero_stage=stage,
    )  # fmt: skip
    arguments = [*written(tmp_path, wanted)[:-1], "cuda"]
    done = openrlhf(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = losses(tmp_path / "run")
    assert last < first / 1.5
    assert {part_of(name) for name in changed(tiny_model, tmp_path / "run/model")} == {
        "projector",
        "language",
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bfloat16 is for GPUs")
def test_on_a_gpu_adapters_train(tiny_model, studies, tmp_path):
    adapters = {"trainable": ["projector", "lora"], "lora": {"rank": 8, "alpha": 32}}
    wanted = recipe(tiny_model, studies, adapters, steps=30, early_stop=2, devices=1)
    done = openrlhf(*[*written(tmp_path, wanted)[:-1], "cuda"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(changed(tiny_model, tmp_path / "run/model")) == 18
