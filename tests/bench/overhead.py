"""What our executor and rewards cost the host: step time with the rewards of stage 1 and stage 2,
against the same run with a constant reward. Run it with `make bench-overhead` after `make demo`.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from valor_plugin.demo import pipeline
from valor_plugin.evaluation.curves import read_scalars

DEMO, ROOT = Path("runs/demo").resolve(), Path("runs/bench-overhead").resolve()
CONSTANT = "rewards={format: {weight: 1.0}}"  # the cheapest reward that there is
COMMON = ("openrlhf.data.max_samples=320",)  # 20 policy steps


def step_seconds(name: str, stage: str, *overrides: str) -> float:
    """Seconds of the fastest policy step: what other processes take is no part of it."""
    out = ROOT / name
    shutil.rmtree(out, ignore_errors=True)
    recipe = Path(f"recipes/demo/{stage}.yaml")
    pipeline.train(recipe, DEMO, out, "cpu", 0, (*COMMON, *overrides))
    times = [seconds for _, seconds in read_scalars(out / "tensorboard")["train/timing/step_total"]]
    return min(times[2:])


def import_seconds(module: str) -> float:
    """Median wall time of a fresh interpreter that imports the module, over nine starts."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    sdk, numpy = import_seconds("reward_sdk.engine"), import_seconds("numpy")
    print(f"reward_sdk.engine / numpy, import: {sdk / numpy:.2f} ({sdk:.3f} s, {numpy:.3f} s)")
    for stage in ("stage1", "stage2"):
        constant = step_seconds(f"{stage}-constant", stage, CONSTANT)
        rewarded = step_seconds(f"{stage}-rewards", stage)
        print(
            f"{stage}: step with its rewards / with a constant reward: {rewarded / constant:.2f} "
            f"({rewarded:.2f} s, {constant:.2f} s)"
        )


if __name__ == "__main__":
    main()
