"""What converting LLaVA-Med costs: a synthetic checkpoint of 2 GB in four shards, against copying
the same files with `cp`. Run it with `make bench-actor`.

Peak memory is the process's own (RssAnon); pages of mapped files do not count, since the kernel
takes them back at will. Start-up, measured on a checkpoint of next to nothing, is told apart.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPE = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 23,
         "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 300}  # fmt: skip
SHARDS = 4


def write_checkpoint(folder: Path, layers: int) -> int:
    """A checkpoint of random language weights with a tiny tower; its size in bytes."""
    folder.mkdir()
    sys.path.insert(0, str(Path(__file__).parents[1] / "valor_plugin"))
    import sentencepiece as spm
    from test_convert import LANGUAGE, VISION, tower_tensors

    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the heart is enlarged", "no pleural effusion"] * 9),
        model_prefix=str(folder / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    size = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    shape = {**SHAPE, "vocab_size": size, "num_hidden_layers": layers}
    h, m, n = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys = h * shape["num_key_value_heads"] // shape["num_attention_heads"]
    names = {"model.embed_tokens.weight": (size, h), "lm_head.weight": (size, h),
             "model.norm.weight": (h,), "model.mm_projector.0.weight": (h, 16),
             "model.mm_projector.0.bias": (h,), "model.mm_projector.2.weight": (h, h),
             "model.mm_projector.2.bias": (h,)}  # fmt: skip
    for i in range(n):
        layer = f"model.layers.{i}"
        names |= {
            f"{layer}.input_layernorm.weight": (h,), f"{layer}.self_attn.q_proj.weight": (h, h),
            f"{layer}.post_attention_layernorm.weight": (h,),
            f"{layer}.self_attn.k_proj.weight": (keys, h),
            f"{layer}.self_attn.v_proj.weight": (keys, h),
            f"{layer}.self_attn.o_proj.weight": (h, h), f"{layer}.mlp.gate_proj.weight": (m, h),
            f"{layer}.mlp.up_proj.weight": (m, h), f"{layer}.mlp.down_proj.weight": (h, m),
        }  # fmt: skip
    listed = sorted(names)
    index = {}
    for i in range(SHARDS):
        part = listed[i::SHARDS]
        content = {name: torch.randn(names[name]).bfloat16() for name in part}
        if i == 0:
            tower = {f"model.vision_tower.vision_tower.{k}": t.bfloat16() for k, t in
                     tower_tensors(0).items()}  # fmt: skip
            content |= tower
        file = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(content, folder / file)
        index |= dict.fromkeys(content, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    clip = folder / "clip"
    clip.mkdir()
    (clip / "config.json").write_text(json.dumps(VISION))
    config = {"model_type": "llava_mistral", **LANGUAGE, **shape, "mm_vision_tower": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most anonymous memory."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - began, most


def main() -> None:
    command = str(Path(sys.executable).with_name("openrlhf"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "tiny", 1)
        size = write_checkpoint(folder / "source", SHAPE["num_hidden_layers"])
        largest = max(path.stat().st_size for path in (folder / "source").glob("*.safetensors"))

        def least(program: list[str], source: str) -> tuple[float, int]:
            runs = []
            for _ in range(3):
                runs.append(timed([*program, str(folder / source), str(folder / "out")]))
                shutil.rmtree(folder / "out")
            return min(seconds for seconds, _ in runs), min(memory for _, memory in runs)

        copied, _ = least(["cp", "-r"], "source")
        started, idle = least([command, "convert"], "tiny")
        converted, most = least([command, "convert"], "source")
    work = converted - started
    print(f"checkpoint of {size / 1e9:.2f} GB, largest shard {largest / 1e6:.0f} MB")
    print(f"start-up {started:.1f} s, conversion {work:.1f} s: {size / 1e6 / work:.0f} MB/s, "
          f"{work / copied:.1f} times `cp` ({copied:.2f} s)")  # fmt: skip
    print(f"peak memory {most / 1e6:.0f} MB, {(most - idle) / largest:.2f} times the largest shard "
          f"above the {idle / 1e6:.0f} MB of the tiny one")  # fmt: skip


if __name__ == "__main__":
    main()
