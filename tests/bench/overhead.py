"""What scoring adds to a policy step: the rewards of one rollout batch, 16 films with 8 reports
each and nothing known of them, over a whole step of the host with the same set. Run it with
`make bench-overhead` after `make demo`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from reward_sdk.reward_set import RewardSet
from reward_sdk.types import ImageRef, Sample
from valor_plugin.demo import pipeline
from valor_plugin.records import read_steps
from valor_plugin.train import train

DEMO, ROOT = Path("runs/demo").resolve(), Path("runs/bench-overhead").resolve()
FILMS, GROUP = 16, 8  # of a rollout batch in the demo's recipes
STEP = 4  # on which the clinical reward counts


def step_seconds(stage: str) -> float:
    """Seconds of the host's fastest policy step of eight: the machine may be busy in between."""
    out = ROOT / stage
    shutil.rmtree(out, ignore_errors=True)
    few = f"openrlhf.data.max_samples={8 * FILMS}"
    train(pipeline.recipe(Path(f"recipes/demo/{stage}.yaml"), DEMO, 0, (few,)), out, "cpu")
    return min(step.seconds["total"] for step in read_steps(out / "steps.jsonl"))


def rollout_batch() -> list[Sample]:
    """Responses of the demo's evaluation, as if eight at a time belonged to one film."""
    rows = (DEMO / "stage1/responses.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(row) for row in rows[: FILMS * GROUP]]
    images = sorted((DEMO / "test").glob("*.png"))
    return [
        Sample(row["response"], row["reference"], ImageRef(str(images[i // GROUP])), row["id"])
        for i, row in enumerate(rows)
    ]


def score_seconds(stage: str) -> float:
    """Seconds for a rollout batch; the least of three, each with a set that knows nothing yet."""
    times = []
    for _ in range(3):
        rewards = RewardSet.from_config(ROOT / stage / "recipe.yaml")
        samples = rollout_batch()
        began = time.perf_counter()
        rewards.score(samples, STEP)
        times.append(time.perf_counter() - began)
    return min(times)


def import_seconds(module: str) -> float:
    """Median wall time of a fresh interpreter that imports the module, over nine starts."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    sdk, numpy = import_seconds("reward_sdk.reward_set"), import_seconds("numpy")
    print(f"reward_sdk.reward_set / numpy, import: {sdk / numpy:.2f} ({sdk:.3f} s, {numpy:.3f} s)")
    for stage in ("stage1", "stage2"):
        step, score = step_seconds(stage), score_seconds(stage)
        ratio = f"{score / step:.3f} ({score:.3f} s, {step:.2f} s)"
        print(f"{stage}: its rewards / a policy step: {ratio}")


if __name__ == "__main__":
    main()
