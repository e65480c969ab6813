"""CheXbert (Smit et al., 2020): a BERT with 14 heads that labels reports.

Reads the checkpoint of the f1chexbert package, `chexbert.pth`, and gives its labels and the
embedding that they are read from. That package does not run with transformers 5, reads one report
at a time, and accepts a wrong file in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, BertTokenizer

from reward_sdk.errors import ConfigError, one_line
from reward_sdk.models.bert import Bert
from reward_sdk.models.folders import check_folder
from reward_sdk.models.published import chexbert
from reward_sdk.models.weights import read_weights
from reward_sdk.observations import OBSERVATIONS, Labels

_CLASSES: tuple[int | None, ...] = (None, 1, 0, -1)  # of every head; No Finding has the first two


@dataclass(frozen=True, slots=True)
class Reading:
    """What CheXbert makes of one report.

    Attributes:
        labels: 1 positive, 0 negative, -1 uncertain, None blank; No Finding is 1 or None.
        embedding: BERT's output for [CLS], float32 (hidden,), of length 1.
    """

    labels: Labels
    embedding: np.ndarray


class CheXbert:
    """The labeler: `chexbert(texts)` gives one `Labels` per text, in order, and
    `chexbert.read(texts)` one `Reading`. Reports of more than 512 tokens are cut, as f1chexbert
    cuts them.

    Args:
        bert: BERT's encoder, with CheXbert's weights.
        heads: weight (4, hidden) and bias (4,) of each observation's head, in the order of
            `OBSERVATIONS`; (2, hidden) and (2,) for No Finding.
        tokenizer: the tokenizer that the encoder was trained with.
    """

    def __init__(
        self, bert: Bert, heads: Sequence[tuple[Tensor, Tensor]], tokenizer: BertTokenizer
    ) -> None:
        self._bert, self._tokenizer = bert, tokenizer
        self._weight = torch.cat([weight for weight, _ in heads]).to(bert.device).float()
        self._bias = torch.cat([bias for _, bias in heads]).to(bert.device).float()
        self._sizes = [len(bias) for _, bias in heads]

    def __call__(self, texts: Sequence[str]) -> list[Labels]:
        """1 positive, 0 negative, -1 uncertain, None blank; No Finding is 1 or None."""
        return [reading.labels for reading in self.read(texts)]

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Labels and embeddings, which come of one pass of BERT."""
        if not texts:
            return []
        hidden = torch.cat(self._bert([self._tokens(text) for text in texts], first_only=True))
        scores = (hidden @ self._weight.T + self._bias).split(self._sizes, dim=1)
        classes = torch.stack([score.argmax(1) for score in scores], dim=1).tolist()
        embeddings = normalize(hidden, dim=1).cpu().numpy()
        return [
            Reading(  # a copy, or whoever keeps one reading would keep all of its batch
                dict(zip(OBSERVATIONS, map(_CLASSES.__getitem__, row), strict=True)),
                embedding.copy(),
            )
            for row, embedding in zip(classes, embeddings, strict=True)
        ]

    def _tokens(self, text: str) -> list[int]:
        ids = self._tokenizer(" ".join(text.split()), verbose=False)["input_ids"]
        longest = self._bert.max_tokens
        return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]


def load_chexbert(
    model: str | None = None,
    tokenizer: str = "bert-base-uncased",
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
) -> CheXbert:
    """Loads CheXbert, of which no tensor may be missing or foreign.

    Args:
        model: file of the checkpoint, a dict with `model_state_dict` as CheXbert publishes it; by
            default the place where f1chexbert keeps it. Nothing is downloaded.
        tokenizer: a folder with BERT's `vocab.txt`, or a name on the hub.
        precision: type of the encoder's matrix products. In float32 the labels are f1chexbert's;
            bfloat16 is faster where the processor has it (3 times on ours) and moves labels whose
            margin is thin (6 in 1,000 with random weights).
        device: a torch device.

    Raises:
        ConfigError: the checkpoint is missing, is refused by `read_weights` or is not CheXbert's
            (missing and foreign tensors are named); the tokenizer is missing, or `check_folder`
            refuses it; or the device is not there.
    """
    published = chexbert()
    path = Path(model).expanduser() if model else published.path
    if not path.is_file():
        raise ConfigError(f"CheXbert weights {path}: no such file: get {published.source}")
    check_folder(Path(tokenizer))
    checkpoint = read_weights(path)
    try:
        state = checkpoint["model_state_dict"]
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        state = {name: t for name, t in state.items() if not name.endswith("position_ids")}
        network = _network(state)
        network.load_state_dict(state, strict=True, assign=True)
        if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{', '.join(broken[:3])}: NaN or infinity")
    except Exception as error:  # whatever a broken or foreign file makes of the steps above
        raise ConfigError(
            f"CheXbert weights {path}: not a CheXbert checkpoint: {one_line(error)}: "
            f"the published one is {published.source}"
        ) from error
    try:
        words = BertTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # transformers raises anything from OSError to TypeError here
        raise ConfigError(
            f"CheXbert tokenizer {tokenizer}: {one_line(error)}: give a folder with the "
            "vocab.txt of bert-base-uncased"
        ) from error
    bert: Any = network["bert"]
    if len(words) != bert.config.vocab_size:
        raise ConfigError(
            f"CheXbert tokenizer {tokenizer}: it has {len(words)} entries, the weights "
            f"{bert.config.vocab_size}"
        )
    heads: Any = network["linear_heads"]
    try:
        encoder = Bert(
            bert.state_dict(), bert.config.num_attention_heads, device, getattr(torch, precision)
        )
        return CheXbert(
            encoder, [(head.weight.detach(), head.bias.detach()) for head in heads], words
        )
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"CheXbert device {device!r}: {one_line(error)}") from error


def _network(state: dict[str, Tensor]) -> torch.nn.ModuleDict:
    """The network that such tensors belong to, without memory of its own."""
    vocabulary, hidden = state["bert.embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=len({n.split(".")[3] for n in state if n.startswith("bert.encoder")}),
        num_attention_heads=hidden // 64,  # in every published BERT a head is 64 wide
        intermediate_size=len(state["bert.encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(state["bert.embeddings.position_embeddings.weight"]),
    )
    with torch.device("meta"):
        heads = [torch.nn.Linear(hidden, 2 if o == "No Finding" else 4) for o in OBSERVATIONS]
        return torch.nn.ModuleDict(
            {"bert": BertModel(config), "linear_heads": torch.nn.ModuleList(heads)}
        )
