"""The two networks that real users download, trained here on phantoms: the X-ray expert, and the
vision tower (LLaVA-Med's CLIP tower has seen images before; a random one has not)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reward_sdk.images import open_image, to_gray
from reward_sdk.models.xray_expert import CHEXPERT_NAME
from valor_plugin.demo.phantoms import DRAWABLE, OBSERVATION_OF, PhantomStudy
from valor_plugin.llava_med.processor import open_rgb


def train_expert(
    phantoms: Sequence[PhantomStudy], path: Path, device: str, *, steps: int = 500, seed: int = 0
) -> None:
    """Trains a small DenseNet of torchxrayvision's class to tell the CheXpert observations of
    phantoms and saves it as torchxrayvision's own files are: a pickled module.

    Outputs of observations that phantoms do not show stay untrained and unnamed, as in published
    weights. Operating points maximise sensitivity + specificity on studies held out. The saved
    module is on the CPU, wherever it was trained.
    """
    import torchxrayvision

    torch.manual_seed(seed)
    network = torchxrayvision.models.DenseNet(
        growth_rate=12, block_config=(2, 4, 4), num_init_features=24, num_classes=18
    ).to(device)
    shown = set(OBSERVATION_OF.values())
    names = [CHEXPERT_NAME.get(name, name) for name in torchxrayvision.models.DenseNet.targets]
    trained = [i for i, name in enumerate(names) if name in shown]
    pixels = torch.stack([_expert_pixels(phantom) for phantom in phantoms]).to(device)
    labels = torch.tensor(
        [[float(names[i] in {OBSERVATION_OF[f] for f in phantom.findings}) for i in trained]
         for phantom in phantoms], device=device
    )  # fmt: skip
    held_out = len(phantoms) // 8
    _fit(
        network,
        lambda rows: network(pixels[rows])[:, trained],
        labels[held_out:],
        offset=held_out,
        steps=steps,
        rate=3e-3,
        title="expert",
        seed=seed,
    )
    network.eval()
    with torch.no_grad():
        scores = torch.sigmoid(network(pixels[:held_out])[:, trained]).cpu().numpy()
    network, labels = network.cpu(), labels.cpu()
    thresholds = torch.full((18,), math.nan)
    for column, output in enumerate(trained):
        thresholds[output] = _operating_point(scores[:, column], labels[:held_out, column].numpy())
    network.targets = [name if i in trained else "" for i, name in enumerate(type(network).targets)]
    network.pathologies = network.targets
    network.op_threshs = thresholds
    network.input_resolution = _EXPERT_SIDE
    torch.save(network, path)


_EXPERT_SIDE = 64


def _expert_pixels(phantom: PhantomStudy) -> Tensor:
    image = open_image(phantom.study.image_ref)
    gray = to_gray(image.resize((_EXPERT_SIDE, _EXPERT_SIDE)))
    return torch.from_numpy(gray / 255 * 2 - 1)[None] * 1024


def _operating_point(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the greatest sensitivity + specificity."""
    candidates = np.unique(scores)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    gains = [(positives >= c).mean() - (negatives >= c).mean() for c in candidates]
    return float(candidates[int(np.argmax(gains))])


def train_tower(
    model: Any, processor: Any, phantoms: Sequence[PhantomStudy], device: str, *,
    steps: int = 500, seed: int = 0,
) -> None:  # fmt: skip
    """Teaches the vision tower to see the findings, in place, from image-level labels.

    Every patch votes for every finding; the votes of an image are pooled by log-mean-exp (multiple
    instance learning), so that patches near a finding learn to carry it.
    """
    torch.manual_seed(seed)
    tower = model.model.vision_tower.to(device)
    images = [open_rgb(str(phantom.study.image)) for phantom in phantoms]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(device)
    labels = [[float(f in p.findings) for f in DRAWABLE] for p in phantoms]
    votes = nn.Linear(model.config.vision_config.hidden_size, len(DRAWABLE), device=device)
    layer = model.config.vision_feature_layer

    def forward(rows: Tensor) -> Tensor:
        hidden = tower(pixels[rows], output_hidden_states=True).hidden_states[layer][:, 1:]
        patches = votes(hidden)
        return torch.logsumexp(patches, 1) - math.log(patches.shape[1])

    both = nn.ModuleList([tower, votes])
    _fit(
        both, forward, torch.tensor(labels, device=device),
        offset=0, steps=steps, rate=1e-3, title="vision tower", seed=seed,
    )  # fmt: skip
    tower.cpu()


def _fit(
    network: nn.Module, forward: Callable[[Tensor], Tensor], labels: Tensor, *, offset: int,
    steps: int, rate: float, title: str, seed: int, batch_size: int = 64,
) -> None:  # fmt: skip
    """Multi-label training on rows `offset...` with a one-cycle schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    loss_of = nn.BCEWithLogitsLoss()
    network.train()
    batches = _batches(len(labels), batch_size, seed)
    with tqdm(total=steps, desc=title, disable=None) as bar:
        for _, rows in zip(range(steps), batches, strict=False):
            loss = loss_of(forward(rows + offset), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()


def _batches(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)[: rows // size]
