"""How an expert's outputs are distributed over the training images, for `image_text`.

Fitted once over the training images, never the evaluation's, and kept as JSON beside the reward
set. The file names the weights it was fitted with, so that the two cannot be mixed up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_sdk.errors import ConfigError
from reward_sdk.experts import Expert
from reward_sdk.images import open_image
from reward_sdk.types import ImageRef

Finite = Annotated[float, Field(allow_inf_nan=False)]
_BATCH = 32  # ours: images opened at a time while fitting


class Moments(BaseModel):
    """Mean and standard deviation over the training images of one finding's evidence."""

    model_config = ConfigDict(extra="forbid")
    mean: float = Field(ge=-1, le=1)
    sd: float = Field(ge=0, allow_inf_nan=False)


class Features(BaseModel):
    """The features over the training images.

    Attributes:
        mean: of each of the D features.
        length: root mean square of the Euclidean norm of features minus mean.
        sd: finding -> standard deviation of the features along its direction of length 1.
    """

    model_config = ConfigDict(extra="forbid")
    mean: list[Finite]
    length: Annotated[Finite, Field(gt=0)]
    sd: dict[str, Annotated[Finite, Field(ge=0)]]


class Baseline(BaseModel):
    """The file.

    Attributes:
        weights: `Expert.weights` of the expert.
        images: how many there were.
        findings: one entry per finding of the expert, in its order.
        features: None in files that were fitted for the evidence alone.
    """

    model_config = ConfigDict(extra="forbid")
    weights: str
    images: int = Field(ge=2)
    findings: dict[str, Moments]
    features: Features | None = None


def fit_baseline(
    expert: Expert,
    images: Iterable[ImageRef],
    progress: Callable[[int], object] = lambda done: None,
) -> Baseline:
    """Encodes the training images, a few at a time.

    Args:
        expert: see `load_expert`.
        images: the training images.
        progress: told the number of images done, after each batch.

    Raises:
        ConfigError: fewer than two images.
        ScoringError: an image cannot be read.
    """
    remaining = iter(images)
    evidence, features = ([array] for array in expert.encode([]))
    done = 0
    while batch := [open_image(ref) for ref in islice(remaining, _BATCH)]:
        for rows, new in zip((evidence, features), expert.encode(batch), strict=True):
            rows.append(new)
        done += len(batch)
        progress(done)
    if done < 2:
        raise ConfigError(f"a baseline needs the training images, got {done}")
    columns = np.concatenate(evidence).T.astype(float)
    return Baseline(
        weights=expert.weights,
        images=done,
        findings={
            name: Moments(mean=column.mean(), sd=column.std())
            for name, column in zip(expert.findings, columns, strict=True)
        },
        features=_fit_features(expert, np.concatenate(features).astype(float)),
    )


def _fit_features(expert: Expert, features: np.ndarray) -> Features:
    mean = features.mean(axis=0)
    centred = features - mean
    along = centred @ unit(expert.directions).T
    return Features(
        mean=mean.tolist(),
        length=max(float(np.sqrt((centred**2).sum(axis=1).mean())), np.finfo(float).tiny),
        sd=dict(zip(expert.findings, along.std(axis=0).tolist(), strict=True)),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in float64."""
    rows = rows.astype(float)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def read_baseline(path: str, expert: Expert) -> Baseline:
    """The file's content, findings in the expert's order.

    Raises:
        ConfigError: the file is missing, is no baseline, or was fitted with another expert.
    """
    try:
        baseline = Baseline.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"baseline {path}: {error.strerror}: fit one over the training images with "
            "`reward-sdk baseline`"
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
    features = baseline.features
    wanted = set(expert.findings), expert.directions.shape[1]
    if features is not None and (features.sd.keys(), len(features.mean)) != wanted:
        raise ConfigError(f"baseline {path}: its features are not the expert's: fit it again")
    return baseline.model_copy(
        update={"findings": {name: baseline.findings[name] for name in expert.findings}}
    )
