"""What the networks behind rewards reach on a device: published sizes, random weights, no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from reward_sdk.errors import ConfigError, one_line
from reward_sdk.images import to_gray
from reward_sdk.models.bert import Bert
from reward_sdk.models.xray_expert import XrayExpert, xrv  # whose import silences warnings

_FILM = 2544, 3056  # width and height of many films of MIMIC-CXR


def compare(
    device: str,
    reports: int | None = None,
    films: int = 64,
    config: BertConfig | None = None,
) -> Iterator[str]:
    """Lines for people: each network against its plain use on the same device, in one run.

    Args:
        device: a torch device.
        reports: number of reports; by default 16, and 1,024 on a GPU.
        films: number of films that DenseNet-121 reads at a time.
        config: sizes of BERT; by default those of BERT-base, as CheXbert and RadGraph have them.

    Raises:
        ConfigError: the device is not there.
    """
    try:
        on_gpu = torch.zeros(1, device=device).is_cuda
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device {device!r}: {one_line(error)}") from error
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads"
    yield f"{device} ({name}), random weights"
    yield from _bert(device, reports or (1024 if on_gpu else 16), config or BertConfig())
    yield from _densenet(device, films)


def seconds(call: Callable[[], object], device: str = "cpu", times: int = 3) -> float:
    """The best of a few runs, each until the device has done its work; on a GPU after one more that
    warms it up."""
    on_gpu = torch.device(device).type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if on_gpu else lambda: None
    if on_gpu:
        call()
    best = float("inf")
    for _ in range(times):
        wait()
        began = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def share_of_product(
    config: BertConfig, tokens: int, taken: float, dtype: torch.dtype, device: str
) -> tuple[float, float]:
    """The share of a large matrix product's speed that BERT has reached, attention left out, and
    that speed in operations per second.

    Args:
        config: sizes of the BERT.
        tokens: number of tokens of all texts that it has read.
        taken: seconds that it took for them.
        dtype: type of its matrix products.
        device: a torch device.
    """
    side = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    limit = 2 * side**3 / seconds(lambda: a @ b, device, 5)
    weights = config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    return 2 * config.num_hidden_layers * weights * tokens / taken / limit, limit


def _bert(device: str, reports: int, config: BertConfig) -> Iterator[str]:
    random = np.random.default_rng(0)
    texts = [
        random.integers(0, config.vocab_size, length).tolist()
        for length in random.integers(30, 91, reports)  # tokens of most reports' findings
    ]
    model: Any = BertModel(config).eval()
    model.to(device)

    def one_by_one() -> None:
        with torch.inference_mode():
            for text in texts:
                model(torch.tensor([text], device=device))

    plain = seconds(one_by_one, device, 2) / reports
    for dtype in (torch.float32, torch.bfloat16):
        bert = Bert(model.state_dict(), config.num_attention_heads, device, dtype)
        packed = seconds(lambda bert=bert: bert(texts, first_only=True), device) / reports
        tokens = sum(map(len, texts))
        share, limit = share_of_product(config, tokens, packed * reports, dtype, device)
        yield (
            f"BERT, {str(dtype).removeprefix('torch.')}: {plain / packed:.1f} times transformers "
            f"in float32, one report at a time ({1e3 * packed:.3f} ms, {1e3 * plain:.3f} ms a "
            f"report); {share:.2f} of a matrix product's {limit / 1e12:.3g} TFLOP/s"
        )


def _densenet(device: str, films: int) -> Iterator[str]:
    model = xrv.models.DenseNet(num_classes=len(xrv.datasets.default_pathologies))
    model.targets = xrv.datasets.default_pathologies
    model.op_threshs = torch.full((len(model.targets),), 0.5)
    model.input_resolution = 224
    expert = XrayExpert(model, "random", device)
    random = np.random.default_rng(0)
    inputs = list(random.uniform(-1024, 1024, (films, 1, 224, 224)).astype(np.float32))
    few = inputs[:8]
    alone = seconds(lambda: [expert.encode([film]) for film in few], device) / len(few)
    together = seconds(lambda: expert.encode(inputs), device, 2) / films
    yield (
        f"DenseNet-121: {films} films at a time {alone / together:.1f} times one at a time "
        f"({1e3 * together:.2f} ms, {1e3 * alone:.2f} ms a film)"
    )
    width, height = _FILM
    film, other = (
        Image.fromarray(random.integers(0, 256, (height, width - i), dtype=np.uint8))
        for i in range(2)
    )
    ours = seconds(lambda: expert.prepare(film))
    unseen = seconds(lambda: expert.prepare(other), times=1)
    theirs = seconds(lambda: _as_torchxrayvision(film))
    yield (
        f"a decoded film of {width} x {height} for it, on the CPU: {theirs / ours:.1f} times "
        f"torchxrayvision's resizer ({1e3 * ours:.0f} ms, {1e3 * theirs:.0f} ms), "
        f"{1e3 * unseen:.0f} ms for the first of its size"
    )


def _as_torchxrayvision(film: Image.Image) -> np.ndarray:
    pixels = xrv.utils.normalize(to_gray(film)[None], 255)
    return xrv.datasets.XRayResizer(224)(xrv.datasets.XRayCenterCrop()(pixels))
