"""What training LLaVA-Med by parts saves, through the real host on this machine: a model of its
proportions (336 px, 576 image tokens, a tower of a fourteenth of the language model's size), two
policy steps each of 4 groups of 8. Run it with `make bench-actor`.

Every variant is compared with the first, in one run of this program. Memory is the most anonymous
memory (RssAnon) of the policy's and of the reference's process, whose libraries are most of it on
this scale.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import mean

from support.hostrun import COMMAND, WITHOUT, Chain, steps, write_large_films
from support.serving import misbehaving

from valor_plugin.demo.model import Shape, write

SHAPE = Shape(image=336, patch=14, tower=256, tower_layers=3, language=768, language_layers=6,
              heads=8, key_value_heads=2, vocabulary=512)  # fmt: skip
RECIPE = """
name: bench
stage: grpo
model: {{path: {root}/model, trainable: {train}}}
data: {{train: {root}/studies.jsonl}}
rewards:
  slow: {{weight: 1.0}}  # the length of the response, whatever it says
openrlhf:
  algo.kl.init_coef: 0.01
  algo.kl.use_loss: true
  actor.num_gpus_per_node: 1
  ref.num_gpus_per_node: 1
  vllm.num_engines: 1
  rollout.batch_size: 4
  rollout.n_samples_per_prompt: 8
  rollout.micro_batch_size: 8
  rollout.max_new_tokens: 32
  data.max_len: 768
  train.batch_size: 32
  train.micro_batch_size: 4
"""
VARIANTS = {
    "as it is": ("projector", None),
    "a separate reference": ("projector", "reference"),
    "images once a sample": ("projector", "images"),
    "everything trains": ("all", None),
}


def memory(mark: str) -> int:
    """Anonymous memory of the processes whose title has this word, in bytes."""
    total = 0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "cmdline").read_text(errors="replace"):
                [line] = re.findall(r"RssAnon:\s+(\d+)", (folder / "status").read_text())
                total += int(line) * 1024
        except (OSError, ValueError):
            continue
    return total


def run(root: Path, name: str, train: str, without: str | None) -> dict[str, float]:
    """One run of the host: seconds of the last step's phases, bytes, and the peak of memory."""
    folder = root / name.replace(" ", "-")
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(root=root, train=train))
    environment = misbehaving(folder / "site")
    if without:
        (folder / "site" / "sitecustomize.py").write_text(WITHOUT[without])
    arguments = ["--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "out")]
    process = subprocess.Popen(
        [COMMAND, "train", *arguments, "--device", "cpu"],
        env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    most = dict.fromkeys(("PolicyModelActor", "ReferenceModelActor"), 0)
    while process.poll() is None:
        for mark in most:
            most[mark] = max(most[mark], memory(mark))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{name} failed: {folder / 'out/run.log'}")
    taken = steps(Chain(folder, {}), "out")
    last = taken[-1]
    return {
        "tensors": last.synced["tensors"], "MB": last.synced["bytes"] / 1e6,
        "sync": mean(step.seconds["sync"] for step in taken),
        "policy": most["PolicyModelActor"], "reference": most["ReferenceModelActor"],
        **{phase: last.seconds[phase] for phase in ("total", "experience", "training")},
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "model", ["No pleural effusion.", "The heart is enlarged."] * 9, SHAPE)
        config = root / "model/config.json"
        content = json.loads(config.read_text())
        content["text_config"]["max_position_embeddings"] = 1024
        config.write_text(json.dumps(content))
        size = (root / "model/model.safetensors").stat().st_size
        write_large_films(root, 8)
        print(f"model of {size / 1e6:.0f} MB; seconds of the second policy step", flush=True)
        found = {}
        for variant, (train, without) in VARIANTS.items():
            found[variant] = one = run(root, variant, train, without)
            print(f"{variant:<21} step {one['total']:5.1f}, log-probabilities "
                  f"{one['experience']:5.1f}, training {one['training']:5.1f}; sync "
                  f"{one['tensors']:.0f} tensors, {one['MB']:.3f} MB, {one['sync']:.2f} s; memory "
                  f"{one['policy'] / 1e6:.0f} + {one['reference'] / 1e6:.0f} MB",
                  flush=True)  # fmt: skip
    base, apart, each, every = found.values()

    def phases(other: dict) -> str:
        return ", ".join(
            f"{label} {other[key] / base[key]:.2f}"
            for label, key in (("step", "total"), ("log-probabilities", "experience"),
                               ("training", "training"))
        )  # fmt: skip

    print(f"sync of everything against the projector: {every['MB'] / base['MB']:.0f} times the "
          f"bytes, {every['sync'] / base['sync']:.1f} times the time")  # fmt: skip
    more = apart["policy"] + apart["reference"] - base["policy"]
    print(f"separate against shared reference: {more / 1e6:+.0f} MB with a model of "
          f"{size / 1e6:.0f}; {phases(apart)} times the time")  # fmt: skip
    print(f"images once a sample against once a group: {phases(each)} times the time")


if __name__ == "__main__":
    main()
