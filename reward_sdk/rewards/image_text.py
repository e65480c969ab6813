"""Does the report say what the X-ray shows? The image-text similarity of VALOR's second stage.

An expert classifier gives evidence per finding for the image, a rule labeler the polarity per
finding of the report. The reward is a cosine between the two, with three corrections, because
each plain form of it pays for texts that do not look at the image:

    z = (2p - 1 - mean) / sd            evidence, standardised over training images
    t = +1 present, -0.2 absent, +0.5 uncertain, 0 not mentioned
    similarity = z . t / (max(|z|, sqrt(F)) * |t|),  a hedge counting as 1 in |t|;  0 if t = 0

over all F findings of the expert, mentioned or not: over the mentioned ones alone, a single safe
statement would earn the full score.

* Standardised evidence. Findings are rare, so most evidence is negative and a cosine of 2p - 1
  pays for negating everything: .85 of what the true report earns in the simulation below.
* The floor sqrt(F), which is the root mean square of |z|. Above it this is a cosine. Below it,
  for the images that show little, the score is linear in z and small: since z has mean zero, a
  text that ignores the image averages near zero, also where most studies are normal; and an image
  without evidence gives 0 instead of amplified noise. It scales all reports of one image alike.
* An absence weighs a fifth of a presence, as for a +-1 variable with a base rate of 1/6 once it
  is standardised. With equal weights each true negation beside a true finding lowers the score,
  so that a policy learns to leave negations out; with a fifth they raise it or cost under 5 %.
* The floor 1 under |t|, the norm of one plain statement. Without it a report that only negates has
  a cosine as large as any: on the film of a finding .24 against .88 for naming it, so that naming
  pays only for a policy that is right in more than a third of the cases, and one that is not yet
  learns to be silent. With the floor the .24 are .08 and the third is a sixth.
* A hedge gains and loses half as much as a plain statement: where it earns anything, saying so
  plainly or saying nothing earns at least as much.
* Not mentioned is neutral, and so is a report that names no finding ("no acute disease"). A
  normal report earns by its explicit true negations.

Means over 8,000 simulated studies (7 findings at 14 %, a good expert with d' = 4, a third normal;
the reference names all findings and 2 to 4 negatives, or all of them where nothing is found):

    text                             cosine of 2p - 1   of z, equal weights   this
    reference                              .84                .75              .67
    all seven stated rightly               .97                .74              .68
    only the true positives                .28                .59              .58
    the reference without findings         .75                .44              .12
    4 random true negatives                .74                .39              .11
    another patient's report               .37                .11              .00
    everything negated                     .71                .21              .02
    everything present                    -.71               -.21             -.04

With 5 % each, 70 % normal, negating everything earns .62 of the reference in the middle column
and .09 in the right one. Choices and numbers are ours; no real weights were at hand.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.images import open_image, to_gray
from reward_sdk.labelers.rules import label_reports
from reward_sdk.reward import reward
from reward_sdk.types import ImageRef, Part, Sample

if TYPE_CHECKING:
    from reward_sdk.experts.torchxrayvision import XrayExpert

_POLARITY = {1: 1.0, 0: -1.0, -1: 0.5, None: 0.0}
_ABSENCE = 0.2  # ours: see above; .1 to .25 do equally well in simulation
_MIN_SD = 1e-3  # ours: evidence that varies less over images says nothing about one of them
_CACHED = 100_000  # ours: images whose evidence is kept, about 50 MB
_BATCH = 32  # ours: images opened at a time while fitting


def similarity(evidence_z: np.ndarray, polarity: np.ndarray) -> np.ndarray:
    """Similarity of images and reports, row by row.

    Args:
        evidence_z: standardised evidence, (n, F).
        polarity: what the reports say, (n, F): 1, -1, 0 not mentioned, 0.5 uncertain.

    Returns:
        (n,) in [-1, 1], never NaN for finite input.
    """
    strength = np.where(polarity < 0, _ABSENCE * polarity, polarity)
    stated = np.where(polarity > 0, 1.0, strength)
    image_norm = np.maximum(np.linalg.norm(evidence_z, axis=1), np.sqrt(evidence_z.shape[1]))
    report_norm = np.maximum(np.linalg.norm(stated, axis=1), 1.0)
    product = (evidence_z * strength).sum(axis=1)
    return np.clip(product / (image_norm * report_norm), -1.0, 1.0)  # rounding


def report_polarity(texts: Sequence[str], findings: Sequence[str]) -> np.ndarray:
    """What reports say of each finding, (len(texts), len(findings)), as `similarity` takes it."""
    rows = [[_POLARITY[labels[f]] for f in findings] for labels in label_reports(texts)]
    return np.array(rows).reshape(len(texts), len(findings))


class Moments(BaseModel):
    """Mean and standard deviation of one finding's evidence over the training images."""

    model_config = ConfigDict(extra="forbid")
    mean: float = Field(ge=-1, le=1)
    sd: float = Field(ge=0, allow_inf_nan=False)


class Baseline(BaseModel):
    """The baseline file: how an expert's evidence is distributed over the training images.

    Attributes:
        weights: `XrayExpert.weights` of the expert.
        images: how many there were.
        findings: one entry per finding of the expert.
    """

    model_config = ConfigDict(extra="forbid")
    weights: str
    images: int = Field(ge=2)
    findings: dict[str, Moments]


