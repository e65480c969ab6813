"""What the tests of this folder serve: weights of the real formats, X-rays, samples, one server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.serving import TEXT, Server, misbehaving
from support.tiny_bert import write_chexbert, write_tokenizer

from reward_sdk.types import ImageRef

pytest.importorskip("fastapi")
xrv = pytest.importorskip("torchxrayvision")


@dataclass(frozen=True)
class Served:
    """A server, its set, and the folder whose images may be named to it."""

    server: Server
    rewards: dict[str, Any]
    images: Path


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the rewards of `serving.MISBEHAVING` are installed."""
    return misbehaving(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of X-rays: film0.png to film3.png, noise."""
    folder = tmp_path_factory.mktemp("films")
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (64, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"film{i}.png")
    return folder


def image_text(folder: Path, films: Path) -> dict[str, Any]:
    """Settings of `image_text` with a random DenseNet, fitted on the films."""
    import torch

    from reward_sdk.models.calibration import fit_calibration
    from reward_sdk.models.xray_expert import load_expert

    torch.manual_seed(0)
    model = xrv.models.DenseNet(
        growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=3,
        op_threshs=torch.full((3,), 0.3),
    )  # fmt: skip
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    model.features.norm0.running_var.fill_(1e6)  # inputs reach 1024
    model.targets = ["Effusion", "Edema", "Cardiomegaly"]
    model.input_resolution = 32
    weights = folder / "expert.pt"
    torch.save(model.eval(), weights)
    refs = [ImageRef(str(path)) for path in sorted(films.glob("*.png"))]
    calibration = folder / "calibration.json"
    calibration.write_text(fit_calibration(load_expert(str(weights)), refs).model_dump_json())
    return {"expert": str(weights), "calibration": str(calibration)}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, films: Path):
    """Text rewards with a schedule, CheXbert and `image_text`, served for the whole session."""
    folder = tmp_path_factory.mktemp("served")
    chexbert = {
        "model": str(write_chexbert(folder / "chexbert.pth")),
        "tokenizer": str(write_tokenizer(folder / "bert")),
    }
    rewards = {
        **TEXT,
        "chexbert_f1": {**chexbert, "weight": 0.2},
        "chexbert_similarity": {**chexbert, "weight": 0.1},
        "image_text": {**image_text(folder, films), "weight": 0.5},
    }
    with Server(folder, rewards, "--images", str(films)) as server:
        yield Served(server, rewards, films)
