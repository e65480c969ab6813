"""Wording metrics of a whole test set, as the literature on report generation gives them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from statistics import fmean

from sacrebleu.metrics.bleu import BLEU

from reward_sdk.rewards.cider import Cider
from reward_sdk.rewards.wording import gleu_counts, meteor_score, rouge_l_score
from reward_sdk.text import NORMALISE, Normalise, ngrams


def corpus_metrics(
    reports: Sequence[str],
    references: Sequence[str],
    normalise: Normalise = "iu",
    meteor: bool = True,
) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L, GLEU, CIDEr and METEOR of a corpus of pairs.

    * bleu_1 to bleu_4: corpus BLEU by sacrebleu, without smoothing, equal to pycocoevalcap's.
    * rouge_l: mean of the pairs, beta 1.2, equal to pycocoevalcap's.
    * gleu: n-grams in common over those of each pair's longer side, summed over the pairs first.
    * cider: mean of the pairs in [0, 10], with the document frequencies of these references, equal
      to pycocoevalcap's; 0 for one pair.
    * meteor: mean of the pairs; the variant of `meteor_score`, not the METEOR 1.5 number.

    Args:
        reports: generated reports without tags, at least one; an empty text where there is none.
        references: reference reports without tags, one for each of `reports`, in the same order.
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.
        meteor: whether to compute METEOR, which needs nltk.

    Raises:
        ConfigError: METEOR is asked for, and nltk is not installed.
        ValueError: the lists are of unequal length or empty.
    """
    if not reports:
        raise ValueError("corpus metrics need at least one pair of reports")
    pairs = [
        (NORMALISE[normalise](report), NORMALISE[normalise](reference))
        for report, reference in zip(reports, references, strict=True)
    ]
    counts = [sum(column) for column in zip(*(bleu_counts(*pair) for pair in pairs), strict=True)]
    common, size = map(sum, zip(*(gleu_counts(*pair) for pair in pairs), strict=True))
    cider = Cider([reference for _, reference in pairs])
    metrics = {f"bleu_{n}": corpus_bleu(counts, n) for n in range(1, 5)}
    metrics["rouge_l"] = fmean(rouge_l_score(*pair) for pair in pairs)
    metrics["gleu"] = common / size if size else 1.0
    metrics["cider"] = fmean(cider(*pair) for pair in pairs)
    if meteor:
        metrics["meteor"] = fmean(meteor_score(*pair) for pair in pairs)
    return metrics


def bleu_counts(report: Sequence[str], reference: Sequence[str]) -> tuple[int, ...]:
    """What corpus BLEU sums over its pairs: common n-grams of orders 1 to 4, n-grams of the report
    of orders 1 to 4, words of the report, words of the reference; ten numbers."""
    orders = [(ngrams(report, n), ngrams(reference, n)) for n in range(1, 5)]
    common = ((ours & theirs).total() for ours, theirs in orders)
    return *common, *(ours.total() for ours, _ in orders), len(report), len(reference)


def corpus_bleu(counts: Sequence[int], n: int = 4) -> float:
    """BLEU-n of a corpus, by sacrebleu, without smoothing, in [0, 1].

    Args:
        counts: sum of the `bleu_counts` of the corpus' pairs, ten numbers; a pair may count several
            times.
        n: length of the longest n-grams, 1 to 4.
    """
    common, grams, (words, reference_words) = counts[:4], counts[4:8], counts[8:]
    bleu = BLEU.compute_bleu(list(common), list(grams), words, reference_words, "none")
    return bleu.bp * prod(p / 100 for p in bleu.precisions[:n]) ** (1 / n)
