"""Running the command as a user does, and reading what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chain:
    """Where the runs are, and what their processes printed."""

    root: Path
    printed: dict[str, str]

    def log(self, stage: str) -> str:
        return (self.root / stage / "host.log").read_text(errors="replace")


COMMAND = str(Path(sys.executable).with_name("openrlhf"))


def openrlhf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def scalars(chain: Chain, stage: str) -> dict[str, list[float]]:
    """The host's own training log: name -> value per policy step."""
    from valor_plugin.evaluation.curves import read_scalars

    series = read_scalars(chain.root / stage / "tensorboard")
    return {name: [value for _, value in points] for name, points in series.items()}
