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
  a cosine as large as any: on the X-ray of a finding .24 against .88 for naming it, so that naming
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

That is the embedding `evidence`, which compares image and report in the space of labels. The
embedding `features` compares them where the expert's own classifier does: the image is its feature
vector minus the mean over the training images, a report the sum of its findings' directions, which
are the classifier's weight rows, each scaled to the same spread over the training images. The
corrections are the same: the mean is taken off, |x| has its root mean square as floor and the
report's vector the length of one plain statement. Such a cosine is smaller, because most of a
feature vector has nothing to do with any of the findings.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Literal

import numpy as np

from reward_sdk.errors import ConfigError, ScoringError, nearest
from reward_sdk.images import is_lateral, opened, to_gray
from reward_sdk.models import Expert
from reward_sdk.models.annotator import Turn
from reward_sdk.models.calibration import Calibration, prepared, read_calibration, unit
from reward_sdk.models.rule_labeler import in_words, label_reports
from reward_sdk.registry import reward
from reward_sdk.types import Evidence, ImageRef, Outcome, Sample

Embedding = Literal["evidence", "features"]

_POLARITY = {1: 1.0, 0: -1.0, -1: 0.5, None: 0.0}
_ABSENCE = 0.2  # ours: see above; .1 to .25 do equally well in simulation
_MIN_SD = 1e-3  # ours: evidence that varies less over images says nothing about one of them
_LARGEST = 1000.0  # ours: of the weights of findings
_BATCH = 32  # ours: images at a time; what is done is kept, whatever becomes of the others
_CACHED = 100_000  # ours: images whose embedding is kept, about 50 MB


def similarity(
    image: np.ndarray,
    polarity: np.ndarray,
    lengths: np.ndarray | None = None,
    gram: np.ndarray | None = None,
) -> np.ndarray:
    """Similarity of images and reports, row by row.

    Args:
        image: each image's products with the findings' directions, (n, F); for the embedding
            `evidence`, standardised evidence.
        polarity: what each report says of each finding, (n, F): 1 present, -1 absent, 0.5
            uncertain, 0 not mentioned.
        lengths: length of each image's vector, (n,); by default that of its row in `image`, at
            least sqrt(F).
        gram: products of the findings' directions with each other, (F, F); by default they are at
            right angles and of length 1.

    Returns:
        The similarity of each row, (n,), in [-1, 1]; never NaN for finite input.
    """
    if lengths is None:
        lengths = np.maximum(np.linalg.norm(image, axis=1), np.sqrt(image.shape[1]))
    strength = np.where(polarity < 0, _ABSENCE * polarity, polarity)
    stated = np.where(polarity > 0, 1.0, strength)
    squared = (stated * (stated if gram is None else stated @ gram)).sum(axis=1)
    report_lengths = np.sqrt(np.maximum(squared, 1.0))
    product = (image * strength).sum(axis=1)
    return np.clip(product / (lengths * report_lengths), -1.0, 1.0)  # rounding


def report_polarity(texts: Sequence[str], findings: Sequence[str]) -> np.ndarray:
    """What reports say of each finding, (len(texts), len(findings)), as `similarity` takes it."""
    rows = [[_POLARITY[labels[f]] for f in findings] for labels in label_reports(texts)]
    return np.array(rows).reshape(len(texts), len(findings))


