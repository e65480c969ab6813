"""Rewards for the wording of a report, measured against the reference: ROUGE-L and BLEU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

from sacrebleu.metrics.bleu import BLEU

from reward_sdk.reward import reward
from reward_sdk.text import tokens
from reward_sdk.types import Part, Sample

_BETA_SQUARED = 1.2**2  # borrowed: pycocoevalcap, weighs recall above precision


def rouge_l_score(response: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L of two token sequences, as pycocoevalcap computes it.

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference.

    Returns:
        F-measure with beta 1.2 of the longest common subsequence, in [0, 1]; 1 if both are empty.

    >>> rouge_l_score(["no", "effusion"], ["no", "effusion"])
    1.0
    """
    common = _lcs_length(response, reference)
    if common == 0:
        return float(not response and not reference)
    precision, recall = common / len(response), common / len(reference)
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def _lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; bit-parallel (Hyyrö, 2004), one step a token.

    Bit i of `row` is 0 where token i of `a` makes the subsequence with the tokens so far longer.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def bleu_score(response: Sequence[str], reference: Sequence[str], max_n: int = 4) -> float:
    """Sentence BLEU of two token sequences, by sacrebleu.

    An n-gram order without a match gets 1/2, 1/4, ... of a match ("exp" smoothing of sacrebleu, as
    in NIST's mteval), and orders longer than the response are left out, so that a short report
    can be perfect. This is not pycocoevalcap's per-sentence BLEU (r = .995 on IU-XRay pairs).

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference.
        max_n: longest n-gram, at least 1.

    Returns:
        BLEU in [0, 1]; 1 if both are empty.
    """
    if not response or not reference:
        return float(not response and not reference)
    score = _bleu(max_n).sentence_score(" ".join(response), [" ".join(reference)]).score
    return min(score / 100, 1.0)  # rounding puts equal texts slightly above 100


@lru_cache
def _bleu(max_n: int) -> BLEU:
    return BLEU(tokenize="none", smooth_method="exp", max_ngram_order=max_n, effective_order=True)


class WordingReward:
    """A score of two token sequences as a reward.

    Args:
        name: the reward's name.
        score: (tokens of the response, tokens of the reference) -> value in [0, 1].
    """

    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})

    def __init__(self, name: str, score: Callable[[Sequence[str], Sequence[str]], float]) -> None:
        self.name = name
        self._score = score

    def __call__(self, samples: Sequence[Sample]) -> list[Part]:
        return [
            Part(self._score(tokens(sample.report or ""), tokens(sample.reference or "")))
            for sample in samples
        ]


@reward("rouge_l")
def rouge_l() -> WordingReward:
    """ROUGE-L with the reference, in [0, 1]."""
    return WordingReward("rouge_l", rouge_l_score)


@reward("bleu")
def bleu(max_n: Literal[1, 2, 3, 4] = 4) -> WordingReward:
    """Smoothed sentence BLEU with the reference, in [0, 1].

    Args:
        max_n: longest n-gram.
    """
    return WordingReward("bleu", partial(bleu_score, max_n=max_n))
