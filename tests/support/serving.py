"""A real reward server in a process of its own, as a user starts it, and rewards that misbehave."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit
from typing import Any

import httpx

from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample

REPORTS = (
    "The heart is enlarged. No pleural effusion.",
    "Left pleural effusion. The heart size is normal.",
    "No pleural effusion or pneumothorax. The lungs are clear.",
    "Right pneumothorax. No pleural effusion.",
    "Mild pulmonary edema. Stable cardiomegaly.",
    "Les poumons sont clairs ; cœur normal. 肺野清晰 🫁",
)
TEXT = {
    "rouge_l": {"weight": 0.45},
    "bleu": {"weight": 0.45},
    "findings_f1": {"weight": 0.3, "every": 4},
    "format": {"weight": 0.1},
}


# Another environment's where this one has no web framework.
COMMAND = os.environ.get("REWARD_SDK", str(Path(sys.executable).with_name("reward-sdk")))

MISBEHAVING = '''
import os, time
from reward_sdk.types import Outcome

class Reward:
    bounds, needs = (0.0, 1.0), frozenset()

class Slow(Reward):
    """As many seconds as the response says, `sleep N`; then its length."""
    name = "slow"
    def __call__(self, samples):
        for sample in samples:
            if "sleep " in sample.response:
                time.sleep(float(sample.response.split("sleep ")[1].split()[0]))
        return [Outcome(min(1.0, len(s.response) / 1000)) for s in samples]

class Moody(Reward):
    """Does not like poison."""
    name = "moody"
    def __call__(self, samples):
        for sample in samples:
            if "poison" in sample.response:
                raise ValueError("I will not read this")
        return [Outcome(1.0) for _ in samples]
    def explain(self, sample):
        raise ValueError("I will not say why")

class Cold(Reward):
    """Fails until a file is there."""
    name = "cold"
    def __call__(self, samples):
        if not os.path.exists(os.environ["WARM"]):
            raise RuntimeError("still cold")
        return [Outcome(1.0) for _ in samples]

class Noting(Reward):
    """Writes down what it scores."""
    name = "noting"
    def __call__(self, samples):
        with open(os.environ["NOTES"], "a") as file:
            file.writelines(sample.id + "\\n" for sample in samples)
        return [Outcome(1.0) for _ in samples]
'''


def misbehaving(folder: Path) -> dict[str, str]:
    """The environment in which these rewards are installed, as `pip install` would leave them."""
    metadata = folder / "misbehaving-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    names = ("slow", "moody", "cold", "noting")
    points = "".join(f"{name} = misbehaving:{name.capitalize()}\n" for name in names)
    (metadata / "entry_points.txt").write_text(f"[reward_sdk.rewards]\n{points}")
    (folder / "misbehaving.py").write_text(MISBEHAVING)
    return {"PYTHONPATH": str(folder)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`reward-sdk serve`, running.

    Args:
        folder: where its set and its log are written.
        rewards: the set.
        options: of the command.
        port: where it listens; by default any.
        environment: added to its environment.
        wait: until it is ready.
        files: how many it may have open.
    """

    def __init__(
        self,
        folder: Path,
        rewards: Mapping[str, Any],
        *options: str,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
        files: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.set_file, self._log = folder / "set.yaml", folder / "server.log"
        self.set_file.write_text(json.dumps({"rewards": rewards}))
        command = [COMMAND, "serve", "--set", str(self.set_file), "--port", str(port), *options]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )
        if files is not None:
            prlimit(self.process.pid, RLIMIT_NOFILE, (files, files))
        self.url = self._address()
        if wait:
            self.until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    def _address(self) -> str:
        found: list[str] = []

        def there() -> bool:
            assert self.process.poll() is None, self.log()
            found.extend(re.findall(r"on (http://\S+)", self.log()))
            return bool(found)

        self.until(there)
        return found[0]

    @staticmethod
    def until(condition, seconds: float = 60) -> None:
        """Waits for what must happen soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"it did not happen in {seconds:g} s")

    def log(self) -> str:
        return self._log.read_text()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def metric(self, name: str) -> float:
        """A value of /metrics, e.g. 'reward_parts_total{reward="bleu",status="ok"}'."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no {name} in /metrics")

    def kill(self) -> None:
        """As the kernel does it when memory is short."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator does it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def samples(films: Path, number: int = 24) -> list[Sample]:
    """Good and bad ones: without tags, without a reference, without an image, a broken image."""
    made = []
    for i in range(number):
        report = wrap_report(REPORTS[i % len(REPORTS)])
        reference: str | None = REPORTS[(i // 2) % len(REPORTS)]
        image: ImageRef | None = ImageRef(str(films / f"film{i % 4}.png"), view="PA")
        match i % 12:
            case 3:
                report = "no tags"
            case 5:
                reference = None
            case 7:
                image = None
            case 8:
                image = ImageRef(str(films / "film0.png"), view="LATERAL")
            case 9:
                image = ImageRef(str(films / "missing.png"))
        made.append(Sample(report, reference, image, f"s{i}"))
    return made
