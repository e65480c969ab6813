"""Does the method learn? The demo's chain with three seeds, and two controls. Run it with
`make bench-learning`: about 80 minutes on two cores, 20 less after `make demo`, its first seed.

For every seed: model, SFT, stage 1 and stage 2 anew, on the same films; every stage sampled once on
the same 512 held-out films. Printed: differences with paired bootstrap intervals (95 %, over films;
training noise shows in the spread over seeds) and whether each goal was met. Controls, for every
seed: stage 1 with other sets. Controls, first seed: stage 2 with raw rewards instead of ranks, and
with the plain cosine of 2p - 1 and polarity.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from valor_plugin.demo import pipeline
from valor_plugin.evaluation.metrics import METRICS, Evaluation, paired_bootstrap
from valor_plugin.train import train

RECIPES = Path("recipes/demo")
DEMO, ROOT = Path("runs/demo").resolve(), Path("runs/bench-learning").resolve()
SEEDS = (0, 1, 2)
GOALS = {  # (before, after, metric): least difference
    ("stage1", "stage2", "micro_f1"): 0.03,
    ("stage1", "stage2", "macro_f1"): 0.03,
    ("stage1", "stage2", "similarity"): 0.02,
    ("sft", "stage1", "rouge_l"): 0.0,
}
STAGE1_SETS = {  # that stage 1 could have instead
    "stage1-wording": "{rouge_l: {weight: 0.45}, bleu: {weight: 0.45}, "
    "findings_f1: {weight: 0.3, every: 4}, format: {weight: 0.1}}",
    "stage1-more-wording": "{rouge_l: {weight: 0.3}, findings_score: {weight: 0.6}, "
    "format: {weight: 0.1}}",
}
MUST_NOT_FALL = {("sft", "stage1", "micro_f1"), ("sft", "stage1", "macro_f1")}
"""Differences whose interval must not lie below 0."""
PLAIN_COSINE = '''
"""Control: the cosine that learning must not use, see reward_sdk.rewards.image_text."""
import numpy as np
from reward_sdk.rewards.image_text import image_text, report_polarity
from reward_sdk.types import Outcome

class PlainCosine:
    name, bounds, needs = "plain_cosine", (-1.0, 1.0), frozenset({"report", "image"})

    def __init__(self, expert: str, calibration: str):
        self._judge = image_text(expert, calibration)

    def __call__(self, samples):
        judge = self._judge
        z = np.stack([row for row, _ in judge._embed([s.image for s in samples])])
        evidence = z * judge._sd + judge._mean
        polarity = report_polarity([s.report for s in samples], judge.findings)
        norms = np.linalg.norm(evidence, axis=1) * np.linalg.norm(polarity, axis=1)
        cosine = (evidence * polarity).sum(1) / np.where(norms > 0, norms, 1)
        return [Outcome(float(np.clip(value, -1, 1))) for value in cosine]
'''


def chain(seed: int) -> Path:
    """Runs the demo's chain with this seed; films and expert are shared with the first seed."""
    root = DEMO if seed == SEEDS[0] else ROOT / f"seed{seed}"
    if root != DEMO:
        root.mkdir(parents=True, exist_ok=True)
        for shared in (*pipeline.STUDIES, "expert.pt", pipeline.CALIBRATION):
            if not (root / shared).exists():
                (root / shared).symlink_to(DEMO / shared)
    pipeline.run(RECIPES, root, "cpu", seed)
    return root


def control(seed: int, source: Path, stage: str, name: str, overrides: tuple[str, ...]) -> Path:
    """A stage of this seed's chain under other settings, evaluated as the stages are."""
    root = ROOT / f"controls{seed}"
    root.mkdir(parents=True, exist_ok=True)
    folders = ("test", "sft", "stage1", "stage1-studies", "stage2-studies")
    for shared in (*folders, "expert.pt", pipeline.CALIBRATION):
        if not (root / shared).exists():
            (root / shared).symlink_to(source / shared)
    if not (root / name / "evaluation.json").exists():
        shutil.rmtree(root / name, ignore_errors=True)
        recipe = pipeline.recipe(RECIPES / f"{stage}.yaml", root, seed, overrides)
        train(recipe, root / name, "cpu")
        pipeline.evaluate(root, name, "cpu")
    return root


def results(root: Path, stage: str) -> Evaluation:
    return Evaluation.from_json((root / stage / "evaluation.json").read_text(encoding="utf-8"))


def compare(root: Path, before: str, after: str) -> list[tuple[str, float, float, float]]:
    first, second = results(root, before), results(root, after)
    return [(metric, *paired_bootstrap(first, second, metric)) for metric in METRICS]


def main() -> int:
    met = True
    for seed in SEEDS:
        root = chain(seed)
        for stage in pipeline.STAGES:
            values = results(root, stage).metrics
            say(f"seed {seed} {stage:12} " + row(values))
        for before, after in (("sft", "stage1"), ("stage1", "stage2")):
            for metric, difference, low, high in compare(root, before, after):
                place, verdict = (before, after, metric), ""
                if place in GOALS:
                    reached = difference >= GOALS[place]
                    verdict = f"goal >= {GOALS[place]}: {'met' if reached else 'MISSED'}"
                    met &= reached
                elif place in MUST_NOT_FALL:
                    verdict = f"goal, no fall: {'met' if high >= 0 else 'MISSED'}"
                    met &= high >= 0
                say(
                    f"seed {seed} {before} -> {after} {metric:12} {difference:+.3f} "
                    f"[{low:+.3f}, {high:+.3f}] {verdict}"
                )
        for name, rewards in STAGE1_SETS.items():
            tell(control(seed, root, "stage1", name, (f"rewards={rewards}",)), "sft", name)
        if (results(root, "stage2").metrics["well_formed"] or 0) < 0.95:
            say(f"seed {seed}: goal well_formed >= .95 MISSED")
            met = False
    plugin = ROOT / "plugin"
    metadata = plugin / "plain_cosine-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plain_cosine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[reward_sdk.rewards]\nplain_cosine = plain_cosine:PlainCosine\n"
    )
    (plugin / "plain_cosine.py").write_text(PLAIN_COSINE)
    sys.path.insert(0, str(plugin))
    import os

    os.environ["PYTHONPATH"] = str(plugin)
    plain = (
        f"rewards={{plain_cosine: {{weight: 0.9, expert: {DEMO}/expert.pt, "
        f"calibration: {DEMO}/{pipeline.CALIBRATION}}}, format: {{weight: 0.1}}}}"
    )
    for name, overrides in {
        "raw-rewards": ("advantage.rank=off", "openrlhf.algo.advantage.estimator=dr_grpo"),
        "plain-cosine": (plain,),
    }.items():
        tell(control(SEEDS[0], DEMO, "stage2", name, overrides), "stage1", name)
    return 0 if met else 1


def tell(root: Path, before: str, name: str) -> None:
    say(f"{root.name} {name:12} " + row(results(root, name).metrics))
    for metric, difference, low, high in compare(root, before, name):
        say(f"{root.name} {before} -> {name} {metric} {difference:+.3f} [{low:+.3f}, {high:+.3f}]")


def say(line: str) -> None:
    print(line, flush=True)


def row(values: dict[str, float | None]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)


if __name__ == "__main__":
    sys.exit(main())
