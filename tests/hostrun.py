"""Running the command as a user does, and reading what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from valor_plugin.data.studies import Study, write_studies


@dataclass(frozen=True)
class Chain:
    """Where the runs are, and what their processes printed."""

    root: Path
    printed: dict[str, str]

    def log(self, stage: str) -> str:
        return (self.root / stage / "host.log").read_text(errors="replace")


# What an adaptation is compared with: a `sitecustomize.py` on the path, which Python runs in every
# process, takes it back.
WITHOUT = {
    "reference": """
from valor_plugin.host import reference
reference.is_shared = lambda parts: False
""",
    "images": """
from valor_plugin.host import images
def install():
    from openrlhf.utils import vlm_utils
    process = vlm_utils.process_prompt_with_images
    vlm_utils.process_prompt_with_images = lambda processor, prompt, films: process(
        processor, prompt, [film.image for film in films]
    )
images.install = install
images.Encoder = lambda llava, most: llava.get_image_features
""",
}


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


def write_films(root: Path) -> None:
    """Eight films that are told apart by their brightness, and their studies file."""
    studies = []
    for i in range(8):
        path = root / f"film{i}.png"
        Image.new("L", (40, 60), 10 + 30 * i).save(path)
        studies.append(Study(f"s{i}", path, "No pleural effusion."))
    write_studies(studies, root / "studies.jsonl")
