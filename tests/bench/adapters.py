"""What an adapter adds to a reward set: 64 samples through each stack's way, against the same set
called directly. Run it with `make bench-adapters`.

Processor time of the whole process. The texts are IU-XRay FINDINGS in groups of 8 with one
reference, new to both sides in every round; the set is stage 1's, every reward counting. Stacks
that hand over a batch are compared with one call for 64 samples; those that hand over one sample,
with 64 calls for one. ms-swift shares TRL's code, verifiers and NeMo Gym share verl's asynchronous.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from iu_reports import iu_findings

from reward_sdk.adapters.openrlhf import make_reward_func
from reward_sdk.adapters.trl import make_reward_funcs
from reward_sdk.adapters.verl import compute_score, compute_score_sync
from reward_sdk.engine import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

SET = {"rouge_l": {"weight": 0.45}, "bleu": {"weight": 0.45}, "findings_f1": {"weight": 0.3},
       "format": {"weight": 0.1}}  # fmt: skip
BATCH, GROUP, ROUNDS = 64, 8, 40

Rows = list[tuple[str, str]]  # response, reference


def seconds(call: Callable[[Rows], object], rows: Rows) -> float:
    began = time.process_time()
    call(rows)
    return time.process_time() - began


def pair(
    baseline: Callable[[Rows], object], way: Callable[[Rows], object], rows: Rows, swap: bool
) -> tuple[float, float]:
    """Seconds of both for the same rows; each has a set of its own, and goes first in turn."""
    if swap:
        after, before = seconds(way, rows), seconds(baseline, rows)
        return before, after
    return seconds(baseline, rows), seconds(way, rows)


def main() -> None:
    reports = list(iu_findings().values())
    draw = random.Random(0)

    def rollout() -> Rows:
        references = draw.sample(reports, BATCH // GROUP)
        return [
            (wrap_report(f"{report} {draw.random():.6f}"), reference)
            for reference in references
            for report in draw.sample(reports, GROUP)
        ]

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "rewards.yaml"))
        Path(file).write_text(json.dumps({"rewards": SET}))
        direct = RewardSet.from_file(file)
        args = SimpleNamespace(
            reward_weights=None, remove_unused_columns=False, steps_per_generation=1,
            num_iterations=1, gradient_accumulation_steps=1,
        )  # fmt: skip
        funcs = make_reward_funcs(file, args)  # type: ignore[arg-type]
        reward_func = make_reward_func(file)
        state = SimpleNamespace(global_step=0)

        def batch(rows: Rows) -> None:
            direct.score([Sample(response, reference) for response, reference in rows])

        def singly(rows: Rows) -> None:
            for response, reference in rows:
                direct.score([Sample(response, reference)])

        def trl(rows: Rows) -> None:
            completions = [[{"role": "assistant", "content": response}] for response, _ in rows]
            references = [reference for _, reference in rows]
            for func in funcs:
                func(completions=completions, reference=references, trainer_state=state)

        def verl(rows: Rows) -> None:
            async def all_of_them() -> None:
                await asyncio.gather(
                    *(compute_score("", text, ref, {}, rewards=file) for text, ref in rows)
                )

            asyncio.run(all_of_them())

        def verl_sync(rows: Rows) -> None:
            for response, reference in rows:
                compute_score_sync("", response, reference, {}, rewards=file)

        def openrlhf(rows: Rows) -> None:
            for response, reference in rows:
                label = json.dumps({"report": reference})
                reward_func([f"Describe. {response}</s>"], ["Describe."], [label])

        ways = {
            "TRL, ms-swift": (trl, batch),
            "verl, verifiers, NeMo Gym (asynchronous)": (verl, singly),
            "the same, against one batch": (verl, batch),
            "verl (synchronous)": (verl_sync, singly),
            "OpenRLHF, file": (openrlhf, singly),
        }
        print(f"{'':42} direct   adapter   over (median of {ROUNDS} pairs)")
        for name, (way, baseline) in ways.items():
            way(rollout())
            pairs = [pair(baseline, way, rollout(), i % 2) for i in range(ROUNDS)]
            plain, adapted = (statistics.median(p[i] for p in pairs) / BATCH * 1e6 for i in (0, 1))
            over = statistics.median(adapted / plain for plain, adapted in pairs) - 1
            print(f"{name:42} {plain:4.0f} µs  {adapted:4.0f} µs   {100 * over:+.1f} %")


if __name__ == "__main__":
    main()
