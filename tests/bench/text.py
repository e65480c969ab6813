"""How fast the wording rewards are on one core, and how fast the same metrics are in the plain use
of their libraries: rouge-score, sacrebleu and nltk. Run it with `make bench-text`.

A pair is a FINDINGS text of IU-XRay and another one as its reference, all pairs different.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import sacrebleu
from nltk.translate.gleu_score import sentence_gleu
from rouge_score.rouge_scorer import RougeScorer
from support.iu_reports import iu_findings

from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.cider import Cider
from reward_sdk.rewards.wording import WordingReward
from reward_sdk.text import tokens, wrap_report
from reward_sdk.types import Sample


def pairs_per_second(score: Callable[[], object], pairs: int) -> float:
    """The best of five runs, in processor time, so that a busy machine counts for little."""
    times = []
    for _ in range(5):
        began = time.process_time()
        score()
        times.append(time.process_time() - began)
    return pairs / min(times)


def main() -> None:
    reports = list(iu_findings().values())
    references = random.Random(0).sample(reports, len(reports))
    pairs = list(zip(reports, references, strict=True))
    samples = [Sample(wrap_report(report), reference) for report, reference in pairs]
    rouge = RougeScorer(["rougeL"])

    def plain_rouge_l() -> None:
        for report, reference in pairs:
            rouge.score(reference, report)

    def plain_bleu() -> None:
        for report, reference in pairs:
            sacrebleu.sentence_bleu(report.lower(), [reference.lower()])

    def plain_both() -> None:
        plain_rouge_l()
        plain_bleu()

    def plain_gleu() -> None:
        for report, reference in pairs:
            sentence_gleu([reference.lower().split()], report.lower().split())

    cider = Cider([tokens(reference) for reference in references])
    plain = {"rouge_l": plain_rouge_l, "bleu": plain_bleu, "gleu": plain_gleu}
    print(f"{len(pairs)} pairs of IU-XRay FINDINGS; pairs/s, and over plain library use")
    for names in (["rouge_l", "bleu"], ["rouge_l"], ["bleu"], ["gleu"], ["meteor"]):
        rewards = RewardSet.from_config({name: {} for name in names})
        ours = pairs_per_second(lambda rewards=rewards: rewards.score(samples), len(pairs))
        line = f"{' + '.join(names)}: {ours:,.0f}"
        if other := plain_both if len(names) > 1 else plain.get(names[0]):
            theirs = pairs_per_second(other, len(pairs))
            line += f", {ours / theirs:.1f} times ({theirs:,.0f})"
        print(line)
    reward = WordingReward("cider", lambda a, b: cider(a, b) / 10)
    print(f"cider: {pairs_per_second(lambda: reward(samples), len(pairs)):,.0f}")


if __name__ == "__main__":
    main()
