"""Running the command as a user does, and reading what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from support.serving import misbehaving
from valor_plugin.data.studies import Study, write_studies
from valor_plugin.records import Step, read_steps


@dataclass(frozen=True)
class Chain:
    """Where the runs are, and what their processes printed."""

    root: Path
    printed: dict[str, str]

    def log(self, stage: str) -> str:
        return (self.root / stage / "host.log").read_text(errors="replace")


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
    processor, prompt, [image.image for image in images]
)
images.merge_names = lambda merge, settings: merge
images.encode_once = lambda encode, settings: encode
""",
}


COMMAND = str(Path(sys.executable).with_name("openrlhf"))


def openrlhf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **environment},
    )  # fmt: skip


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


RECIPE = """
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
    arguments = ["--recipe", str(recipe), "--out", str(root / "out"), "--device", "cpu"]
    for name, value in options.items():
        arguments += ["--set", f"openrlhf.{name.replace('__', '.')}={value}"]
    done = openrlhf("train", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return Chain(root, {"out": done.stdout})
