"""One GRPO run: the host as a process, followed to its end. Nothing else in this package starts
processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from valor_plugin.run import folder
from valor_plugin.host import options
from valor_plugin.run.grpo import Prepared

Report = Callable[[int, int, dict[str, float]], None]
"""Called after every policy step with the step, how many there will be, and the host's means."""

_PART = re.compile(r"(?:tower|projector|language|lora) +\d+ tensors .* (?:trains|frozen)")
_STEP = re.compile(r"Global step (\d+): (\{.*\})")
_NUMBER = re.compile(r"'([^']+)': (-?[\d.]+(?:e[-+]?\d+)?|nan)")


class RunError(Exception):
    """A run that started and did not end well; one readable paragraph."""


_ATTEMPTS = 3


def run(prepared: Prepared, report: Report) -> Path:
    """Runs the host to its end and returns the folder of the trained model.

    The host finds its ports by binding and releasing them, so another process can take one before
    it is used. Such a start has trained nothing and is made again, up to three times.

    Raises:
        RunError: the host failed; the message holds its cause.
        KeyboardInterrupt: after every process of the run has ended.
    """
    if prepared.resumes:
        click.echo(f"going on from the last checkpoint in {prepared.out / 'checkpoints'}")
    for attempt in range(1, _ATTEMPTS + 1):
        code, steps, log = _attempt(prepared, report)
        if code == 0 and (runfolder.unsaved(prepared.out) / "config.json").exists():
            return runfolder.finish(prepared.out)
        if steps or "EADDRINUSE" not in log or attempt == _ATTEMPTS:
            break
        click.echo("a port of the host was taken by another process; starting again")
    raise RunError(f"{cause(log)} The whole log: {prepared.out / 'host.log'}")


def _attempt(prepared: Prepared, report: Report) -> tuple[int, int, str]:
    """Starts the host once and follows it to its end: exit code, steps taken, log."""
    log = prepared.out / "host.log"
    earlier = log.stat().st_size if log.exists() else 0
    ray_dir = tempfile.mkdtemp(prefix="ray-")  # sockets below it must have short paths
    environment = {
        **os.environ,
        **prepared.settings.environment(),
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    handlers = {sign: signal.signal(sign, _interrupt) for sign in (signal.SIGTERM, signal.SIGHUP)}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "valor_plugin.host.main", ray_dir, "--", *prepared.arguments],
            stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            steps = _follow(process, log, earlier, report, _steps(prepared))
        finally:
            _end(process, prepared.settings.run)
            shutil.rmtree(ray_dir, ignore_errors=True)
            for sign, handler in handlers.items():
                signal.signal(sign, handler)
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(earlier)
        return process.returncode, steps, lines.read()


def _interrupt(*_: object) -> None:
    """A batch system's TERM or a closed terminal ends a run as Ctrl-C does."""
    raise KeyboardInterrupt


def print_step(step: int, total: int, means: dict[str, float]) -> None:
    """A line for people: the step, the reward, every component where it counted, the time."""
    names = [key.removesuffix("/applied") for key in means if key.endswith("/applied")]
    parts = [
        f"{name} {means[name] / means[name + '/applied']:.3f}"
        for name in names
        if means[name + "/applied"] > 0
    ]
    failed = [
        f"{key.removesuffix('/failed')} FAILED for {share:.0%}"
        for key, share in means.items()
        if key.endswith("/failed") and share > 0
    ]
    head = f"step {step:>4}/{total}  reward {means.get('reward', 0.0):6.3f}"
    click.echo("  ".join([head, *parts, *failed, f"{means.get('timing/step_total', 0.0):.1f} s"]))


def _steps(prepared: Prepared) -> int:
    """How many policy steps the host will take."""
    defaults = vars(options.parser().parse_args(prepared.arguments))
    batch = defaults["rollout.batch_size"]
    rows = min(len(prepared.studies), defaults["data.max_samples"])
    return -(-rows // batch) * defaults["train.num_episodes"]


def _follow(process: subprocess.Popen, log: Path, begin: int, report: Report, total: int) -> int:
    """Reads the log from a position as it grows, shows the table of what trains and reports steps
    until the process ends; how many there were."""
    steps = 0
    shown = set()  # every process of the policy has its table
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(begin)
        pending = ""
        while True:
            ended = process.poll() is not None
            pending += lines.read()
            *whole, pending = pending.split("\n")
            for line in whole:
                if (part := _PART.search(line)) and part[0] not in shown:
                    shown.add(part[0])
                    click.echo(part[0])
                if match := _STEP.search(line):
                    means = {key: float(value) for key, value in _NUMBER.findall(match[2])}
                    report(int(match[1]), total, means)
                    steps += 1
            if ended:
                return steps
            time.sleep(0.2)


def _end(process: subprocess.Popen, run: str) -> None:
    """Ends the driver and whatever of the run outlives it, by the run's mark in the environment."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = processes_of(run)
        for pid in left:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline and (left := processes_of(run)):
            time.sleep(0.1)


def processes_of(run: str) -> list[int]:
    """Ids of the processes whose environment mentions the run."""
    mark = run.encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():  # a zombie's is empty
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


_PREFIX = re.compile(
    r"\x1b\[[\d;]*m"  # colours
    r"|^(?:\([^)]*pid=\d+[^)]*\)\s?)+"  # (PolicyModelActor pid=1) (Worker pid=2)
    r"|(?:ERROR|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?"  # vLLM's own logger
)
_ERROR = re.compile(r"(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)(?:: .*)?")


def cause(log: str) -> str:
    """The root of a failed run in one sentence: the first exception in the host's log that is not
    merely a report of one in another process."""
    errors, last = [], "(nothing)"
    for line in log.splitlines():
        plain = _PREFIX.sub("", _PREFIX.sub("", line))
        last = plain.strip() or last
        if _ERROR.fullmatch(plain.rstrip()):
            errors.append(plain.strip())
    telling = [e for e in errors if not e.startswith("ray.") and "EngineDead" not in e]
    if telling or errors:
        return f"The run failed: {(telling or errors)[0].rstrip('.')}."
    return f"The run ended without a model. The last line of its log: {last}."
