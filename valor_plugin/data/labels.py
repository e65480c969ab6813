"""What of a study travels with a rollout to its rewards: the label of the host's dataset.

A JSON text, because `datasets` would pad a mapping with nulls. It is the only channel from the data
to a reward beside the image, and also what `reward_sdk.adapters.openrlhf` reads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Label:
    """What of a study the rewards need and the host does not know.

    Attributes:
        id: id of the study.
        report: the radiologist's report without tags, or None.
        view: how the X-ray was taken, as DICOM says it, such as "PA" or "LATERAL"; None where that
            is not known.
        age: the patient's age in years; None where it is not known.
        indication: why the study was made; None where that is not known.
    """

    id: str
    report: str | None
    view: str | None
    age: float | None
    indication: str | None


def encode(label: Label) -> str:
    """The label as a text."""
    return json.dumps(asdict(label))


def decode(text: str) -> Label:
    """The label of a text that `encode` made."""
    return Label(**json.loads(text))
