"""Running the command as a user does, and reading what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from support.serving import misbehaving
from valor_plugin.data.studies import Study, write_studies
from valor_plugin.records import Step, read_steps
from valor_plugin.run.process import processes_of


@dataclass(frozen=True)
class Chain:
    """Where the runs are, and what their processes printed."""

    root: Path
    printed: dict[str, str]

    def log(self, stage: str) -> str:
        return (self.root / stage / "run.log").read_text(errors="replace")


# What an adaptation is compared with: a `sitecustomize.py` on the path, which Python runs in every
# process, takes it back.
WITHOUT = {
    "reference": """
from valor_plugin.host import reference
reference.is_shared = lambda parts: False
""",
    "images": """
from valor_plugin.host import images
images.prepare_once = lambda process, settings: lambda processor, prompt, images: process(
    processor, prompt, images.images
)
images.merge_names = lambda merge, settings: merge
images.encode_once = lambda encode, settings: encode
""",
}


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the runs of the tests are: the same tests hold on a GPU and without one."""
ONE_GPU = """\
  train.colocate_all: true
  ds.enable_sleep: true
  vllm.enable_sleep: true
  vllm.enforce_eager: true
  vllm.gpu_memory_utilization: 0.15
"""
"""Options with which a run needs one GPU; without a GPU they have no effect."""
COMMAND = str(Path(sys.executable).with_name("openrlhf"))


def openrlhf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it; a PYTHONPATH is added to that of the tests."""
    paths = [each["PYTHONPATH"] for each in (environment, os.environ) if "PYTHONPATH" in each]
    everything = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True, text=True, timeout=500, check=False, env=everything,
    )  # fmt: skip


STRANGER = """
import os, sys, ray
ray.init(address=sys.argv[1])
print("a stranger's task ran as user", ray.get(ray.remote(lambda: os.getuid()).remote()))
"""


def stranger(address: str) -> str:
    """What a process says that knows nothing of a Ray but its address and joins it."""
    environment = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(  # the first is for haste, the second says that it tries on this machine
        [sys.executable, "-c", STRANGER, address],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Watched:
    """A run, seen from outside while it was running.

    Attributes:
        leaks: files and command lines that had one of the secrets.
        logged: whether the same search found what Ray does log, the path of its folder.
        listening: addresses where its processes listened.
        mode: permissions of the folder that holds everything of its Ray.
        stranger: what a stranger said who tried to join.
    """

    leaks: list[str]
    logged: bool
    listening: set[str]
    mode: int
    stranger: str


def holding(text: str, *folders: Path) -> list[str]:
    """The files below the folders that hold a text."""
    found = subprocess.run(
        ["grep", "-rlaF", "--devices=skip", text, *map(str, folders)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.split()


def watch(out: Path, *secrets: str) -> Watched:
    """Looks at the run that writes into `out`, whose processes know these secrets and Ray's."""
    processes = [psutil.Process(pid) for pid in processes_of(f'"records":"{out}"')]
    lines = {process.pid: process.cmdline() for process in processes}
    [driver] = [words for words in lines.values() if "valor_plugin.host.main" in words]
    ray = Path(driver[driver.index("valor_plugin.host.main") + 1])
    [gcs] = [process for process in processes if "gcs_server" in process.name()]
    secrets = (*secrets, gcs.environ()["RAY_AUTH_TOKEN"])
    [port] = (ray / "session_latest").glob("gcs_server_port_*")
    return Watched(
        leaks=[
            place
            for secret in secrets
            for place in (
                *holding(secret, ray, out),
                *(f"process {pid}" for pid, words in lines.items() if secret in " ".join(words)),
            )
        ],
        logged=bool(holding(str(ray), ray)),
        listening={
            connection.laddr.ip.removeprefix("::ffff:")
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        },
        mode=ray.parent.stat().st_mode & 0o777,
        stranger=stranger(f"127.0.0.1:{port.read_text()}"),
    )


def scalars(chain: Chain, stage: str) -> dict[str, list[float]]:
    """The host's own training log, over all starts: name -> value per policy step; of a step that
    was logged twice the later value."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    series: dict[str, list] = {}
    folder = chain.root / stage / "tensorboard"
    for run in {file.parent for file in folder.rglob("*tfevents*")}:
        log = EventAccumulator(str(run), size_guidance={SCALARS: 0})
        log.Reload()
        for name in log.Tags()[SCALARS]:
            series.setdefault(name, []).extend(log.Scalars(name))
    return {
        name: list(
            {e.step: e.value for e in sorted(events, key=lambda e: (e.step, e.wall_time))}.values()
        )
        for name, events in series.items()
    }


def steps(chain: Chain, stage: str) -> list[Step]:
    """The run's own records."""
    return read_steps(chain.root / stage / "steps.jsonl")


def write_films(root: Path) -> None:
    """Eight films that are told apart by their brightness, and their studies file."""
    studies = []
    for i in range(8):
        path = root / f"film{i}.png"
        Image.new("L", (40, 60), 10 + 30 * i).save(path)
        studies.append(Study(f"s{i}", path, "No pleural effusion."))
    write_studies(studies, root / "studies.jsonl")


def write_large_films(root: Path, count: int) -> None:
    """Films of 5 megapixels, as they come from a hospital, and their studies file."""
    generator = np.random.default_rng(1)
    studies = []
    for i in range(count):
        pixels = generator.integers(0, 255, (24, 20), dtype=np.uint8)
        path = root / f"film{i}.jpg"
        Image.fromarray(pixels).resize((2000, 2400)).save(path)
        studies.append(Study(f"s{i}", path, "No pleural effusion."))
    write_studies(studies, root / "studies.jsonl")


RECIPE = (
    """
name: films
stage: grpo
model: {{path: {model}, trainable: {trainable}}}
data: {{train: {root}/studies.jsonl}}
rewards:
  slow: {{weight: 1.0}}  # the length of the response, whatever it says
openrlhf:
  algo.kl.init_coef: 0.01
  algo.advantage.is_correction_level: token
  actor.adam.lr: 1.0e-3
  actor.num_gpus_per_node: 1
  ref.num_gpus_per_node: 1
  vllm.num_engines: 1
  rollout.batch_size: 4
  rollout.n_samples_per_prompt: 4
  rollout.micro_batch_size: 16
  rollout.max_new_tokens: 16
  data.max_len: 160
  train.batch_size: 16
  train.micro_batch_size: 8
"""
    + ONE_GPU
)


def train_on_films(
    root: Path, model: Path, trainable: str, without: str | None = None, **options: object
) -> Chain:
    """Two policy steps, with `openrlhf.a.b` given as `a__b`, perhaps without an adaptation."""
    write_films(root)
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root, model=model, trainable=trainable))
    environment = misbehaving(root / "site")
    if without is not None:
        (root / "site" / "sitecustomize.py").write_text(WITHOUT[without])
    arguments = ["--recipe", str(recipe), "--out", str(root / "out"), "--device", DEVICE]
    for name, value in options.items():
        arguments += ["--set", f"openrlhf.{name.replace('__', '.')}={value}"]
    done = openrlhf("train", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return Chain(root, {"out": done.stdout})
