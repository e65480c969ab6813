"""CIDEr: how many of the reference's telling n-grams a report has, weighted by their rarity."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import exp, log, sqrt
from pathlib import Path

from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import KINDS
from reward_sdk.registry import reward
from reward_sdk.rewards.wording import WordingReward
from reward_sdk.text import NORMALISE, Normalise, ngrams

_SIGMA = 6.0  # borrowed: pycocoevalcap; words of difference in length that a report may have
_FIELDS = ("report", "reference")


class Cider:
    """CIDEr-D (Vedantam et al., 2015, arXiv 1411.5726), as pycocoevalcap 1.2 computes it.

    The mean over n = 1 to 4 of a clipped cosine of tf-idf vectors of n-grams, times a Gaussian of
    the difference in length, times 10; words are not stemmed.

    Args:
        documents: tokens of each report of the corpus that says how common an n-gram is. A single
            one makes every n-gram worthless, and every score 0.
    """

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        frequency: Counter[tuple[str, ...]] = Counter()
        for document in documents:
            for n in range(1, 5):
                frequency.update(ngrams(document, n).keys())
        self._rarest = log(len(documents))
        # An n-gram that one document has weighs as much as one that none has. Most are of this
        # kind, so they are left out.
        self._weight = {
            gram: self._rarest - log(count) for gram, count in frequency.items() if count > 1
        }

    def __call__(self, response: Sequence[str], reference: Sequence[str]) -> float:
        """CIDEr-D of two token sequences.

        Returns:
            A value in [0, 10]. Equal texts score 10 from four words on, if each order has an n-gram
            that not every document has; 10 if both are empty, where pycocoevalcap gives 0.
        """
        if not response or not reference:
            return 10.0 * (not response and not reference)
        cosines = 0.0
        for n in range(1, 5):
            a, b = self._vector(response, n), self._vector(reference, n)
            norm = sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
            if norm:
                common = (min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b)
                cosines += sum(common) / norm
        difference = len(response) - len(reference)
        return min(2.5 * cosines * exp(-(difference**2) / (2 * _SIGMA**2)), 10.0)  # rounding

    def _vector(self, words: Sequence[str], n: int) -> dict[tuple[str, ...], float]:
        """n-gram -> its count times its weight."""
        return {
            gram: count * self._weight.get(gram, self._rarest)
            for gram, count in ngrams(words, n).items()
        }


def read_reports(path: str) -> list[str]:
    """The reports of a file, two or more, none of them blank.

    In a file that ends in .jsonl, the `report` or `reference` of every line that has one, so that a
    studies file will do; in any other, every line.

    Raises:
        ConfigError: the file cannot be read or holds fewer than two reports, or a line of a .jsonl
            file is no object or its report no text; names the file, and the line where there is
            one.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # reports may hold U+2028
    except OSError as error:
        raise ConfigError(f"cannot read corpus {path}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or a path that cannot be one
        raise ConfigError(f"corpus {path} is not UTF-8 text: {error}") from None
    if path.endswith(".jsonl"):
        lines = [
            _report(line, f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    reports = [line for line in lines if line.strip()]
    if not reports:
        raise ConfigError(
            f"corpus {path} holds no report: it needs JSON objects with `report` or `reference`, "
            "one a line, if its name ends in .jsonl, else one report a line"
        )
    if len(reports) < 2:
        raise ConfigError(f"corpus {path} holds one report: rarity needs two at the least")
    return reports


def _report(line: str, place: str) -> str:
    """The report of a line of JSON, "" if it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: not a JSON object with `report` or `reference`")
    field = next((field for field in _FIELDS if row.get(field) is not None), None)
    if field is None:
        return ""
    if not isinstance(row[field], str):
        kind = KINDS[type(row[field])]
        raise ConfigError(f"{place}: {field!r} must be a text or null, not {kind}")
    return row[field]


@reward("cider")
def cider(corpus: str, normalise: Normalise = "iu") -> WordingReward:
    """A tenth of CIDEr-D with the reference, in [0, 1] so that weights compare with other rewards.

    Args:
        corpus: file of reports that say how common each n-gram is, best the training references;
            see `read_reports`. Read once, when the reward is built.
        normalise: rule that cuts texts into tokens, a key of `reward_sdk.text.NORMALISE`.

    Raises:
        ConfigError: the file cannot be read, or holds fewer than two reports.
    """
    score = Cider([NORMALISE[normalise](report) for report in read_reports(corpus)])
    return WordingReward("cider", lambda a, b: score(a, b) / 10, normalise)
