"""A policy step of stage 2 on one GPU of 80 GB, by phase: seconds and peak memory, of a model of
LLaVA-Med 7B's shape with random weights. Run it with `make bench-gpu`; some 15 minutes.

Every variant is compared with the first, in one run of this program. "Everything trains" does not
fit on one card at 7B, so it and the projector are compared on a model of a quarter of the layers.
With `--tiny` the same is done with a tiny model, on the CPU if need be, to try the program itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.hostrun import COMMAND, DEVICE, RECIPE, WITHOUT, Chain, steps, write_large_films
from support.serving import misbehaving
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from valor_plugin.demo.model import Shape, make_processor, write
from valor_plugin.llava_med import checkpoint
from valor_plugin.records import Step

TINY = "--tiny" in sys.argv
PHASES = ("generation", "experience", "training", "sync")  # in the order in which a step has them
OPTIONS = {
    "algo.kl.use_loss": "true", "algo.advantage.is_correction_level": "null",
    "actor.adam.lr": 1e-4, "actor.gradient_checkpointing_enable": "true", "ds.zero_stage": 2,
    "vllm.gpu_memory_utilization": 0.4, "rollout.batch_size": 8,
    "rollout.n_samples_per_prompt": 8, "rollout.micro_batch_size": 8,
    "rollout.max_new_tokens": 16 if TINY else 200, "data.max_len": 1024, "train.batch_size": 64,
    "train.micro_batch_size": 4,
}  # fmt: skip
"""What differs from the recipe that the tests of the host train by."""


@dataclass(frozen=True)
class Variant:
    """One way to run the step.

    Attributes:
        model: which model, a key of `MODELS`.
        trainable: the recipe's `model.trainable`, as YAML.
        without: an adaptation that is taken back, a key of `WITHOUT`.
        options: more options of the host.
    """

    model: str = "whole"
    trainable: str = "projector"
    without: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


MODELS = {"whole": 32, "quarter": 8}
VARIANTS = {
    "as it is": Variant(),
    "a separate reference": Variant(without="reference"),
    "images once a sample": Variant(without="images"),
    "CUDA graphs": Variant(options={"vllm.enforce_eager": "false"}),
    "LoRA": Variant(trainable="lora, lora: {rank: 128, alpha: 256}"),
    "projector of a quarter": Variant("quarter"),
    "everything of a quarter": Variant("quarter", "[projector, language]"),
}
STEPS = 3


def write_model(folder: Path, layers: int) -> None:
    """A model of LLaVA-Med 7B's shape with so many layers of the language model."""
    reports = ["No pleural effusion.", "The heart is enlarged.", "No acute disease."] * 9
    if TINY:
        shape = Shape(image=336, patch=14, tower=64, tower_layers=2, language=64, language_layers=2,
                      heads=2, key_value_heads=2, vocabulary=512)  # fmt: skip
        write(folder, reports, shape)
        config = folder / "config.json"
        content = json.loads(config.read_text())
        content["text_config"]["max_position_embeddings"] = 1024
        config.write_text(json.dumps(content))
        return
    processor = make_processor(reports, Shape(image=336, patch=14, vocabulary=512))
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([f"word{i}" for i in range(32_000 - len(tokenizer))])
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = MistralConfig(
        vocab_size=32_064, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096,
        sliding_window=None, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_seq_length=576,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):  # random numbers come faster there
        network = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    checkpoint.save(network.cpu(), processor, folder)
    del network
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


class Watch:
    """The memory of the first GPU, read ten times a second until `stop`."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            used = torch.cuda.device_memory_used(0) if DEVICE == "cuda" else 0
            self.seen.append((time.time(), used))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def peaks(self, step: Step) -> dict[str, float]:
        """The most memory in every phase of a step, in bytes."""
        end, found = step.time, {}
        for phase in reversed(PHASES):
            begin = end - (step.seconds[phase] or 0.0)
            found[phase] = max((used for at, used in self.seen if begin <= at <= end), default=0)
            end = begin
        return found


def run(root: Path, name: str, variant: Variant) -> tuple[Step, dict[str, float]]:
    """The last step of a run, and the peaks of its memory."""
    folder = root / name.replace(" ", "-")
    folder.mkdir()
    model = root / variant.model
    recipe = RECIPE.format(root=root, model=model, trainable=variant.trainable)
    (folder / "recipe.yaml").write_text(recipe)
    environment = misbehaving(folder / "site")
    if variant.without:
        (folder / "site" / "sitecustomize.py").write_text(WITHOUT[variant.without])
    options = {**OPTIONS, **variant.options}.items()
    sets = [word for name, value in options for word in ("--set", f"openrlhf.{name}={value}")]
    watch = Watch()
    done = subprocess.run(
        [COMMAND, "train", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "out"),
         "--device", DEVICE, *sets],
        env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    watch.stop()
    if done.returncode:
        raise SystemExit(f"{name} failed: {folder / 'out/run.log'}")
    last = steps(Chain(folder, {}), "out")[-1]
    return last, watch.peaks(last)


def told(step: Step, peaks: dict[str, float]) -> str:
    phases = ", ".join(
        f"{phase} {step.seconds[phase] or 0:.2f} s {peaks[phase] / 1e9:.1f} GB" for phase in PHASES
    )
    sent = f"{step.synced['tensors']:.0f} tensors, {(step.synced['bytes'] or 0) / 1e6:.1f} MB"
    return f"step {step.seconds['total']:.2f} s: {phases}; sync of {sent}"


def main() -> None:
    if DEVICE == "cpu" and not TINY:
        raise SystemExit(
            "no GPU: `python tests/bench/gpu.py --tiny` tries this program without one"
        )
    print(torch.cuda.get_device_name(0) if DEVICE == "cuda" else "no GPU, tiny model", flush=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for model, layers in MODELS.items():
            write_model(root / model, layers)
        write_large_films(root, 8 * STEPS)
        found = {}
        for variant, how in VARIANTS.items():
            found[variant] = run(root, variant, how)
            print(f"{variant:<22} {told(*found[variant])}", flush=True)
    for variant, how in VARIANTS.items():
        against = "as it is" if how.model == "whole" else "projector of a quarter"
        if variant == against:
            continue
        (step, peaks), (other, others) = found[variant], found[against]
        times = ", ".join(
            f"{phase} {(step.seconds[phase] or 0) / (other.seconds[phase] or 1e-9):.2f}"
            for phase in ("total", *PHASES)
        )
        more = (max(peaks.values()) - max(others.values())) / 1e9
        sent = (step.synced["bytes"] or 0) / (other.synced["bytes"] or 1)
        print(f"{variant} / {against}: {times} times the seconds; {more:+.1f} GB at the peak; "
              f"{sent:.0f} times the bytes")  # fmt: skip


if __name__ == "__main__":
    main()
