"""Rewards for the wording of a report, measured against the reference: ROUGE-L, BLEU, GLEU, METEOR.

Each is a function of two token sequences; which tokens a text has is the setting `normalise`, see
`reward_sdk.text.NORMALISE`. For all of them two empty texts score 1 and one empty text scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU

from reward_sdk.errors import ConfigError
from reward_sdk.registry import reward
from reward_sdk.text import NORMALISE, Normalise, ngrams
from reward_sdk.types import Outcome, Sample

Smoothing = Literal["exp", "floor", "none"]

_BETA_SQUARED = 1.2**2  # borrowed: pycocoevalcap, weighs recall above precision


def rouge_l_score(response: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L of two token sequences, as pycocoevalcap computes it.

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference report.

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
    """Length of the longest common subsequence; bit-parallel (Hyyrö, 2004), one step a token,
    so that its quadratic time is 0.4 s for two texts of 100,000 tokens.

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


def bleu_score(
    response: Sequence[str],
    reference: Sequence[str],
    max_n: int = 4,
    smoothing: Smoothing = "exp",  # borrowed: sacrebleu
) -> float:
    """Sentence BLEU of two token sequences, by sacrebleu.

    Orders longer than the response are left out, so that a short report can be perfect. An order
    without a match would make the whole score 0; the smoothing, under sacrebleu's name, decides:

    * exp: it gets 1/2, 1/4, ... of a match, as in NIST's mteval.
    * floor: it gets a tenth of a match.
    * none: the score is 0. From four words on this is pycocoevalcap's per-sentence BLEU but for
      1e-4 or so, which it gives such a report ("exp" differs more: r = .995 on IU-XRay pairs).

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference report.
        max_n: length of the longest n-grams, at least 1.
        smoothing: what an order without a match counts: "exp" 1/2, 1/4, ... of a match, "floor" a
            tenth of one, and "none" nothing, so that the score is 0. A report without a common word
            scores 0 under each.

    Returns:
        BLEU in [0, 1]; 1 if both are empty.
    """
    if not response or not reference:
        return float(not response and not reference)
    metric = _bleu(max_n, smoothing)
    score = metric.sentence_score(" ".join(response), [" ".join(reference)]).score
    return min(score / 100, 1.0)  # rounding puts equal texts slightly above 100


@lru_cache
def _bleu(max_n: int, smoothing: Smoothing) -> BLEU:
    return BLEU(
        tokenize="none", smooth_method=smoothing, max_ngram_order=max_n, effective_order=True
    )


def gleu_counts(response: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
    """What GLEU divides: n-grams in common, and n-grams of the longer side, orders 1 to 4."""
    orders = [(ngrams(response, n), ngrams(reference, n)) for n in range(1, 5)]
    common = sum(min(count, b[gram]) for a, b in orders for gram, count in a.items() if gram in b)
    return common, max(sum(a.total() for a, _ in orders), sum(b.total() for _, b in orders))


def gleu_score(response: Sequence[str], reference: Sequence[str]) -> float:
    """Google BLEU of two token sequences (Wu et al., 2016, arXiv 1609.08144).

    The lower of precision and recall over all n-grams of orders 1 to 4 together. Made for single
    sentences, it needs no smoothing; it is symmetric.

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference report.

    Returns:
        GLEU in [0, 1]; 1 if both are empty.

    >>> gleu_score(["no", "effusion"], ["no", "edema"])  # "no", of no, effusion, no effusion
    0.3333333333333333
    """
    common, size = gleu_counts(response, reference)
    return common / size if size else 1.0


def meteor_score(response: Sequence[str], reference: Sequence[str]) -> float:
    """METEOR of two token sequences, exact and stem matches only, by nltk.

    **Not the METEOR 1.5 number** (r = .95 on IU-XRay pairs): it has that version's parameters for
    English (alpha .85, beta .2, gamma .6), but neither WordNet synonyms nor paraphrases nor word
    weights. Equal texts of n words earn 1 - .6 n^-.2, which is .70 for 30 words, because one
    unbroken run is a fragment too.

    Args:
        response: tokens of the judged report.
        reference: tokens of the reference report.

    Returns:
        METEOR in [0, 1]; 1 if both are empty.

    Raises:
        ConfigError: nltk is not installed.
    """
    if not response or not reference:
        return float(not response and not reference)
    return _meteor()(reference, response)


@cache
def _meteor() -> Callable[[Sequence[str], Sequence[str]], float]:
    """nltk's METEOR of (reference, response), with a vocabulary without synonyms for WordNet."""
    try:
        from nltk.stem.porter import PorterStemmer
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError:
        raise ConfigError("METEOR needs nltk: pip install 'valor-rrg[text]'") from None
    # The case of words is the normalisation's affair.
    stem = partial(PorterStemmer().stem, to_lowercase=False)
    stemmer: Any = SimpleNamespace(stem=lru_cache(1 << 16)(stem))  # ours: more than a vocabulary
    no_synonyms: Any = SimpleNamespace(synsets=lambda word: ())
    return partial(
        single_meteor_score,
        preprocess=str,
        stemmer=stemmer,
        wordnet=no_synonyms,
        alpha=0.85,  # borrowed: METEOR 1.5, English
        beta=0.2,  # borrowed: METEOR 1.5, English
        gamma=0.6,  # borrowed: METEOR 1.5, English
    )


class WordingReward:
    """A score of two token sequences as a reward.

    Args:
        name: name of the reward, under which it is logged.
        score: (tokens of the response, tokens of the reference) -> value in [0, 1].
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.
    """

    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})
    light = True

    def __init__(
        self,
        name: str,
        score: Callable[[Sequence[str], Sequence[str]], float],
        normalise: Normalise = "iu",
    ) -> None:
        self.name = name
        self._score = score
        self._tokens = NORMALISE[normalise]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Outcome(self._value(s.report or "", s.reference or "")) for s in samples]

    def _value(self, report: str, reference: str) -> float:
        ours, theirs = self._tokens(report), self._tokens(reference)
        if not ours and not theirs:  # of no token is known that they agree
            return float(report.split() == reference.split())
        return self._score(ours, theirs)


@reward("rouge_l")
def rouge_l(normalise: Normalise = "iu") -> WordingReward:
    """ROUGE-L with the reference, in [0, 1].

    Args:
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.
    """
    return WordingReward("rouge_l", rouge_l_score, normalise)


@reward("bleu")
def bleu(
    max_n: Literal[1, 2, 3, 4] = 4,
    smoothing: Smoothing = "exp",  # borrowed: sacrebleu
    normalise: Normalise = "iu",
) -> WordingReward:
    """Smoothed sentence BLEU with the reference, in [0, 1].

    Args:
        max_n: length of the longest n-grams, 1 to 4.
        smoothing: what an order without a match counts: "exp" 1/2, 1/4, ... of a match, "floor" a
            tenth of one, and "none" nothing, so that the score is 0.
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.
    """
    score = partial(bleu_score, max_n=max_n, smoothing=smoothing)
    return WordingReward("bleu", score, normalise)


@reward("gleu")
def gleu(normalise: Normalise = "iu") -> WordingReward:
    """Google BLEU with the reference, in [0, 1].

    Args:
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.
    """
    return WordingReward("gleu", gleu_score, normalise)


@reward("meteor")
def meteor(normalise: Normalise = "iu") -> WordingReward:
    """METEOR with the reference by exact and stem matches, in [0, 1]; not the METEOR 1.5 number.

    Args:
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.

    Raises:
        ConfigError: nltk is not installed.
    """
    _meteor()
    return WordingReward("meteor", meteor_score, normalise)
