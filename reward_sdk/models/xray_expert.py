"""X-ray -> evidence per finding, by torchxrayvision's DenseNet classifiers.

The published weight files are pickles of a whole module: `torch.load` would run code that stands
in them. `read_weights` reads them, with inert stand-ins for layers. The tensors then go, strictly,
into a DenseNet built from their shapes; its outputs equal those of torchxrayvision's own loader
bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from scipy.sparse import csr_array

from reward_sdk.errors import ConfigError, ScoringError, nearest
from reward_sdk.images import to_gray
from reward_sdk.models.weights import read_weights
from reward_sdk.observations import OBSERVATIONS

with warnings.catch_warnings():  # its import silences every warning of the process
    import torchxrayvision as xrv

CHEXPERT_NAME = {"Effusion": "Pleural Effusion"}
# ours: images per forward pass; bounds the memory (30 MB each at 224 x 224). On a CPU, whose caches
# hold no more, 4 at a time take less than half the seconds that 32 take.
_CHUNK, _CHUNK_CUDA = 4, 32


class XrayExpert:
    """A DenseNet in evaluation mode that judges frontal chest X-rays.

    Attributes:
        weights: identity of the weights: "sha256:..." of the file, with the name before it if they
            are published ones.
        findings: CheXpert names of the outputs that the weights were trained for, without No
            Finding.
    """

    weights: str
    findings: tuple[str, ...]

    def __init__(self, model: xrv.models.DenseNet, weights: str, device: str) -> None:
        self.weights = weights
        names = [CHEXPERT_NAME.get(target, target) for target in model.targets]
        thresholds = model.op_threshs.tolist()
        self._columns = [
            i
            for i, (name, threshold) in enumerate(zip(names, thresholds, strict=True))
            if name in OBSERVATIONS and name != "No Finding" and not math.isnan(threshold)
        ]
        self.findings = tuple(names[i] for i in self._columns)
        if not self.findings or len(set(self.findings)) < len(self.findings):
            raise ConfigError(
                f"expert weights {weights}: outputs named {names} with thresholds {thresholds} "
                "give no list of distinct CheXpert observations"
            )
        self._device = device
        self._model = model.to(device).eval()
        self._resolution = model.input_resolution
        self._crop = xrv.datasets.XRayCenterCrop()

    def prepare(self, image: Image) -> np.ndarray:
        """What the network reads of an image: float32 (1, R, R) in [-1024, 1024], R mostly 224.

        torchxrayvision's own pipeline, up to rounding (1e-3 at most in tests): the square in the
        middle, resized as scikit-image does, which published values and thresholds need; torch's
        resizing differs by up to 200 at edges.

        Raises:
            ScoringError: the image's values have no known range.
        """
        [pixels] = self._crop(to_gray(image)[None])
        # torchxrayvision's `normalize` in place, but for a factor of 2048, which rounds nothing.
        pixels /= 255
        pixels -= 0.5
        weights = _axis(len(pixels), self._resolution)
        resized = (weights @ (weights @ pixels).T).T
        if not resized.min() <= 0 <= resized.max():  # else the 0 around the film is left at edges
            resized = resized.clip(pixels.min(), pixels.max())
        return 2048 * resized[None]

    def encode(self, prepared: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What the network makes of images, as `prepare` gives them.

        Returns:
            The evidence 2p - 1, (n, len(findings)), in [-1, 1], and the features that the
            classifier reads, (n, D) and not negative, D 1,024 for DenseNet-121; both float32. p is
            torchxrayvision's probability after `op_norm`, which moves each finding's operating
            point (the threshold with the best sensitivity + specificity) to 0.5: evidence 0 is the
            decision point, not even odds.

        Raises:
            ScoringError: an output is NaN or infinite.
        """
        directions = self._model.classifier.weight
        evidence = [np.empty((0, len(self.findings)), np.float32)]
        features = [np.empty((0, directions.shape[1]), np.float32)]
        chunk = _CHUNK_CUDA if directions.is_cuda else _CHUNK
        for start in range(0, len(prepared), chunk):
            inputs = torch.from_numpy(np.stack(prepared[start : start + chunk]))
            with torch.no_grad(), _exact_convolutions():
                pooled = self._model.features2(inputs.to(self._device))
                p = xrv.models.op_norm(
                    torch.sigmoid(self._model.classifier(pooled)), self._model.op_threshs
                )
            evidence.append(2 * p[:, self._columns].float().cpu().numpy() - 1)
            features.append(pooled.float().cpu().numpy())
        outputs = np.concatenate(evidence), np.concatenate(features)
        if not all(np.isfinite(values).all() for values in outputs):
            raise ScoringError(f"expert {self.weights} gives NaN or infinity for an image")
        return outputs

    @property
    def directions(self) -> np.ndarray:
        """The classifier's weights: the direction of each finding among the features,
        float32 (len(findings), D)."""
        return self._model.classifier.weight.detach()[self._columns].float().cpu().numpy()


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """On a GPU torch rounds what float32 convolutions multiply to 10 bits unless told otherwise;
    published thresholds are of values without that."""
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        place, name, exact = cudnn.conv, "fp32_precision", "ieee"
    else:  # torch before 2.9; later ones refuse a mixture of the two
        place, name, exact = cudnn, "allow_tf32", False
    before = getattr(place, name)
    setattr(place, name, exact)
    try:
        yield
    finally:
        setattr(place, name, before)


