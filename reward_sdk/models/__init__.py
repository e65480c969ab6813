"""What rewards look through: labelers, graph extractors and X-ray experts, each one a function or
an object of the shape below.

* A **labeler** turns reports into the 14 CheXpert observations: `rule_labeler.label_reports`,
  regular expressions, needs no weights; `chexbert.load_chexbert(...)` is that of the literature.
* `rule_findings.read_findings` turns reports into findings with their attributes, by rules.
* An **extractor** turns reports into RadGraph graphs (Jain et al., 2021): `radgraph.load_radgraph`.
* An **expert** turns frontal X-rays into evidence per finding: `xray_expert.load_expert`. For
  another one, fit its calibration with `calibration.fit_calibration` and build the reward with
  `reward_sdk.rewards.image_text.ImageText(expert, calibration)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from reward_sdk.observations import Labels

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Labeler = Callable[[Sequence[str]], Sequence[Labels]]
"""Reports without tags -> one `Labels` each, in order."""


@dataclass(frozen=True, slots=True)
class Entity:
    """An anatomy or an observation that a report names.

    Attributes:
        tokens: the entity's words, separated by blanks.
        label: what the entity is and how certain, such as "Observation::definitely absent" or
            "OBS-DA".
        relations: (type, index of the other entity in the graph) of each relation to another
            entity, such as ("located_at", 1).
    """

    tokens: str
    label: str
    relations: tuple[tuple[str, int], ...] = ()


Graph = tuple[Entity, ...]
"""What an extractor makes of one report without tags."""


class Expert(Protocol):
    """A frozen multi-label classifier of frontal chest X-rays.

    Attributes:
        weights: text that tells the weights apart from any others; a calibration belongs to one of
            them.
        findings: names of the outputs, each one of `OBSERVATIONS`.
        directions: weights of the last, linear layer, (len(findings), D).
    """

    weights: str
    findings: tuple[str, ...]

    @property
    def directions(self) -> np.ndarray: ...

    def prepare(self, image: Image) -> np.ndarray:
        """What `encode` reads of an image: small, so that the image itself can be let go. Called by
        several threads at once. Raises ScoringError for an image that it cannot take."""
        ...

    def encode(self, prepared: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Evidence (n, len(findings)) in [-1, 1], 0 at the point of decision, and the features that
        the last layer reads, (n, D); finite. Raises ScoringError for what is not."""
        ...
