"""How long a run takes from its command to its first policy step, against another revision of this
repository: `make bench-startup`, or `make bench-startup BASE=REVISION`.

A tiny model, two policy steps, no GPU. "First" is the first start on a machine, where nothing that
was compiled or looked up lies in a cache; "later" is the better of two more starts. Both trees run
by turns in one environment, this one's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.hostrun import RECIPE, write_films
from support.serving import misbehaving

from valor_plugin.demo.model import Shape, write

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; from valor_plugin.cli import main; sys.exit(main())"
SHAPE = Shape(image=32, patch=8, tower=64, tower_layers=2, language=64, language_layers=2, heads=2,
              key_value_heads=2, vocabulary=120)  # fmt: skip
CACHES = ("XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT")
LATER = 2


def start(tree: Path, folder: Path, caches: Path) -> tuple[float, float]:
    """Seconds from the command to its first step, and to its end."""
    paths = [str(tree), misbehaving(folder / "site")["PYTHONPATH"]]
    environment = {name: str(caches / name.lower()) for name in CACHES}
    out = tempfile.mkdtemp(dir=folder)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", "--recipe", str(folder / "recipe.yaml"),
         "--out", out, "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert process.stdout is not None
    printed, first = [], None
    for line in process.stdout:
        printed.append(line)
        if first is None and line.startswith("step"):
            first = time.perf_counter() - began
    if process.wait() or first is None:
        raise SystemExit("".join(printed))
    return first, time.perf_counter() - began


def main() -> None:
    base = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = subprocess.run(
            ["git", "worktree", "add", "--detach", str(folder / "base"), base],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{base} cannot be checked out here: {done.stderr.strip()}")
        try:
            write(folder / "model", ["No effusion.", "The heart is enlarged."] * 9, SHAPE)
            write_films(folder)
            recipe = RECIPE.format(root=folder, model=folder / "model", trainable="projector")
            (folder / "recipe.yaml").write_text(recipe)
            trees = {base: folder / "base", "this tree": ROOT}
            seconds: dict[str, list[tuple[float, float]]] = {tree: [] for tree in trees}
            for _ in range(1 + LATER):
                for tree, path in trees.items():
                    caches = folder / f"caches-{path.name}"
                    seconds[tree].append(start(path, folder, caches))
                    step, end = seconds[tree][-1]
                    print(
                        f"{tree:<10} first step after {step:5.1f} s, end {end:5.1f} s", flush=True
                    )
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(folder / "base")], cwd=ROOT, check=True
            )
    before, after = seconds.values()
    later = min(before[1:]), min(after[1:])
    for title, was, now in (("first", before[0], after[0]), ("later", *later)):
        print(f"{title} start: {now[0] / was[0]:.2f} of {base}'s {was[0]:.1f} s to the first step, "
              f"{now[1] / was[1]:.2f} of {was[1]:.1f} s in all")  # fmt: skip


if __name__ == "__main__":
    main()