def fit_baseline(
    weights: str,
    images: Iterable[ImageRef],
    progress: Callable[[int], object] = lambda done: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The content of a baseline file, to be written as JSON.

    Args:
        weights: see `load_expert`.
        images: the training images, opened a few at a time; never the evaluation's.
        progress: told the number of images done, after each batch.
        device: a torch device.

    Raises:
        ConfigError: weights that cannot be loaded, or fewer than two images.
        ScoringError: an image cannot be read.
    """
    expert = _load_expert(weights, device)
    remaining = iter(images)
    evidence = np.empty((0, len(expert.findings)), np.float32)
    while batch := [open_image(ref) for ref in islice(remaining, _BATCH)]:
        evidence = np.concatenate([evidence, expert.evidence(batch)])
        progress(len(evidence))
    if len(evidence) < 2:
        raise ConfigError(f"a baseline needs the training images, got {len(evidence)}")
    columns = zip(expert.findings, evidence.T.astype(float), strict=True)
    moments = {name: Moments(mean=values.mean(), sd=values.std()) for name, values in columns}
    return Baseline(weights=expert.weights, images=len(evidence), findings=moments).model_dump()


def read_baseline(path: str, expert: XrayExpert) -> dict[str, Moments]:
    """Finding -> moments, for the expert's findings in their order.

    Raises:
        ConfigError: the file is missing, is no baseline, or was fitted with another expert.
    """
    try:
        baseline = Baseline.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"baseline {path}: {error.strerror}: fit one over the training images"
        ) from error
    except ValidationError as error:
        raise ConfigError(f"baseline {path}: {error}") from error
    if baseline.weights != expert.weights:
        raise ConfigError(
            f"baseline {path}: fitted with {baseline.weights}, but the expert is "
            f"{expert.weights}: fit it again"
        )
    if baseline.findings.keys() != set(expert.findings):
        difference = sorted(baseline.findings.keys() ^ set(expert.findings))
        raise ConfigError(
            f"baseline {path}: its findings are not the expert's, see {difference}: fit it again"
        )
    return {finding: baseline.findings[finding] for finding in expert.findings}


class ImageText:
    """The reward. Thread-safe; the evidence of recent images is kept.

    Args:
        expert: gives the evidence.
        moments: finding -> mean and sd of its evidence, in the order of `expert.findings`.
            Findings whose evidence does not vary are left out of the similarity.
    """

    name = "image_text"
    bounds = (-1.0, 1.0)
    needs = frozenset({"report", "image"})

    def __init__(self, expert: XrayExpert, moments: dict[str, Moments]) -> None:
        used = [i for i, m in enumerate(moments.values()) if m.sd >= _MIN_SD]
        if not used:
            raise ConfigError(f"baseline of {expert.weights}: no finding's evidence varies")
        self.findings = tuple(expert.findings[i] for i in used)
        self._columns = used
        self._mean = np.array([moments[f].mean for f in self.findings])
        self._sd = np.array([moments[f].sd for f in self.findings])
        self._expert = expert
        self._cache: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def __call__(self, samples: Sequence[Sample]) -> list[Part]:
        """Raises ScoringError for an image that cannot be read."""
        if not samples:
            return []
        # The engine has seen to it that report and image are there.
        polarity = report_polarity([s.report or "" for s in samples], self.findings)
        evidence_z = self.evidence_z([s.image or ImageRef() for s in samples])
        return [Part(float(value)) for value in similarity(evidence_z, polarity)]

    def evidence_z(self, images: Sequence[ImageRef]) -> np.ndarray:
        """Standardised evidence, (len(images), len(self.findings)); each image is encoded once."""
        keys = [_identity(image) for image in images]
        with self._lock:  # also around the model: two threads never encode the same image
            new = {k: i for k, i in zip(keys, images, strict=True) if k not in self._cache}
            if new:
                rows = self._expert.evidence([open_image(image) for image in new.values()])
                self._cache.update(zip(new, rows, strict=True))
            evidence = np.stack([self._cache[key] for key in keys])
            for key in keys:
                self._cache.move_to_end(key)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return (evidence[:, self._columns] - self._mean) / self._sd


def _identity(image: ImageRef) -> Hashable:
    """Tells images apart: by path, size and time of change, or by what the expert sees."""
    if image.path is None or image.pixels is not None:
        gray = to_gray(open_image(image))
        return gray.shape, hashlib.sha256(gray.tobytes()).digest()
    try:
        status = os.stat(image.path)
    except (OSError, ValueError) as error:
        raise ScoringError(f"image {image.path}: {error}") from error
    return os.path.abspath(image.path), status.st_size, status.st_mtime_ns


def _load_expert(weights: str, device: str) -> XrayExpert:
    try:
        from reward_sdk.experts.torchxrayvision import load_expert
    except ImportError as error:
        raise ConfigError(f"image_text: {error}: pip install 'valor-rrg[vision]'") from error
    return load_expert(weights, device)


@reward("image_text")
def image_text(weights: str, baseline: str, device: str = "cpu") -> ImageText:
    """Similarity of report and X-ray under a torchxrayvision expert, in [-1, 1].

    Args:
        weights: name or file of the expert's weights, see `load_expert`.
        baseline: JSON file of `fit_baseline`, over the training images.
        device: a torch device.
    """
    expert = _load_expert(weights, device)
    return ImageText(expert, read_baseline(baseline, expert))
