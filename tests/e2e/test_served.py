"""A run whose rewards come from a server, seen from outside: secrets, addresses, strangers, and a
server that is killed."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.hostrun import (
    COMMAND,
    DEVICE,
    Chain,
    Watched,
    holding,
    openrlhf,
    scalars,
    stranger,
    watch,
)
from support.serving import Server, free_port

from reward_sdk.config import read_set
from reward_sdk.reward_set import RewardSet

pytestmark = pytest.mark.host

LONGER = [
    "--set", "openrlhf.train.num_episodes=3", "--device", DEVICE,
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
    mark = {"digest": "", "device": DEVICE, "versions": {}}  # of a run's folder
    (folder / "versions.json").write_text(json.dumps(mark))
    with Server(tmp_path / "server", read_set(chain.root / "stage1.yaml")[0]) as server:
        done = openrlhf(
            "train", "--recipe", str(chain.root / "stage1.yaml"), "--out", str(folder),
            "--device", DEVICE, "--set", f"rewards={{server: {server.url}}}",
        )  # fmt: skip
    assert done.returncode == 2
    assert "another reward set" in done.stderr
