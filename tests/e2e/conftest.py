"""A tiny model, images that are told apart by their brightness, and one run of each stage through
the real OpenRLHF, shared by the tests of this folder."""

from __future__ import annotations

import pytest
from PIL import Image
from support.hostrun import DEVICE, ONE_GPU, Chain, openrlhf

from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef
from valor_plugin.data.studies import Study, write_studies
from valor_plugin.host.versions import check_build

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
if problem := check_build(DEVICE):
    pytest.skip(problem, allow_module_level=True)

REPORTS = (
    "The heart is enlarged. No pleural effusion.",
    "Left pleural effusion. The heart size is normal.",
    "No pleural effusion or pneumothorax. The lungs are clear.",
    "Right pneumothorax. No pleural effusion.",
)
HOST = (
    """
openrlhf:
  algo.advantage.is_correction_level: token
  actor.adam.lr: 1.0e-3
  actor.num_gpus_per_node: 1
  vllm.num_engines: 1
  rollout.batch_size: 4
  rollout.n_samples_per_prompt: 4
  rollout.micro_batch_size: 16
  rollout.max_new_tokens: 16
  data.max_len: 192
  train.batch_size: 16
  train.micro_batch_size: 8
"""
    + ONE_GPU
)
STAGE1 = """
name: stage1
stage: grpo
model: {{path: {root}/sft/model, trainable: [projector, language]}}
data: {{train: {root}/studies.jsonl}}
advantage: {{rank: "off"}}
rewards:
  rouge_l: {{weight: 0.5}}
  findings_f1: {{weight: 1.0, every: 2}}
  format: {{weight: 0.1}}
"""
STAGE2 = """
name: stage2
stage: grpo
model: {{path: {root}/stage1/model, trainable: projector}}
data: {{train: {root}/studies.jsonl, images: all, prompt: findings_and_impression}}
rewards:
  brightness: {{weight: 1.0}}
  rouge_l: {{weight: 0.5}}
  format: {{weight: 0.1}}
"""
NO_KL = "  algo.kl.init_coef: 0\n"
KL = """  algo.kl.use_loss: true
  algo.kl.init_coef: 0.01
"""
SFT = """
name: sft
stage: sft
model: {{path: {root}/base, trainable: all}}
data: {{train: {root}/studies.jsonl, images: all}}
sft: {{steps: 150, batch_size: 8, learning_rate: 3.0e-3}}
"""

BRIGHTNESS = '''
"""A third-party reward: the brightness of the image; notes what it saw."""
import json, os
from PIL import Image
from reward_sdk.types import Outcome

class Brightness:
    name, bounds, needs = "brightness", (0.0, 1.0), frozenset({"image"})

    def __call__(self, samples):
        parts = []
        for sample in samples:
            gray = Image.open(sample.image.path).getpixel((0, 0))
            with open(os.environ["SEEN"], "a") as file:
                file.write(json.dumps({"id": sample.id, "gray": gray}) + "\\n")
            parts.append(Outcome(gray / 255))
        return parts
'''


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """SFT, stage 1 and stage 2, each from the model that the one before it left."""
    from valor_plugin.demo.model import Shape, write

    root = tmp_path_factory.mktemp("chain")
    studies = []
    for i in range(16):
        path = root / f"film{i:02}.png"
        Image.new("L", (40, 40), 10 + 15 * i).save(path)
        side = root / f"side{i:02}.png"
        Image.new("L", (40, 40), 250 - 15 * i).save(side)
        others = (ImageRef(str(side), view="LATERAL"),) if i % 2 else ()  # every second has two
        studies.append(Study(f"s{i:02}", path, REPORTS[i % len(REPORTS)], others=others))
    write_studies(studies, root / "studies.jsonl")
    shape = Shape(image=32, tower=64, tower_layers=2, language=64, language_layers=2, heads=2,
                  vocabulary=160)  # fmt: skip
    write(root / "base", [wrap_report(text) for text in REPORTS] * 20, shape)
    # What `pip install` of a distribution with a reward leaves in site-packages.
    metadata = root / "plugin" / "brightness-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[reward_sdk.rewards]\nbrightness = brightness:Brightness\n"
    )
    (root / "plugin" / "brightness.py").write_text(BRIGHTNESS)
    printed = {}
    recipes = {"sft": SFT, "stage1": STAGE1 + HOST + NO_KL, "stage2": STAGE2 + HOST + KL}
    for stage, recipe in recipes.items():
        path = root / f"{stage}.yaml"
        path.write_text(recipe.format(root=root))
        done = openrlhf(
            "train", "--recipe", str(path), "--out", str(root / stage), "--device", DEVICE,
            PYTHONPATH=str(root / "plugin"), SEEN=str(root / "seen.jsonl"),
        )  # fmt: skip
        printed[stage] = done.stdout + done.stderr
        assert done.returncode == 0, printed[stage]
    return Chain(root, printed)
