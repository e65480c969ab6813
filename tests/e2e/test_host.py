"""Both stages through the real OpenRLHF, Ray, DeepSpeed and vLLM, on a tiny model."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.hostrun import (
    COMMAND,
    DEVICE,
    Chain,
    openrlhf,
    scalars,
    steps,
)
from transformers import AutoProcessor, LlavaForConditionalGeneration

from valor_plugin.llava_med.parts import part_of
from valor_plugin.run.process import processes_of

pytestmark = [pytest.mark.host, pytest.mark.gpu]


def weights(chain: Chain, stage: str) -> dict[str, torch.Tensor]:
    return load_file(chain.root / stage / "model" / "model.safetensors")


def changed_parts(chain: Chain, before: str, after: str) -> set[str]:
    old, new = weights(chain, before), weights(chain, after)
    assert old.keys() == new.keys()
    return {part_of(name) for name in old if not torch.equal(old[name], new[name])}


def test_stage_2_changes_the_projector_and_leaves_every_other_tensor_bit_identical(chain: Chain):
    assert changed_parts(chain, "stage1", "stage2") == {"projector"}


def test_every_tensor_of_the_projector_changes_in_stage_2(chain: Chain):
    old, new = weights(chain, "stage1"), weights(chain, "stage2")
    projector = [name for name in old if part_of(name) == "projector"]
    assert len(projector) == 4
    assert not any(torch.equal(old[name], new[name]) for name in projector)


def test_stage_1_changes_what_its_recipe_names_and_not_the_tower(chain: Chain):
    assert changed_parts(chain, "sft", "stage1") == {"projector", "language"}


@pytest.mark.parametrize("stage", ["sft", "stage1", "stage2"])
def test_a_stage_leaves_a_folder_that_transformers_loads_whole(chain: Chain, stage: str):
    folder = chain.root / stage / "model"
    processor = AutoProcessor.from_pretrained(folder)
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert processor.image_processor.size["height"] == model.config.vision_config.image_size
    assert processor.chat_template


@pytest.mark.parametrize(
    ("stage", "rewards"),
    [("stage1", ("rouge_l", "findings_f1", "format")), ("stage2", ("brightness", "format"))],
)
def test_every_component_is_in_the_hosts_own_log(chain: Chain, stage: str, rewards: tuple):
    log = scalars(chain, stage)
    for reward in rewards:
        for tail in ("", "/applied", "/failed", "/not_applicable"):
            assert len(log[f"train/{reward}{tail}"]) == 4


def test_the_run_records_what_the_host_logs(chain: Chain):
    log, recorded = scalars(chain, "stage1"), steps(chain, "stage1")
    assert [step.step for step in recorded] == [1, 2, 3, 4]
    for name, series in (
        ("reward", "reward"),
        ("length", "response_length"),
        ("tied", "group_tied"),
    ):
        values = [getattr(step, name) for step in recorded]
        assert values == pytest.approx(log[f"train/{series}"], rel=1e-6)
    for step, sync in zip(recorded, log["train/timing/broadcast"], strict=True):
        assert step.seconds["sync"] == pytest.approx(sync, rel=1e-6)
        assert step.seconds["total"] > step.seconds["training"] > 0
        assert step.synced["tensors"] == 25
    assert [step.parts["findings_f1"].mean is None for step in recorded] == [True, False] * 2


def test_the_policy_step_reaches_the_rewards_exactly(chain: Chain):
    assert scalars(chain, "stage1")["train/findings_f1/applied"] == [0, 1, 0, 1]


def test_the_logged_reward_is_the_weighted_sum_of_its_components(chain: Chain):
    log = scalars(chain, "stage1")
    for step in range(4):
        total = sum(
            weight * log[f"train/{name}"][step]
            for name, weight in (("rouge_l", 0.5), ("findings_f1", 1.0), ("format", 0.1))
        )
        assert log["train/reward"][step] == pytest.approx(total, abs=1e-4)


def test_every_reward_sees_the_image_of_its_own_study(chain: Chain):
    seen = [json.loads(line) for line in (chain.root / "seen.jsonl").read_text().splitlines()]
    assert Counter(row["id"] for row in seen) == {f"s{i:02}": 4 for i in range(16)}
    assert all(row["gray"] == 10 + 15 * int(row["id"][1:]) for row in seen)


def test_a_model_is_shown_all_images_where_its_recipe_says_so(chain: Chain):
    def shown(stage: str) -> list[int]:
        rows = (chain.root / stage / "train.jsonl").read_text().splitlines()
        return [len(json.loads(row)["images"]) for row in rows]

    assert shown("stage1") == [1] * 16
    assert shown("stage2") == [1, 2] * 8
    assert "data.max_images_per_prompt 2" in (chain.root / "stage2/command.txt").read_text()


def test_the_engine_follows_the_policy_after_every_sync(chain: Chain):
    log = scalars(chain, "stage2")
    assert all(abs(kl) < 5e-3 for kl in log["train/vllm_kl"])


def test_ranks_give_advantages_of_one_size_and_tied_groups_are_counted(chain: Chain):
    log = scalars(chain, "stage2")
    assert all(0 <= share <= 1 for share in log["train/group_tied"])
    assert all(abs(mean) < 1e-5 for mean in log["train/return"])


def test_stage_2_has_its_reference_in_the_policy_and_starts_no_model_for_it(chain: Chain):
    log = scalars(chain, "stage2")["train/kl"]
    # The first is not exactly 0: samples of one and of two images are padded to other lengths in
    # the micro-batches of the two passes, and rounded otherwise.
    assert abs(log[0]) < 1e-6 < abs(log[-1])
    assert "KL reference: no model, 4 tensors" in chain.log("stage2")
    assert "ReferenceModelActor" not in chain.log("stage2")


def test_no_sample_goes_unscored(chain: Chain):
    assert set(scalars(chain, "stage2")["train/unscored"]) == {0}


def test_the_screen_shows_a_line_for_every_step(chain: Chain):
    lines = [line for line in chain.printed["stage1"].splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]


def test_the_screen_shows_what_trains_before_the_first_step(chain: Chain):
    lines = chain.printed["stage2"].splitlines()
    table = [line.split() for line in lines if "tensors" in line]
    assert [(line[0], line[-1]) for line in table] == [
        ("tower", "frozen"), ("projector", "trains"), ("language", "frozen")
    ]  # fmt: skip
    first = next(i for i, line in enumerate(lines) if line.startswith("step"))
    assert all("tensors" not in line for line in lines[first:])


def test_the_run_folder_says_what_was_run(chain: Chain):
    record = json.loads((chain.root / "stage2" / "versions.json").read_text())
    assert record["versions"]["openrlhf"] == "0.11.2"
    assert record["device"] == DEVICE
    assert "train_ppo_ray" in (chain.root / "stage2" / "command.txt").read_text()


def test_a_finished_run_leaves_no_process_behind(chain: Chain):
    assert processes_of("VALOR_HOST_SETTINGS=") == []


def test_a_failing_worker_ends_the_run_with_its_cause_in_one_paragraph(chain: Chain):
    out = chain.root / "failing"
    done = openrlhf(  # this reward wants a variable of the environment
        "train", "--recipe", str(chain.root / "stage1.yaml"), "--out", str(out), "--device", DEVICE,
        "--set", "rewards={brightness: {weight: 1.0, on_failure: raise}}",
        PYTHONPATH=str(chain.root / "plugin"),
    )  # fmt: skip
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: The run failed: ")
    assert "SEEN" in message
    assert str(out / "run.log") in message
    assert processes_of("VALOR_HOST_SETTINGS=") == []


@pytest.fixture(scope="module")
def interrupted(chain: Chain) -> tuple[Chain, str, float]:
    """A run of stage 1 with 24 steps that got a Ctrl-C after its second, and what that took: the
    output, and the seconds until the command had ended. A step is seen by its checkpoint: Ray
    brings log lines so late that a fast machine would be done by then."""
    process = subprocess.Popen(
        [COMMAND, *resumable(chain)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores it
    )  # fmt: skip
    latest = chain.root / "interrupted/checkpoints/_actor/latest"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if latest.exists() and latest.read_text().strip() not in ("", "global_step1"):
            break
        time.sleep(0.05)
    assert len(processes_of("VALOR_HOST_SETTINGS=")) > 3
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    return chain, output, time.monotonic() - began


def resumable(chain: Chain) -> list[str]:
    """One of the sixteen films is damaged where only decoding finds it."""
    rows = (chain.root / "studies.jsonl").read_text().splitlines()
    film = BytesIO()
    Image.effect_noise((40, 40), 80).save(film, "PNG")
    data = film.getvalue()
    middle = len(data) // 2
    (chain.root / "damaged.png").write_bytes(data[:middle] + b"damage" + data[middle + 6 :])
    rows[0] = json.dumps(json.loads(rows[0]) | {"id": "damaged", "image": "damaged.png"})
    (chain.root / "damaged.jsonl").write_text("\n".join(rows))
    return [
        "train", "--recipe", str(chain.root / "stage1.yaml"), "--device", DEVICE,
        "--out", str(chain.root / "interrupted"),
        "--set", f"data.train={chain.root / 'damaged.jsonl'}",
        "--set", "openrlhf.train.num_episodes=6", "--set", "openrlhf.ckpt.save_steps=1",
        "--set", "model.trainable=projector", "--set", "openrlhf.algo.kl.use_loss=true",
        "--set", "openrlhf.algo.kl.init_coef=0.01",
    ]  # fmt: skip


def test_an_interrupt_ends_every_process_of_the_run(interrupted):
    chain, output, seconds = interrupted
    assert "stopped" in output
    assert seconds < 40
    assert processes_of("VALOR_HOST_SETTINGS=") == []
    assert not (chain.root / "interrupted" / "model").exists()


def test_a_run_that_was_cut_short_goes_on_from_its_checkpoint_to_the_end(interrupted):
    chain, _, _ = interrupted
    done = openrlhf(*resumable(chain))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from the last checkpoint" in done.stdout
    steps = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step")]
    assert steps[0] != "1/24"
    assert steps[-1] == "24/24"
    # The policy step goes on with the run: every second one is clinical, over both starts.
    assert scalars(chain, "interrupted")["train/findings_f1/applied"] == [0, 1] * 12
    assert (chain.root / "interrupted" / "model" / "config.json").exists()


def test_a_run_that_goes_on_keeps_the_reference_of_its_start(interrupted):
    chain, _, _ = interrupted
    # The learning rate begins at 0, so the policy is the reference for two steps; it goes on at the
    # third or later, where a reference that was the checkpoint's model would give 0 again.
    first, _, *later = scalars(chain, "interrupted")["train/kl"]
    assert first == 0
    assert all(kl != 0 for kl in later)


def test_a_film_that_cannot_be_decoded_leaves_its_samples_unscored_and_is_named(interrupted):
    chain, _, _ = interrupted
    unscored = scalars(chain, "interrupted")["train/unscored"]
    assert sorted(unscored) == [0] * 18 + [0.25] * 6  # 4 of 16 samples, once in each episode
    assert "study damaged: image" in chain.log("interrupted")
