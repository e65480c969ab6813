"""An image of a group is opened, preprocessed, sent and encoded once.

The host does each of these for every sample, and encodes again for the policy, the reference and
every epoch: for a group of 8, one epoch, 24 times. Here the samples of a group share one
`GroupImages`, their pixels lie once in Ray's object store, and samples carry their names. A policy
worker sends a name's pixels through the tower when it meets it first and keeps what came out, which
stays true while the tower is frozen: at most as many as a rollout has images (1.2 MB each for
LLaVA-Med 7B in bfloat16). The projector, which may train, runs once for every image of a
micro-batch. A tower that trains encodes every image of a micro-batch once; nothing is kept.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from reward_sdk.errors import ScoringError
from valor_plugin.host.settings import HostSettings
from valor_plugin.llava_med.processor import open_rgb

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentImage:
    """What travels with a sample instead of its pixels."""

    name: str  # the digest of the pixels
    pixels: Any  # Ray's reference to an array of (1, channels, height, width)


class GroupImages:
    """A study's images, which the samples of a group share, and what the processor makes of them.

    Attributes:
        images: the X-rays in RGB, in the order of their paths; blank where a file cannot be read,
            and `readable` is then False. The host would leave the image out and train on; a blank
            one keeps the batch whole, and the samples, unscored, teach nothing.
    """

    def __init__(self, paths: Sequence[str], study: str) -> None:
        self.readable = True
        self.images = [self._open(path, study) for path in paths]
        self._prepared: tuple[list[int], dict, list] | None = None

    def _open(self, path: str, study: str) -> Image.Image:
        try:
            return open_rgb(path)
        except ScoringError as error:
            logger.warning("study %s: %s", study, error)
            self.readable = False
            return Image.new("RGB", (64, 64))

    def prepared(self, process: Callable, processor: Any, prompt: str) -> tuple:
        """The host's `process` for these images and their prompt, called once: token ids, inputs
        for training, images."""
        if self._prepared is None:
            ids, inputs, images = process(processor, prompt, self.images)
            pixels = inputs["pixel_values"].numpy()
            sent = [_send(*each) for each in zip(self.images, pixels, strict=True)]
            self._prepared = ids, {"pixel_values": sent}, images
        return self._prepared


def _send(image: Image.Image, pixels: Any) -> SentImage:
    """Puts the pixels of an image, (channels, height, width), where every process finds them."""
    import ray

    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    # vLLM would hash the whole picture for every sample; it takes this instead.
    image.getexif()[Image.ExifTags.Base.ImageID] = uuid.UUID(bytes=digest.digest())
    return SentImage(digest.hexdigest(), ray.put(pixels[None]))


class Encoder:
    """Stands for `LlavaModel.get_image_features`, given `SentImage`s instead of pixels.

    Attributes:
        known: name of an image -> what the tower made of it; the one used last is at the end.
    """

    def __init__(self, llava: Any, most: int) -> None:
        """`most` images are remembered, the ones used last."""
        self._llava = llava
        self._most = most
        self.known: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, pixel_values: Sequence[SentImage], **_: Any) -> Any:
        """`pooler_output` has the projected features of every image of every sample, each of
        (tokens, width), in the order of the samples."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        distinct = {sent.name: sent for sent in pixel_values}
        row = {name: i for i, name in enumerate(distinct)}
        projected = self._llava.multi_modal_projector(self._encoded(distinct))
        every: Any = list(projected[[row[sent.name] for sent in pixel_values]])
        return BaseModelOutputWithPooling(pooler_output=every)

    def _encoded(self, images: dict[str, SentImage]) -> Any:
        """What the tower makes of each, (images, tokens, width); remembered if it is frozen."""
        import torch

        if any(p.requires_grad for p in self._llava.vision_tower.parameters()):
            return self._tower(list(images.values()))
        new = [name for name in images if name not in self.known]
        with torch.no_grad():
            if self._needed(bool(new)):
                found = self._tower([images[name] for name in new or list(images)[:1]])
                for name, features in zip(new, found, strict=False):
                    self.known[name] = features.clone()  # a view would keep its whole batch
        for name in images:
            self.known.move_to_end(name)
        every = torch.stack([self.known[name] for name in images])
        while len(self.known) > self._most:
            self.known.popitem(last=False)
        return every

    def _tower(self, images: list[SentImage]) -> Any:
        import ray
        import torch

        config = self._llava.config
        pixels = [torch.tensor(array) for array in ray.get([sent.pixels for sent in images])]
        weight = next(self._llava.vision_tower.parameters())
        outputs = self._llava.vision_tower(
            torch.cat(pixels).to(weight.device), output_hidden_states=True, return_dict=True
        )
        layers = config.vision_feature_layer
        states = [outputs.hidden_states[i] for i in ([layers] if type(layers) is int else layers)]
        if config.vision_feature_select_strategy == "default":
            states = [state[:, 1:] for state in states]  # without the class token
        return torch.cat(states, dim=-1)

    def _needed(self, here: bool) -> bool:
        """Whether this process must enter the tower. Under ZeRO-3 each holds a piece of its
        weights, so that all enter it if one has to."""
        import torch

        weight = next(self._llava.vision_tower.parameters())
        if not hasattr(weight, "ds_id"):
            return here
        flag = torch.tensor(int(here), device=weight.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


def prepare_once(process: Callable[..., tuple], settings: HostSettings) -> Callable[..., tuple]:
    """For `process_prompt_with_images`, which is given `GroupImages` instead of images."""

    def process_group_images(processor: Any, prompt: str, images: GroupImages) -> tuple:
        return images.prepared(process, processor, prompt)

    return process_group_images


def merge_names(_: Any, settings: HostSettings) -> Callable[[Iterable[Any], Any], dict]:
    """For `merge_mm_train_inputs`: the names of a micro-batch's images instead of their pixels."""

    def merge(samples: Iterable[Any], _device: Any) -> dict[str, list[SentImage]]:
        each = (one for item in samples for one in (item if isinstance(item, list) else [item]))
        return {"pixel_values": [sent for inputs in each for sent in inputs["pixel_values"]]}

    return merge


def encode_once(encode: Callable[..., Any], settings: HostSettings) -> Callable[..., Any]:
    """For `LlavaModel.get_image_features`: names of images are looked up, and encoded if new."""

    def get_image_features(self: Any, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(pixel_values, list):
            return encode(self, pixel_values, *args, **kwargs)
        if "image_encoder" not in vars(self):
            self.image_encoder = Encoder(self, settings.rollout_images)
        return self.image_encoder(pixel_values)

    return get_image_features
