"""The 14 CheXpert observations: the vocabulary that labelers, experts and clinical rewards share.

Always index by name. The order below is that of the CheXbert heads; the CheXpert data set, the
MIMIC-CXR tables and torchxrayvision each use another one.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

FINDINGS = tuple(name for name in OBSERVATIONS if name != "No Finding")
"""All but "No Finding", which is the absence of the others."""

CHEXPERT_5 = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five observations of the CheXpert competition, a usual subset in papers."""

Labels = Mapping[str, int | None]
"""One report's labels: observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned."""

RANK = {None: 0, 0: 1, -1: 2, 1: 3}
"""How strong a label is: of several that a report has of one observation the strongest counts."""

Uncertain = Literal["positive", "negative"]
"""What an uncertain observation counts as."""


def asserted(
    labels: Labels, uncertain: Uncertain = "positive", observations: Iterable[str] = FINDINGS
) -> tuple[str, ...]:
    """The observations that a labelled report asserts.

    Args:
        labels: labels of one report, which have every one of `observations`.
        uncertain: what an uncertain observation counts as. "positive", the U-Ones convention of the
            CheXpert paper, is f1chexbert's mode "rrg".
        observations: names of the observations that count; the result is in their order.

    >>> asserted({**dict.fromkeys(OBSERVATIONS), "Edema": -1, "Cardiomegaly": 1, "Fracture": 0})
    ('Cardiomegaly', 'Edema')
    """
    counted = (1, -1) if uncertain == "positive" else (1,)
    return tuple(name for name in observations if labels[name] in counted)


def label_of(cell: str | float | None) -> int | None:
    """A label as tables have it: "1", "0.0", -1.0, and "" or None for what is not mentioned.

    Raises:
        ValueError: the cell is none of these; it is not repeated.
    """
    text = "" if cell is None else str(cell).strip().removesuffix(".0")
    if text not in ("", "1", "0", "-1"):
        raise ValueError("not 1, 0, -1 or empty")
    return int(text) if text else None


def no_finding(labels: Labels) -> int | None:
    """The label of "No Finding" that follows from the others, as CheXpert's labeler has it: 1 if
    nothing but Support Devices is positive or uncertain, else None.

    >>> no_finding({**dict.fromkeys(OBSERVATIONS), "Edema": 0, "Support Devices": 1})
    1
    """
    found = (name for name in FINDINGS if name != "Support Devices")
    return None if any(labels[name] in (1, -1) for name in found) else 1
