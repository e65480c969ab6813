"""The published weights that rewards can use: where each file is looked for, and where it is from.

Nothing is downloaded. The files are looked for where the packages that use them keep them. No
checksums of them were found; `Calibration.weights` pins the file that a calibration was fitted
with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_HUB = "repository StanfordAIMI/RRG_scorers of the Hugging Face hub"
_XRV = "https://github.com/mlmed/torchxrayvision/releases/download/v1"
_DENSENET = "densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"


@dataclass(frozen=True)
class Published:
    """A file or folder of published weights.

    Attributes:
        path: file or folder where the weights are looked for.
        source: where the weights can be had, in words for people.
    """

    path: Path
    source: str

    @property
    def there(self) -> bool:
        """Whether the file or folder exists."""
        return self.path.exists()


def chexbert() -> Published:
    """CheXbert, where f1chexbert keeps it."""
    return Published(_cache() / "chexbert/chexbert.pth", f"chexbert.pth in {_HUB}")


def radgraph(model: str) -> Published:
    """ "radgraph" or "radgraph-xl", where the radgraph package 0.1.18 keeps it."""
    path = _cache() / "radgraph/0.1.18" / model
    return Published(path, f"{model}.tar.gz, to be unpacked there, in {_HUB}")


def densenet(model: str) -> Published:
    """ "densenet121-res224-chex" or "-all", where torchxrayvision keeps it."""
    prefix = {"all": "nih-pc-chex-mimic_ch-google-openi-kaggle"}
    name = model.rpartition("-")[2]
    file = f"{prefix.get(name, name)}-{_DENSENET}"
    return Published(Path("~/.torchxrayvision/models_data").expanduser() / file, f"{_XRV}/{file}")


def of_rewards() -> dict[str, dict[str, Published]]:
    """Reward -> the weights it can use, by name; one of them is enough, but for `radcliq`, which
    needs both."""
    graphs = {name: radgraph(name) for name in ("radgraph-xl", "radgraph")}
    experts = {name: densenet(f"densenet121-res224-{name}") for name in ("chex", "all")}
    return {
        "chexbert_f1": {"chexbert": chexbert()},
        "chexbert_similarity": {"chexbert": chexbert()},
        "semb_score": {"chexbert": chexbert()},
        "radgraph_f1": graphs,
        "radcliq": {"chexbert": chexbert(), "radgraph": radgraph("radgraph")},
        "image_text": {f"densenet121-res224-{name}": file for name, file in experts.items()},
    }


def _cache() -> Path:
    """The user's cache folder on Linux, as appdirs has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
