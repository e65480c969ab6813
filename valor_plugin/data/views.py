"""How an X-ray was taken, in the words of many datasets, and which of a study's stands for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward_sdk.images import LATERAL

FRONTAL = ("PA", "AP", "FRONTAL")
"""Views from the front or the back, the better one first."""

_SPELLINGS = {
    "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP", "LAT": "LATERAL", "LLATERAL": "LATERAL",
    "LEFTLATERAL": "LL", "RIGHTLATERAL": "RL", "L": "LATERAL",
    "CHESTPORTABLEAP": "AP", "PORTABLEAP": "AP", "APPORTABLE": "AP",
}  # fmt: skip
_SAYS_NOTHING = frozenset(("", "N/A", "NA", "NAN", "NONE", "UNKNOWN"))


def view_of(*said: object) -> str | None:
    """The view by the first of several fields that says anything, in the spelling of DICOM's View
    Position: "PA", "AP", "LATERAL", "LL", or whatever else stands there, in capitals.

    >>> view_of("", "postero-anterior")
    'PA'
    >>> view_of(None, "antero-posterior oblique")
    'ANTERO-POSTERIOR OBLIQUE'

    Args:
        said: texts of a dataset's fields, the one that is trusted most first. Anything that is no
            text says nothing, nor do a blank one, "N/A", "None" and "UNKNOWN".
    """
    for text in said:
        usual = " ".join(text.upper().split()) if isinstance(text, str) else ""
        if usual not in _SAYS_NOTHING:
            view = _SPELLINGS.get(re.sub(r"[^A-Z]", "", usual), usual)
            return "LATERAL" if "LATERAL" in view else view  # "XTABLE LATERAL", and its like
    return None


def rank(view: str | None) -> int:
    """Place of a view in a study: the frontal ones first, in the order of `FRONTAL`, then unknown
    ones, then oblique and other ones, then lateral ones."""
    if view in FRONTAL:
        return FRONTAL.index(view)
    if view is None:
        return len(FRONTAL)
    return len(FRONTAL) + (2 if view in LATERAL else 1)


def order(views: Sequence[str | None]) -> list[int]:
    """Positions of a study's images in the order of `rank`; those of one rank stay in theirs."""
    return sorted(range(len(views)), key=lambda i: rank(views[i]))