@lru_cache(maxsize=256)  # ours; each has at most 160 kB at `MAX_PIXELS`
def _axis(size: int, resolution: int) -> csr_array:
    """What torchxrayvision's resizer does along one axis, (resolution, size): it blurs and
    interpolates each axis by itself, and linearly.

    Found by resizing images of single bright pixels. A pixel of the result sees four standard
    deviations of the blur, which is (scale - 1) / 2, and a pixel more for interpolation, so one
    column serves all bright pixels that lie further apart than that.
    """
    scale = size / resolution
    reach = int(2 * scale) + 3
    columns = math.ceil((2 * reach + 1) / resolution) * resolution
    bright = np.arange(size)[:, None] % columns == np.arange(columns)
    parts = np.split(bright[None].astype(np.float32), columns // resolution, axis=2)
    resize = xrv.datasets.XRayResizer(resolution)
    [seen] = np.concatenate([resize(part) for part in parts], axis=2)
    centres = (np.arange(resolution)[:, None] + 0.5) * scale - 0.5
    near = abs(np.arange(size) - centres) <= reach
    return csr_array(np.where(near, seen[:, np.arange(size) % columns], 0))


def load_expert(weights: str, device: str = "cpu") -> XrayExpert:
    """Loads a torchxrayvision DenseNet without running code from its file.

    Args:
        weights: a published name such as "densenet121-res224-chex", whose file must be in
            torchxrayvision's cache folder (nothing is downloaded); or the path of a file in the
            same format: `torch.save(model)` of a `torchxrayvision.models.DenseNet` of any size,
            with `targets` and `op_threshs` set, and `input_resolution` where it is not 224.
        device: a torch device.

    Raises:
        ConfigError: the name is unknown, the file is missing or not such a model, `read_weights`
            refuses it, or the device is not there.
    """
    published = {n: m for n, m in xrv.models.model_urls.items() if n.startswith("densenet")}
    if weights in published:
        url = published[weights]["weights_url"]
        path = Path(xrv.utils.get_cache_dir(), Path(url).name)
        if not path.is_file():
            raise ConfigError(f"expert weights {weights}: {path} is missing: get it from {url}")
        model = _build(path)
        model.targets = published[weights]["labels"]
        model.op_threshs = torch.tensor(published[weights]["op_threshs"])
        model.input_resolution = published[weights]["input_resolution"]
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            hint = nearest(weights, published)
            raise ConfigError(f"expert weights {weights}: no such file or published name: {hint}")
        model = _build(path)
    if model.op_threshs is None or model.op_threshs.shape != (len(model.targets),):
        raise ConfigError(
            f"expert weights {path}: each output needs a name in `targets` and a threshold in "
            f"`op_threshs`: {len(model.targets)} names, thresholds {model.op_threshs}"
        )
    with path.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    identity = f"{weights} {digest}" if weights in published else digest
    try:
        return XrayExpert(model, identity, device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"expert device {device!r}: {error}") from error


def _build(path: Path) -> xrv.models.DenseNet:
    """The DenseNet in a file, on the CPU; zip and legacy formats."""
    saved = read_weights(path, layers=("torchxrayvision.models", "torch.nn.modules"))
    try:
        tensors = _tensors(saved)
        thresholds = tensors.pop("op_threshs", None)
        with torch.device("meta"):  # without memory of its own, whatever sizes the file claims
            model = xrv.models.DenseNet(**_architecture(tensors))
        model.load_state_dict(tensors, strict=True, assign=True)
        model.float()
        model.targets = [str(target) for target in getattr(saved, "targets", model.targets)]
        model.input_resolution = int(getattr(saved, "input_resolution", 224))
        if model.input_resolution < 1:
            raise ValueError(f"input_resolution {model.input_resolution}")
    except Exception as error:  # whatever a broken or foreign file makes of the steps above
        raise ConfigError(
            f"expert weights {path}: not a torchxrayvision DenseNet saved with "
            f"torch.save(model): {type(error).__name__}: {error}"
        ) from error
    model.register_buffer("op_threshs", thresholds)
    return model


def _tensors(saved: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """What `state_dict()` of the saved module would be."""
    own = {**saved._parameters, **saved._buffers}
    found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
    for name, child in saved._modules.items():
        found |= _tensors(child, f"{prefix}{name}.")
    return found


def _architecture(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of `xrv.models.DenseNet`, read from the shapes of its tensors."""
    layers: dict[str, set[str]] = {}
    for key in tensors:
        match key.split("."):
            case ["features", block, layer, *_] if block.startswith("denseblock"):
                layers.setdefault(block, set()).add(layer)
    wide, _, _, _ = tensors["features.denseblock1.denselayer1.conv1.weight"].shape
    growth, _, _, _ = tensors["features.denseblock1.denselayer1.conv2.weight"].shape
    return {
        "num_init_features": len(tensors["features.conv0.weight"]),
        "block_config": tuple(len(layers[f"denseblock{i + 1}"]) for i in range(len(layers))),
        "growth_rate": growth,
        "bn_size": wide // growth,
        "num_classes": len(tensors["classifier.bias"]),
    }
