"""What an adapter adds to a reward set: 64 samples through each stack's way, against the same set
called directly. Run it with `make bench-adapters`.

What is added is measured with rewards that take no time, as many as stage 1 has and under its
names, and set against the time of stage 1's rewards themselves, in whose noise it would be lost.
Processor time of the whole process, the least of many rounds. Texts are IU-XRay FINDINGS in groups
of 8 with one reference. Stacks that hand over a batch are compared with one call for 64 samples;
those that hand over one sample, with 64 calls for one. ms-swift shares TRL's code, verifiers and
NeMo Gym share verl's asynchronous way.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from support.iu_reports import iu_findings

from reward_sdk.adapters.openrlhf import make_reward_func
from reward_sdk.adapters.trl import make_reward_funcs
from reward_sdk.adapters.verl import compute_score, compute_score_sync
from reward_sdk.config import Entry
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Outcome, Sample

SET = {"rouge_l": {"weight": 0.45}, "bleu": {"weight": 0.45}, "findings_f1": {"weight": 0.3},
       "format": {"weight": 0.1}}  # fmt: skip
BATCH, GROUP, ROUNDS = 64, 8, 100

Rows = list[tuple[str, str, str]]  # response, reference, OpenRLHF's label


class Free:
    """Takes no time. One part serves all samples, so that making it costs neither side."""

    bounds, light = (0.0, 1.0), True
    part = Outcome(1.0)

    def __init__(self, name: str) -> None:
        self.name = name
        self.needs = frozenset() if name == "format" else frozenset({"report", "reference"})

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [self.part] * len(samples)


def least(call: Callable[[Rows], object], rollout: Callable[[], Rows]) -> float:
    """Microseconds for a sample."""
    times = []
    for _ in range(ROUNDS):
        rows = rollout()
        began = time.process_time()
        call(rows)
        times.append(time.process_time() - began)
    return min(times) / BATCH * 1e6


def main() -> None:
    reports = list(iu_findings().values())
    draw = random.Random(0)

    def rollout() -> Rows:
        chosen = draw.sample(reports, BATCH // GROUP)
        references = [(reference, json.dumps({"report": reference})) for reference in chosen]
        return [
            (wrap_report(f"{report} {draw.random():.6f}"), reference, label)
            for reference, label in references
            for report in draw.sample(reports, GROUP)
        ]

    real = RewardSet.from_config(SET)
    free = RewardSet([(Free(name), Entry(**keys)) for name, keys in SET.items()])
    args = SimpleNamespace(
        reward_weights=None, remove_unused_columns=False, steps_per_generation=1, num_iterations=1,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    funcs = make_reward_funcs(free, args)  # type: ignore[arg-type]
    reward_func = make_reward_func(free)
    state = SimpleNamespace(global_step=0)

    def batch(rewards: RewardSet) -> Callable[[Rows], object]:
        return lambda rows: rewards.score([Sample(text, reference) for text, reference, _ in rows])

    def singly(rewards: RewardSet) -> Callable[[Rows], object]:
        return lambda rows: [rewards.score([Sample(text, ref)]) for text, ref, _ in rows]

    def trl(rows: Rows) -> None:
        completions = [[{"role": "assistant", "content": response}] for response, *_ in rows]
        references = [reference for _, reference, _ in rows]
        for func in funcs:
            func(completions=completions, reference=references, trainer_state=state)

    def verl(rows: Rows) -> None:
        async def all_of_them() -> None:
            calls = (compute_score("", text, ref, {}, rewards=free) for text, ref, _ in rows)
            await asyncio.gather(*calls)

        asyncio.run(all_of_them())

    def verl_sync(rows: Rows) -> None:
        for response, reference, _ in rows:
            compute_score_sync("", response, reference, {}, rewards=free)

    def openrlhf(rows: Rows) -> None:
        for response, _, label in rows:
            reward_func([f"Read. {response}"], ["Read."], [label])

    print(f"µs a sample, the least of {ROUNDS} rounds       added   stage 1's set   share")
    for name, way, direct in (
        ("TRL, ms-swift", trl, batch),
        ("verl, verifiers, NeMo Gym (asynchronous)", verl, singly),
        ("verl (synchronous)", verl_sync, singly),
        ("OpenRLHF, file", openrlhf, singly),
    ):
        added = least(way, rollout) - least(direct(free), rollout)
        whole = least(direct(real), rollout)
        print(f"{name:42} {added:7.1f} {whole:12.0f} {100 * added / whole:11.1f} %")


if __name__ == "__main__":
    main()
