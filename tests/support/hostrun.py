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
def install():
    from openrlhf.utils import vlm_utils
    process = vlm_utils.process_prompt_with_images
    vlm_utils.process_prompt_with_images = lambda processor, prompt, films: process(
        processor, prompt, [film.image for film in films]
    )
images.install = install
images.Encoder = lambda llava, most: llava.get_image_features
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
    """The host's own training log: name -> value per policy step."""
    from valor_plugin.evaluation.curves import read_scalars

    series = read_scalars(chain.root / stage / "tensorboard")
    return {name: [value for _, value in points] for name, points in series.items()}


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
model: {{path: {model}, train: {train}}}
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
    root: Path, model: Path, train: str, without: str | None = None, **options: object
) -> Chain:
    """Two policy steps, with `openrlhf.a.b` given as `a__b`, perhaps without an adaptation."""
    write_films(root)
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root, model=model, train=train))
    environment = misbehaving(root / "site")
    if without is not None:
        (root / "site" / "sitecustomize.py").write_text(WITHOUT[without])
    arguments = ["--recipe", str(recipe), "--out", str(root / "out"), "--device", "cpu"]
    for name, value in options.items():
        arguments += ["--set", f"openrlhf.{name.replace('__', '.')}={value}"]
    done = openrlhf("train", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return Chain(root, {"out": done.stdout})
