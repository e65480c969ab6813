"""Metrics of a whole test set, as the literature on report generation gives them: wording of pairs
of reports, and agreement of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan, prod
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from reward_sdk.observations import CHEXPERT_5, Labels, Uncertain
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


@dataclass(frozen=True)
class Agreement:
    """How well labels that were found agree with gold labels, in one observation or in several.

    Attributes:
        positive: number of gold labels that are 1.
        negative: number of gold labels that are 0.
        uncertain: number of gold labels that are -1.
        precision: share of the positives found that are gold's, in [0, 1]; None if none was found.
        recall: share of gold's positives that were found, in [0, 1]; None if gold has none.
        f1: F1 of the positives, in [0, 1]; None if neither side has one.
        interval: 95 % percentile interval of `f1` over the choice of studies, low and high.
        negative_f1: F1 of the labels that are 0, in [0, 1]; None if gold has none.
    """

    positive: int
    negative: int
    uncertain: int
    precision: float | None
    recall: float | None
    f1: float | None
    interval: tuple[float, float] | None
    negative_f1: float | None


def label_agreement(
    found: Sequence[Labels],
    gold: Sequence[Labels],
    observations: Sequence[str],
    uncertain: Uncertain = "positive",
) -> dict[str, Agreement]:
    """Agreement of a labeler with gold labels over a corpus, with intervals from 1,000 draws of its
    studies with replacement, the same ones every time.

    Args:
        found: a labeler's labels of each study, at least one.
        gold: gold labels of the same studies in the same order.
        observations: names of the observations to compare, which all labels have.
        uncertain: what an uncertain label counts as, on both sides: "positive" is f1chexbert's and
            RadEval's rule, "negative" that of LLaVA-Rad's rrg_eval. F1 of the negatives is of
            labels that are 0, whatever this says.

    Returns:
        Observation -> its agreement, in the order given; then under "micro-14" that of all cells of
        the observations (as many as the name says) pooled, under "macro-14" the plain mean over
        those for which a metric is defined; and the same of `CHEXPERT_5` under "micro-5" and
        "macro-5" if all five are among them.

    Raises:
        ValueError: the lists are of unequal length or empty.
    """
    if not gold or len(found) != len(gold):
        raise ValueError("agreement needs at least one study, and both labels of every one")
    ours, theirs = (
        np.array(
            [[_BLANK if row[o] is None else row[o] for o in observations] for row in labels],
            np.int8,
        )
        for labels in (found, gold)
    )
    counted = (1, -1) if uncertain == "positive" else (1,)
    cells = [theirs == 1, theirs == -1]
    for labels in (counted, (0,)):
        a, b = np.isin(ours, labels), np.isin(theirs, labels)
        cells += [a & b, a, b]
    # Studies that are alike in every cell are counted once: the same draws, of far fewer numbers.
    alike, counts = np.unique(np.hstack(cells), axis=0, return_counts=True)
    random = np.random.default_rng(0)
    draws = (random.multinomial(len(gold), counts / len(gold), _BLOCK) for _ in range(_BLOCKS))
    alike = alike.astype(float)
    sums = np.vstack([weights.astype(float) @ alike for weights in chain([counts[None]], draws)])
    sums = sums.reshape(len(sums), len(cells), len(observations))
    found_by = {name: _agreement(sums[:, :, [i]]) for i, name in enumerate(observations)}
    for group in (tuple(observations), CHEXPERT_5):
        if set(group) <= set(observations):
            part = sums[:, :, [observations.index(name) for name in group]]
            found_by[f"micro-{len(group)}"] = _agreement(part.sum(axis=2, keepdims=True))
            found_by[f"macro-{len(group)}"] = _agreement(part)
    return found_by


_BLANK = 2  # in an array of integers
_BLOCK, _BLOCKS = 50, 20  # ours: draws at a time, and how often: memory for 50 of a large corpus


def _agreement(sums: NDArray[np.float64]) -> Agreement:
    """The mean agreement over the last axis.

    Args:
        sums: (corpora, 8, n) numbers of cells, of which the first corpus is the one that was
            measured and the others are drawn from it: gold's positive and uncertain ones; of what
            counts as positive, then of the negatives, those in both, found, and in gold.
    """
    positive, uncertain, both, ours, theirs, both_0, ours_0, theirs_0 = np.moveaxis(sums, 1, 0)
    with np.errstate(invalid="ignore"):
        precision, recall, f1, negative_f1 = (
            _mean(ratio)
            for ratio in (
                both / ours,
                both / theirs,
                2 * both / (ours + theirs),
                2 * both_0 / np.where(theirs_0 > 0, ours_0 + theirs_0, 0),
            )
        )
    interval = None
    if not isnan(f1[0]):
        low, high = np.nanpercentile(f1[1:], (2.5, 97.5))
        interval = float(low), float(high)
    return Agreement(
        positive=int(positive[0].sum()),
        negative=int(theirs_0[0].sum()),
        uncertain=int(uncertain[0].sum()),
        precision=_known(precision[0]),
        recall=_known(recall[0]),
        f1=_known(f1[0]),
        interval=interval,
        negative_f1=_known(negative_f1[0]),
    )


def _known(value: np.float64) -> float | None:
    return None if isnan(value) else float(value)


def _mean(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(ratio)
    return np.where(defined, ratio, 0).sum(axis=1) / defined.sum(axis=1)
