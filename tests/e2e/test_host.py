"""Both stages through the real OpenRLHF, Ray, DeepSpeed and vLLM, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.hostrun import (
    COMMAND,
    Chain,
    Watched,
    holding,
    openrlhf,
    scalars,
    steps,
    stranger,
    watch,
)
from support.serving import Server, free_port
from transformers import AutoProcessor, LlavaForConditionalGeneration

from reward_sdk.config import read_set
from reward_sdk.reward_set import RewardSet
from valor_plugin.llava_med.parts import part_of
from valor_plugin.run.process import processes_of

pytestmark = pytest.mark.host


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
        for tail in ("", "/applied", "/failed"):
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


def test_the_engine_follows_the_policy_after_every_sync(chain: Chain):
    log = scalars(chain, "stage2")
    assert all(abs(kl) < 5e-3 for kl in log["train/vllm_kl"])


def test_ranks_give_advantages_of_one_size_and_tied_groups_are_counted(chain: Chain):
    log = scalars(chain, "stage2")
    assert all(0 <= share <= 1 for share in log["train/group_tied"])
    assert all(abs(mean) < 1e-5 for mean in log["train/return"])


def test_stage_2_has_its_reference_in_the_policy_and_starts_no_model_for_it(chain: Chain):
    log = scalars(chain, "stage2")["train/kl"]
    assert log[0] == 0
    assert log[-1] != 0
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
    assert record["device"] == "cpu"
    assert "train_ppo_ray" in (chain.root / "stage2" / "command.txt").read_text()


def test_a_finished_run_leaves_no_process_behind(chain: Chain):
    assert processes_of("VALOR_HOST_SETTINGS=") == []


def test_a_failing_worker_ends_the_run_with_its_cause_in_one_paragraph(chain: Chain):
    out = chain.root / "too-long"
    done = openrlhf(
        "train", "--recipe", str(chain.root / "stage1.yaml"), "--out", str(out), "--device", "cpu",
        "--set", "openrlhf.data.max_len=24",
    )  # fmt: skip
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: The run failed: ")
    assert "max_prompt_length" in message or "max_model_len" in message
    assert str(out / "host.log") in message
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
        "train", "--recipe", str(chain.root / "stage1.yaml"), "--device", "cpu",
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


LONGER = [
    "--set", "openrlhf.train.num_episodes=3", "--device", "cpu",
    "--set", "openrlhf.train.full_determinism_enable=true",
]  # fmt: skip


TOKEN = "token-of-the-reward-server"
SECRETS = {"REWARD_SDK_TOKEN": TOKEN, "WANDB_API_KEY": "5ec2e7" * 7}


@dataclass(frozen=True)
class Served:
    """A run of stage 1 whose rewards come from a server that wants a token, is killed in the run's
    midst and started again; W&B logs it, too. The run was watched while the server was away."""

    chain: Chain
    watched: Watched
    wandb: Path


@pytest.fixture(scope="module")
def served(chain: Chain) -> Served:
    rewards, _ = read_set(chain.root / "stage1.yaml")
    recipe = ["train", "--recipe", str(chain.root / "stage1.yaml")]
    port, out, wandb = free_port(), chain.root / "served", chain.root / "wandb"
    wandb.mkdir()
    guarded = {"REWARD_SDK_TOKEN": TOKEN}
    first = Server(chain.root / "server1", rewards, port=port, environment=guarded)
    process = subprocess.Popen(
        [COMMAND, *recipe, "--out", str(out), *LONGER,
         "--set", f"rewards={{server: ['{first.url}']}}",
         "--set", "openrlhf.logger.wandb.project=valor"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **SECRETS, "WANDB_MODE": "offline", "WANDB_DIR": str(wandb)},
    )  # fmt: skip
    assert process.stdout is not None
    printed, watched = [], None
    for line in process.stdout:
        printed.append(line)
        if line.startswith("step") and line.split()[1] == "4/12":
            first.kill()
            watched = watch(out, *SECRETS.values())
            second = Server(chain.root / "server2", rewards, port=port, environment=guarded)
    process.wait(timeout=60)
    output = "".join(printed)
    assert process.returncode == 0, output
    assert second.stop() == 0
    assert watched is not None
    return Served(chain, watched, wandb)


def test_no_secret_is_in_the_files_or_command_lines_of_a_run(served: Served):
    assert served.watched.logged, "Ray logs the path of its folder, so the search must find it"
    assert served.watched.leaks == []
    for secret in SECRETS.values():
        assert holding(secret, served.chain.root / "served", served.wandb) == []


def test_the_folder_of_a_runs_ray_is_its_users_alone(served: Served):
    assert served.watched.mode == 0o700


def test_a_run_listens_on_the_loopback_interface_only(served: Served):
    assert served.watched.listening == {"127.0.0.1"}


def test_a_stranger_cannot_join_the_ray_of_a_run(served: Served):
    assert "Failed to connect to Ray cluster" in served.watched.stranger
    assert "a stranger's task ran" not in served.watched.stranger


OPEN = """
import os, sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_the_same_stranger_joins_a_ray_that_is_open():
    with TemporaryDirectory() as folder:  # a short name, because there are sockets below
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        )  # fmt: skip
        assert process.stdout is not None
        said = stranger(process.stdout.readline().strip())
        process.communicate()
    assert "a stranger's task ran" in said


def test_a_run_is_logged_to_wandb_with_a_key_that_no_recipe_holds(served: Served):
    assert list(served.wandb.glob("wandb/offline-run-*/*.wandb"))


def test_a_run_survives_a_reward_server_that_is_killed_and_started_again(served: Served):
    chain = served.chain
    log = scalars(chain, "served")
    assert len(log["train/reward"]) == 12
    assert set(log["train/unscored"]) == {0}
    assert log["train/findings_f1/applied"] == [0, 1] * 6
    assert (chain.root / "served" / "model" / "config.json").exists()
    for server in ("server1", "server2"):
        assert (chain.root / server / "server.log").read_text().count("ready:") == 1


@pytest.mark.slow
def test_a_reward_server_gives_a_run_the_rewards_that_it_would_have_in_process(served: Served):
    chain = served.chain
    recipe = ["train", "--recipe", str(chain.root / "stage1.yaml")]
    done = openrlhf(*recipe, "--out", str(chain.root / "inline"), *LONGER)
    assert done.returncode == 0, done.stdout + done.stderr
    inline, remote = scalars(chain, "inline"), scalars(chain, "served")
    for key in ("reward", "rouge_l", "findings_f1", "format"):
        assert remote[f"train/{key}"] == pytest.approx(inline[f"train/{key}"], abs=1e-6), key


def test_a_run_folder_says_what_its_reward_server_served(served: Served):
    chain = served.chain
    record = json.loads((chain.root / "served" / "rewards.json").read_text())
    expected = RewardSet.from_config(chain.root / "stage1.yaml")
    assert record["set"] == expected.digest


def test_a_run_whose_reward_server_serves_another_set_is_not_continued(served: Served, tmp_path):
    chain = served.chain
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "rewards.json").write_text('{"set": "another"}')
    mark = {"digest": "", "device": "cpu", "versions": {}}  # of a run's folder
    (folder / "versions.json").write_text(json.dumps(mark))
    with Server(tmp_path / "server", read_set(chain.root / "stage1.yaml")[0]) as server:
        done = openrlhf(
            "train", "--recipe", str(chain.root / "stage1.yaml"), "--out", str(folder),
            "--device", "cpu", "--set", f"rewards={{server: {server.url}}}",
        )  # fmt: skip
    assert done.returncode == 2
    assert "another reward set" in done.stderr
