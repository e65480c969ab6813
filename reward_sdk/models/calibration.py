"""How an expert's outputs are distributed over the training images, for `image_text`.

Fitted once over the training images, never the evaluation's, and kept as JSON beside the reward
set. The file names the weights it was fitted with, so that the two cannot be mixed up.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_sdk.errors import ConfigError, explain
from reward_sdk.images import is_lateral, opened
from reward_sdk.models import Expert
from reward_sdk.types import ImageRef

Finite = Annotated[float, Field(allow_inf_nan=False)]
_BATCH = 32  # ours: images encoded at a time while fitting
_READERS = min(3, os.cpu_count() or 1)  # ours: threads; there is room for three films at once


class Moments(BaseModel):
    """Mean and standard deviation over the training images of one finding's evidence."""

    model_config = ConfigDict(extra="forbid")
    mean: float = Field(ge=-1, le=1)
    sd: float = Field(ge=0, allow_inf_nan=False)


class Features(BaseModel):
    """How an expert's features are distributed over the training images.

    Attributes:
        mean: mean of each of the D features over the images.
        length: root mean square over the images of the Euclidean norm of features minus mean.
        sd: finding -> standard deviation over the images of the features along its direction,
            scaled to length 1.
    """

    model_config = ConfigDict(extra="forbid")
    mean: list[Finite]
    length: Annotated[Finite, Field(gt=0)]
    sd: dict[str, Annotated[Finite, Field(ge=0)]]


class Calibration(BaseModel):
    """How an expert's outputs are distributed over the training images, as a file holds it.

    Attributes:
        weights: `Expert.weights` of the expert whose outputs these are.
        images: number of images that the calibration was fitted over, at least 2, side views left
            out.
        findings: finding -> mean and standard deviation of its evidence, one entry for each of the
            expert's findings, in its order.
        features: how the features are distributed; None in files that were fitted for the evidence
            alone.
    """

    model_config = ConfigDict(extra="forbid")
    weights: str
    images: int = Field(ge=2)
    findings: dict[str, Moments]
    features: Features | None = None

    def save(self, path: str | Path) -> None:
        """Writes the file that `read_calibration` reads."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def fit_calibration(
    expert: Expert,
    images: Sequence[ImageRef],
    progress: Callable[[int], object] = lambda done: None,
) -> Calibration:
    """The calibration of an expert over the training images, which are encoded a few at a time.
    Side views are left out, as `image_text` skips them.

    Args:
        expert: the expert whose outputs are measured, such as `load_expert` loads.
        images: the training images, at least two of them frontal.
        progress: called after each batch with the number of images done, side views among them.

    Raises:
        ConfigError: there are fewer than two frontal images.
        ScoringError: an image cannot be read.
    """
    frontal = [image for image in images if not is_lateral(image)]
    if len(frontal) < 2:
        raise ConfigError(f"a calibration needs the training images, got {len(frontal)}")
    evidence, features = ([array] for array in expert.encode([]))
    for start in range(0, len(frontal), _BATCH):
        batch = prepared(expert, frontal[start : start + _BATCH])
        for rows, new in zip((evidence, features), expert.encode(batch), strict=True):
            rows.append(new)
        progress(len(images) - len(frontal) + start + len(batch))
    columns = np.concatenate(evidence).T.astype(float)
    return Calibration(
        weights=expert.weights,
        images=len(frontal),
        findings={
            name: Moments(mean=column.mean(), sd=column.std())
            for name, column in zip(expert.findings, columns, strict=True)
        },
        features=_fit_features(expert, np.concatenate(features).astype(float)),
    )


def prepared(expert: Expert, images: Sequence[ImageRef]) -> list[np.ndarray]:
    """What an expert reads of each image. A few threads share the work, since decoding a film takes
    one core longer than a network takes for it, and no image is open longer than that takes.

    Raises:
        ScoringError: as `opened` and `Expert.prepare` raise it, for the first image that fails.
        ExhaustedError: likewise.
    """
    results: list[Future[np.ndarray]] = [Future() for _ in images]
    todo = iter(list(zip(images, results, strict=True)))

    def work() -> None:
        for ref, result in todo:
            try:
                with opened(ref) as image:
                    result.set_result(expert.prepare(image))
            except BaseException as error:
                result.set_exception(error)

    try:
        for _ in range(min(_READERS, len(images))):
            # No ThreadPoolExecutor: a process could not end before an image that hangs.
            Thread(target=work, daemon=True).start()
        return [result.result() for result in results]
    finally:  # after an error nobody wants the others
        deque(todo, maxlen=0)


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


def read_calibration(path: str, expert: Expert) -> Calibration:
    """The file's content, findings in the expert's order.

    Raises:
        ConfigError: the file is missing, is no calibration, or was fitted with another expert.
    """
    try:
        calibration = Calibration.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"calibration {path}: {error.strerror}: fit one over the training images with "
            "`reward-sdk calibrate`"
        ) from error
    except ValidationError as error:
        raise ConfigError(f"calibration {path}: {explain(error, values=False)}") from error
    if calibration.weights != expert.weights:
        raise ConfigError(
            f"calibration {path}: fitted with {calibration.weights}, but the expert is "
            f"{expert.weights}: fit it again"
        )
    if calibration.findings.keys() != set(expert.findings):
        difference = sorted(calibration.findings.keys() ^ set(expert.findings))
        raise ConfigError(
            f"calibration {path}: its findings are not the expert's, see {difference}: fit it again"
        )
    features = calibration.features
    wanted = set(expert.findings), expert.directions.shape[1]
    if features is not None and (features.sd.keys(), len(features.mean)) != wanted:
        raise ConfigError(f"calibration {path}: its features are not the expert's: fit it again")
    return calibration.model_copy(
        update={"findings": {name: calibration.findings[name] for name in expert.findings}}
    )
