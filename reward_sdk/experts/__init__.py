"""X-ray -> evidence per finding.

`reward_sdk.experts.torchxrayvision.load_expert` gives the experts that reward sets name. Any other
object of this shape will do in Python: fit its baseline with `fit_baseline`, build the reward with
`reward_sdk.rewards.image_text.ImageText(expert, baseline)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Expert(Protocol):
    """A frozen multi-label classifier of frontal chest X-rays.

    Attributes:
        weights: tells its weights apart from any others; a baseline belongs to one of them.
        findings: names of `OBSERVATIONS`, one per output.
        directions: the weights of its last, linear layer, (len(findings), D).
    """

    weights: str
    findings: tuple[str, ...]

    @property
    def directions(self) -> np.ndarray: ...

    def encode(self, images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
        """Evidence (n, len(findings)) in [-1, 1], 0 at the point of decision, and the features that
        the last layer reads, (n, D); finite. Raises ScoringError for an image it cannot take."""
        ...
