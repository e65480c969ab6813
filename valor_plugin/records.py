"""What a run says of itself while it runs: records in its folder, which its processes write and
screen, curves and pages read.

steps.jsonl      one `Step` a line, or in stage sft one `SupervisedStep`, flushed; a run that goes
                 on from a checkpoint appends, and of two records of one step the later stands
trainable.json   the parts of the model and which of them train
failures.jsonl   one `Failure` a line: exceptions of the run's processes
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from reward_sdk.errors import ConfigError

STEPS, TRAINABLE, FAILURES = "steps.jsonl", "trainable.json", "failures.jsonl"

Record = TypeVar("Record")


@dataclass(frozen=True)
class RewardMeans:
    """One reward over the samples of a policy step.

    Attributes:
        mean: mean of the reward's values; None where it gave none.
        applied: share of the samples that it gave a value, 0 to 1.
        failed: share of the samples on which it failed, 0 to 1.
        not_applicable: share of the samples that it does not concern, 0 to 1; 0 in records that
            older versions wrote, which counted none.
    """

    mean: float | None
    applied: float
    failed: float
    not_applicable: float = 0.0


@dataclass(frozen=True)
class Step:
    """One policy step. Numbers are means over its samples; None stands for what the step does not
    have and for what is not finite.

    Attributes:
        step: number of the policy step, counted from 1.
        time: when the step ended, in seconds since 1970.
        reward: mean total of the reward set.
        parts: reward name -> its means over the samples of the step.
        unscored: share of the samples without a score of their own.
        tied: share of the groups in which no reward differs.
        kl: mean divergence from the reference policy, by the run's estimator.
        length: mean length of a response, in tokens.
        truncated: share of the responses that were cut at the longest length.
        seconds: phase -> seconds that it took: "generation", "experience" (log-probabilities and
            advantages), "training", "sync" and "total".
        synced: "tensors" and "bytes" -> how many of them went to the engines.
        metrics: name -> each other number that the trainer logs of the step.
    """

    step: int
    time: float
    reward: float | None
    parts: dict[str, RewardMeans]
    unscored: float | None
    tied: float | None
    kl: float | None
    length: float | None
    truncated: float | None
    seconds: dict[str, float | None]
    synced: dict[str, float | None]
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SupervisedStep:
    """One optimizer step of supervised fine-tuning. None stands for what is not finite, and for
    what the step does not have.

    Attributes:
        step: number of the step, counted from 1.
        time: when the step ended, in seconds since 1970.
        loss: mean cross-entropy of the tokens that carry loss, in nats, over the whole batch.
        learning_rate: learning rate of the step.
        gradient_norm: norm of the gradients before they are clipped; None without clipping.
        tokens: number of tokens that carry loss in the batch: reports and their closing tokens.
        seconds: seconds that the step took, without evaluation and checkpoint.
        evaluation_loss: mean cross-entropy of the tokens of the held-out reports, in nats, after
            the step; None where there was no evaluation.
    """

    step: int
    time: float
    loss: float | None
    learning_rate: float
    gradient_norm: float | None
    tokens: int
    seconds: float
    evaluation_loss: float | None = None


AnyStep = TypeVar("AnyStep", Step, SupervisedStep)


@dataclass(frozen=True)
class TrainablePart:
    """A part of the model.

    Attributes:
        part: name of the part, see `valor_plugin.llava_med.parts`.
        tensors: number of tensors in the part.
        parameters: number of parameters in the part, which is that of all numbers in its tensors.
        trains: whether the part trains.
    """

    part: str
    tensors: int
    parameters: int
    trains: bool

    def __str__(self) -> str:
        state = "trains" if self.trains else "frozen"
        return f"{self.part:<9} {self.tensors:4} tensors {self.parameters:14,} parameters  {state}"


@dataclass(frozen=True)
class Failure:
    """An exception that a process of the run ended with, or logged.

    Attributes:
        process: the process that failed: "driver", or "vLLM" for a process of an engine.
        time: when the exception was recorded, in seconds since 1970.
        error: type and message of the exception, on one line.
    """

    process: str
    time: float
    error: str


def append(path: Path, record: Step | SupervisedStep | Failure) -> None:
    """Adds a record as one line; whole also where several processes write, and on a line of its own
    where an earlier one broke off."""
    line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def write_trainable(path: Path, parts: Sequence[TrainablePart]) -> None:
    """Writes the table of what trains; it is there whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.part")
    new.write_text(json.dumps([asdict(part) for part in parts], indent=1), encoding="utf-8")
    new.replace(path)


def read_trainable(path: Path) -> list[TrainablePart]:
    """The table of what trains; empty while there is none."""
    try:
        return TypeAdapter(list[TrainablePart]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return []


class Follower(Generic[Record]):
    """Reads a file of records as it grows, from where it ends now.

    Args:
        path: the file to read, which need not be there yet.
        kind: type of the records, such as `Step`.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self._path, self._kind = path, TypeAdapter[Record](kind)
        self._position = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[Record]:
        """The records that were completed since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                self._position += len(line)
                with suppress(ValidationError):  # a line that broke off, as where a disk is full
                    yield self._kind.validate_json(line)


def read_steps(path: Path, kind: type[AnyStep] = Step) -> list[AnyStep]:
    """The steps of a run in their order.

    Args:
        path: the run's steps.jsonl.
        kind: `Step` of a run of stage grpo, `SupervisedStep` of one of stage sft.

    Raises:
        ConfigError: the file cannot be read or holds no step, or a line is no record of a step.
    """
    what = "a policy step" if kind is Step else "a step of supervised fine-tuning"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read the steps {path}: {error.strerror}") from None
    steps: dict[int, AnyStep] = {}
    adapter = TypeAdapter[AnyStep](kind)
    for number, line in enumerate(lines, 1):
        try:
            step = adapter.validate_json(line)
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                continue  # a line that broke off, as where a disk is full
            raise ConfigError(f"{path}, line {number}: no record of {what}") from None
        steps[step.step] = step
    if not steps:
        raise ConfigError(f"{path} holds no {what.partition(' ')[2]}")
    return [steps[number] for number in sorted(steps)]


def finite(value: float) -> float | None:
    """The value; None where it is not finite, which JSON cannot say."""
    return value if math.isfinite(value) else None


def now() -> float:
    """Seconds since 1970, to milliseconds."""
    return round(time.time(), 3)
