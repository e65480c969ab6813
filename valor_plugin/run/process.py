"""A run as a process, followed to its end: that of the host, or of supervised fine-tuning. Nothing
else in this package starts processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import click

from reward_sdk.errors import RewardSDKError
from valor_plugin import records
from valor_plugin.host import failures
from valor_plugin.host.saving import is_whole
from valor_plugin.records import AnyStep, Failure, Follower, Step, SupervisedStep
from valor_plugin.run.folder import RunFolder, processes_of

_ATTEMPTS = 3
_FULL = 100 * 2**20  # ours: bytes; what broke off while it was written leaves about nothing
_SHORT = 24  # characters of the folder for temporary files; Ray adds up to 80


class RunError(RewardSDKError):
    """A run that started and did not end well; one readable paragraph."""


class Command(Protocol):
    """What a run is started with.

    Attributes:
        steps: number of steps that the run takes.
    """

    @property
    def steps(self) -> int: ...

    def start(self, scratch: str) -> list[str]:
        """The arguments of Python that start the run.

        Args:
            scratch: path of a folder for temporary files, which is removed afterwards.
        """
        ...


class Settings(Protocol):
    """What the processes of a run have in their environment.

    Attributes:
        run: identity of the run, which no other has and which is in `environment`.
    """

    @property
    def run(self) -> str: ...

    def environment(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class PreparedRun(Generic[AnyStep]):
    """A run that passed every check; only its processes can still fail.

    Attributes:
        folder: the run's folder, which holds what a restart reads.
        command: the command that starts the run.
        settings: what the run's processes must know.
        resumes: whether the run goes on from a checkpoint.
        record: type of the records of its steps.
        report: called after every step with its record and how many there will be.
    """

    folder: RunFolder
    command: Command
    settings: Settings
    resumes: bool
    record: type[AnyStep]
    report: Callable[[AnyStep, int], None]


def run(prepared: PreparedRun) -> Path:
    """Runs to the end and returns the folder of the trained model.

    Processes find each other by ports that are bound and released, so another process can take one
    before it is used. Such a start has trained nothing and is made again, up to three times.

    Raises:
        RunError: the run failed; the message holds its cause.
        KeyboardInterrupt: the user stopped the run; raised after every process of the run has
            ended.
    """
    folder = prepared.folder
    if left := folder.processes():  # whoever has the lock has no processes yet
        click.echo(f"ending what a killed run left behind: {len(left)} processes")
        _kill(folder.processes)
    if prepared.resumes:
        click.echo(f"going on from the last checkpoint in {folder.checkpoints}")
    for attempt in range(1, _ATTEMPTS + 1):
        found = Follower(folder.failures, Failure)
        code, steps = _attempt(prepared)
        if code == 0 and is_whole(folder.unsaved):
            return folder.finish()
        root = failures.root(list(found.new()))
        if steps or root is None or not failures.lost_a_port(root) or attempt == _ATTEMPTS:
            break
        click.echo("a port of the run was taken by another process; starting again")
    cause = _cause(root, code, folder.log)
    if shutil.disk_usage(folder.path).free < _FULL:
        cause += f" The disk of {folder.path} is full."
    raise RunError(f"{cause} The whole log: {folder.log}")


def _attempt(prepared: PreparedRun) -> tuple[int, int]:
    """Starts the run once and follows it to its end: exit code, and steps taken."""
    folder, command = prepared.folder, prepared.command
    # Ray opens its folder to everybody, so it lies inside of one that is the user's alone. Names
    # are short, because the system knows no socket whose path has more than 107 characters.
    usual = tempfile.gettempdir()
    scratch = tempfile.mkdtemp(prefix="ray-", dir=usual if len(usual) <= _SHORT else "/tmp")
    environment = {**os.environ, **prepared.settings.environment()}
    folder.trainable.unlink(missing_ok=True)
    handlers = {sign: signal.signal(sign, _interrupt) for sign in (signal.SIGTERM, signal.SIGHUP)}
    with folder.log.open("ab") as sink:
        steps = Follower(folder.steps, prepared.record)
        process = subprocess.Popen(
            [sys.executable, *command.start(scratch)],
            stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True,
            pass_fds=() if folder.lock is None else (folder.lock,),
        )  # fmt: skip
        try:
            taken = _follow(
                process, folder, steps, lambda step: prepared.report(step, command.steps)
            )
        finally:
            end(process, prepared.settings.run)
            shutil.rmtree(scratch, ignore_errors=True)
            for sign, handler in handlers.items():
                signal.signal(sign, handler)
    return process.returncode, taken


def _interrupt(*_: object) -> None:
    """A batch system's TERM or a closed terminal ends a run as Ctrl-C does."""
    raise KeyboardInterrupt


def _follow(
    process: subprocess.Popen,
    folder: RunFolder,
    steps: Follower[AnyStep],
    report: Callable[[AnyStep], None],
) -> int:
    """Shows what trains as soon as that is known, and reports steps until the process ends; how
    many there were."""
    taken, shown = 0, False
    while True:
        ended = process.poll() is not None
        if not shown and (table := records.read_trainable(folder.trainable)):
            shown = True
            for part in table:
                click.echo(part)
        for step in steps.new():
            report(step)
            taken += 1
        if ended:
            return taken
        time.sleep(0.2)


def print_step(step: Step, total: int) -> None:
    """A line for people: the step, the reward, every component where it counted, the time."""
    means = {name: part for name, part in step.parts.items() if part.mean is not None}
    values = [f"{name} {part.mean:.3f}" for name, part in means.items()]
    failed = [
        f"{name} FAILED for {part.failed:.0%}" for name, part in step.parts.items() if part.failed
    ]
    head = f"step {step.step:>4}/{total}  reward {_number(step.reward):>6}"
    seconds = step.seconds.get("total") or 0.0
    click.echo("  ".join([head, *values, *failed, f"{seconds:.1f} s"]))


def print_supervised_step(step: SupervisedStep, total: int) -> None:
    """A line for people: the step, its loss, that of an evaluation if there was one, the time."""
    head = f"step {step.step:>4}/{total}  loss {_number(step.loss)}"
    held_out = step.evaluation_loss
    evaluation = [] if held_out is None else [f"held-out loss {held_out:.3f}"]
    click.echo("  ".join([head, *evaluation, f"{step.seconds:.1f} s"]))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def end(process: subprocess.Popen, run: str) -> None:
    """Ends the driver and whatever of the run outlives it, by the run's mark in the environment."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _kill(lambda: processes_of(run))


def _kill(processes: Callable[[], list[int]]) -> None:
    """Ends processes, first kindly."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline and (left := processes()):
            time.sleep(0.1)


def _cause(root: Failure | None, code: int, log: Path) -> str:
    """Why a run failed, in one sentence: what a process recorded or, by its exit code, which signal
    killed it; else the log's last line."""
    if root is not None:
        return f"The run failed: {root.error.rstrip('.')}."
    if code < 0:
        perhaps = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"The run was killed by signal {-code} ({signal.Signals(-code).name}){perhaps}."
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = (line.strip() for line in reversed(lines) if any(map(str.isalnum, line)))
    last = next(said, "(nothing)")
    return f"The run ended without a model. The last line of its log: {last}."