class ImageText:
    """The reward `image_text`. Thread-safe; the embeddings of recent images are kept. It does
    not apply to side views, since the experts were trained on frontal ones.

    Args:
        expert: the frozen classifier that encodes the images.
        calibration: how the expert's outputs are distributed over the training images. Findings
            that do not vary are left out of the similarity.
        embedding: where image and report are compared: in the expert's "evidence" per finding, or
            in the "features" that its classifier reads.
        finding_weights: finding -> how much it counts, 0 to 1,000; 1 where it is not named.
    """

    name = "image_text"
    bounds = (-1.0, 1.0)
    needs = frozenset({"report", "image"})

    def __init__(
        self,
        expert: Expert,
        calibration: Calibration,
        embedding: Embedding = "evidence",
        finding_weights: Mapping[str, float] | None = None,
    ) -> None:
        spread = {name: moments.sd for name, moments in calibration.findings.items()}
        used = [i for i, sd in enumerate(spread.values()) if sd >= _MIN_SD]
        if not used:
            raise ConfigError(f"calibration of {expert.weights}: no finding's evidence varies")
        self.findings = tuple(expert.findings[i] for i in used)
        weights = _finding_weights(finding_weights or {}, self.findings)
        self._weights = weights
        self._columns, self._expert, self._embedding = used, expert, embedding
        if embedding == "features":
            self._fit_features(calibration)
        else:
            moments = [calibration.findings[name] for name in self.findings]
            self._mean = np.array([m.mean for m in moments])
            self._sd = np.array([m.sd for m in moments])
            self._shortest = np.sqrt(weights.sum())
            self._gram = np.diag(weights)
        self._cache: OrderedDict[Hashable, tuple[np.ndarray, float] | None] = OrderedDict()
        self._turn, self._lock = Turn(), Lock()

    def _fit_features(self, calibration: Calibration) -> None:
        features = calibration.features
        if features is None:
            raise ConfigError(
                "embedding features: the calibration was fitted without: fit it again"
            )
        spread = np.maximum([features.sd[name] for name in self.findings], np.finfo(float).tiny)
        directions = unit(self._expert.directions[self._columns]) / spread[:, None]
        directions /= np.linalg.norm(directions, axis=1).mean()
        self._directions = directions * self._weights[:, None]
        self._mean, self._shortest = np.array(features.mean), features.length
        self._gram = self._directions @ self._directions.T

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Raises ScoringError for an image that cannot be read."""
        # The set has seen to it that report and image are there.
        images = [sample.image or ImageRef() for sample in samples]
        values = self.similarities(images, [sample.report or "" for sample in samples])
        return [
            Outcome(None, "not_applicable", "side view") if value is None else Outcome(value)
            for value in values
        ]

    def explain(self, sample: Sample) -> list[Evidence]:
        """What the report says of each finding and what the expert sees of it, what it sees most of
        first. `Evidence.image` is what the similarity multiplies with the polarity.

        Raises:
            ScoringError: the image cannot be read.
        """
        [embedded] = self._embed([sample.image or ImageRef()])
        if embedded is None:
            return []
        report = sample.report or ""
        [polarity] = report_polarity([report], self.findings)
        said = in_words(report)
        expected = {} if sample.reference is None else in_words(sample.reference)
        found = [
            Evidence(
                name,
                said[name],
                expected.get(name, ""),
                image=float(seen),
                agrees=None if not stated or not seen else bool((stated > 0) == (seen > 0)),
            )
            for name, stated, seen in zip(self.findings, polarity, embedded[0], strict=True)
        ]
        return sorted(found, key=lambda evidence: -(evidence.image or 0.0))

    def similarities(
        self, images: Sequence[ImageRef], reports: Sequence[str]
    ) -> list[float | None]:
        """Similarity of each image and report, in [-1, 1], or None for a side view; each image is
        encoded once.

        Raises:
            ScoringError: an image cannot be read.
        """
        embedded = self._embed(images)
        values: list[float | None] = [None] * len(images)
        frontal = [i for i, row in enumerate(embedded) if row is not None]
        if frontal:
            rows, lengths = zip(*filter(None, embedded), strict=True)
            polarity = report_polarity([reports[i] for i in frontal], self.findings)
            found = similarity(np.stack(rows), polarity, np.array(lengths), self._gram)
            for i, value in zip(frontal, found.tolist(), strict=True):
                values[i] = value
        return values

    def _embed(self, images: Sequence[ImageRef]) -> list[tuple[np.ndarray, float] | None]:
        """Per image its row (F,) and length, as `similarity` takes them; None for a side view."""
        keys = [_identity(image) for image in images]
        wanted = dict(zip(keys, images, strict=True))
        known: dict[Hashable, tuple[np.ndarray, float] | None] = {}
        for start in range(0, len(wanted), _BATCH):
            some = dict(list(wanted.items())[start : start + _BATCH])
            known |= self._recalled(some)
            new = {key: image for key, image in some.items() if key not in known}
            # Not in turn: an image that takes for ever must not keep others from theirs.
            frontal = {key: image for key, image in new.items() if not is_lateral(image)}
            inputs = dict(zip(frontal, prepared(self._expert, list(frontal.values())), strict=True))
            known |= dict.fromkeys(new)
            with self._turn.taken():  # two threads never encode the same image
                known |= self._recalled(new)
                left = [key for key in inputs if known[key] is None]
                if left:
                    outputs = self._expert.encode([inputs[key] for key in left])
                    known |= zip(left, self._rows(*outputs), strict=True)
                self._remember({key: known[key] for key in some})
        return [known[key] for key in keys]

    def _recalled(
        self, keys: Iterable[Hashable]
    ) -> dict[Hashable, tuple[np.ndarray, float] | None]:
        with self._lock:
            return {key: self._cache[key] for key in keys if key in self._cache}

    def _remember(self, found: Mapping[Hashable, tuple[np.ndarray, float] | None]) -> None:
        with self._lock:
            for key, row in found.items():
                self._cache[key] = row
                self._cache.move_to_end(key)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)

    def _rows(
        self, evidence: np.ndarray, features: np.ndarray
    ) -> Iterable[tuple[np.ndarray, float]]:
        if self._embedding == "features":
            vectors = features - self._mean
            rows = vectors @ self._directions.T
        else:
            z = (evidence[:, self._columns] - self._mean) / self._sd
            vectors, rows = np.sqrt(self._weights) * z, self._weights * z
        return zip(rows, np.maximum(np.linalg.norm(vectors, axis=1), self._shortest), strict=True)


def _finding_weights(given: Mapping[str, float], findings: Sequence[str]) -> np.ndarray:
    for name, weight in given.items():
        if name not in findings:
            raise ConfigError(f"finding_weights: no {name!r}: {nearest(name, findings)}")
        if not 0 <= weight <= _LARGEST:
            raise ConfigError(f"finding_weights: {name}: {weight} is not in 0 to {_LARGEST:g}")
    weights = np.array([given.get(name, 1.0) for name in findings], float)
    if not weights.any():
        raise ConfigError("finding_weights: at least one finding must count")
    return weights


def _identity(image: ImageRef) -> Hashable:
    """Tells images apart: by path, size and time of change, by their bytes, or by what the expert
    sees; and by what is said of their view."""
    if image.pixels is None and image.data is not None:
        return image.digest, image.view
    if image.path is None or image.pixels is not None:
        with opened(image) as pixels:
            gray = to_gray(pixels)
            return gray.shape, hashlib.sha256(gray.data).digest(), image.view
    try:
        status = os.stat(image.path)
    except (OSError, ValueError) as error:
        raise ScoringError(f"image {image.path}: {error}") from error
    return os.path.abspath(image.path), status.st_size, status.st_mtime_ns, image.view


@reward("image_text")
def image_text(
    expert: str,
    calibration: str,
    embedding: Embedding = "evidence",
    finding_weights: dict[str, float] | None = None,
    device: str = "cpu",
) -> ImageText:
    """Similarity of report and X-ray under a torchxrayvision expert, in [-1, 1].

    Args:
        expert: published name or file of the expert's weights, as `load_expert` takes them.
        calibration: JSON file of the calibration that was fitted over the training images with this
            expert.
        embedding: where image and report are compared: in the expert's "evidence" per finding, or
            in the "features" that its classifier reads.
        finding_weights: finding -> how much it counts, 0 to 1,000; 1 where it is not named. Less is
            for those that the expert judges badly.
        device: a torch device.
    """
    try:
        from reward_sdk.models.xray_expert import load_expert
    except ImportError as error:
        raise ConfigError(f"image_text: {error}: pip install 'valor-rrg[vision]'") from error
    loaded = load_expert(expert, device)
    return ImageText(loaded, read_calibration(calibration, loaded), embedding, finding_weights)
