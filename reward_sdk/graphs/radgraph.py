"""RadGraph and RadGraph-XL: the radgraph package with transformers 5, and in batches.

The package loads and decodes; its tokenizer and its BERT are put into its own caches beforehand,
so that nothing of it or of transformers is replaced and no weights are downloaded. Its network
takes one report at a time, so reports pass twice: first only to see which rows of tokens their BERT
wants, which are then encoded all at once; and a second time through the package's own heads with
these encodings. The annotations are the package's, up to ties that rounding decides.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from radgraph.allennlp.common import cached_transformers
from radgraph.allennlp.data.dataloader import PyTorchDataLoader
from radgraph.allennlp.data.dataset_readers import AllennlpDataset
from radgraph.radgraph import RadGraph
from radgraph.utils import batch_to_device, postprocess_reports, preprocess_reports
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertTokenizer

from reward_sdk.bert import Bert
from reward_sdk.errors import ConfigError, ScoringError, nearest, one_line
from reward_sdk.graphs import Graph, read_annotation
from reward_sdk.weights import radgraph as published

MODELS = ("radgraph", "radgraph-xl")
_FILES = ("config.json", "weights.th", "vocabulary")


class _Tokenizer(BertTokenizer):
    """With the two methods that transformers 5 took away and radgraph calls."""

    # The package asks for one word at a time, and reports are made of words that recur.
    @lru_cache(maxsize=1 << 16)  # noqa: B019 (one tokenizer lives as long as its model)
    def encode_plus(self, *args: Any, **options: Any) -> Any:
        return self(*args, **options)

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[Any]:
        return [self.cls_token_id, *ids, self.sep_token_id]


class _Encoder(nn.Module):
    """Stands where the package has its BERT; encodes what many reports want in one go."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self._bert = bert
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._wanted: dict[tuple[int, ...], None] = {}
        self.collecting = False

    def encode(self) -> None:
        """Encodes the rows seen since `collecting` was set."""
        self._rows = dict(zip(self._wanted, self._bert(list(self._wanted)), strict=True))
        self._wanted, self.collecting = {}, False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """(rows, tokens, hidden). While collecting, raises `_NotedError` instead."""
        lengths = attention_mask.sum(1).long().tolist()
        keys = [tuple(row[:n]) for row, n in zip(input_ids.tolist(), lengths, strict=True)]
        if self.collecting:
            self._wanted |= dict.fromkeys(key for key in keys if key)
            raise _NotedError
        output = torch.zeros(*input_ids.shape, self._bert.width, device=self._bert.device)
        for row, key in enumerate(keys):
            if key:
                output[row, : len(key)] = self._rows[key]
        return (output,)


class _NotedError(Exception):
    """Ends the first pass where the package would go on with encodings."""


class RadGraphExtractor:
    """The extractor: `extract(texts)` gives one `Graph` per text, in order.

    Texts are lower-cased: the released package compares some tokens with their case.

    Args:
        package: the loaded radgraph package's model, whose BERT is replaced.
        device: a torch device.
    """

    def __init__(self, package: RadGraph, device: str) -> None:
        self._package, self._device = package, torch.device(device)
        self._model: Any = package.model.to(self._device)
        embedder = self._model._embedder.token_embedder_bert._matched_embedder
        bert = embedder.transformer_model
        heads = bert.config.num_attention_heads
        self._encoder = _Encoder(Bert(bert.state_dict(), heads, device, torch.float32))
        embedder.transformer_model = self._encoder

    def __call__(self, texts: Sequence[str]) -> list[Graph]:
        """Raises ScoringError for a text that the package cannot process."""
        written = [i for i, text in enumerate(texts) if text.strip()]
        annotations = self._annotate([texts[i].lower() for i in written])
        graphs: list[Graph] = [()] * len(texts)
        for place, i in enumerate(written):
            annotation = annotations.get(str(place))
            if annotation is None:
                raise ScoringError(f"radgraph: no annotation for the report {texts[i][:80]!r}")
            graphs[i] = read_annotation(annotation)
        return graphs

    def _annotate(self, texts: list[str]) -> dict[str, Any]:
        """The package's annotations, by the place of the text."""
        if not texts:
            return {}
        model, package = self._model, self._package
        rows = preprocess_reports(texts, package.model_type)
        data = AllennlpDataset([package.reader.text_to_instance(row) for row in rows])
        data.index_with(model.vocab)
        loader: Any = PyTorchDataLoader
        move: Any = batch_to_device
        batches = [move(batch, self._device) for batch in loader(dataset=data, batch_size=1)]
        with torch.inference_mode():
            self._encoder.collecting = True
            for batch in batches:
                with contextlib.suppress(_NotedError):
                    model._embedder(batch["text"], num_wrapping_dims=1)
            self._encoder.encode()
            outputs = [model.make_output_human_readable(model(**batch)) for batch in batches]
        return postprocess_reports([output.to_json() for output in outputs])


def load_radgraph(
    weights: str = "radgraph-xl", tokenizer: str | None = None, device: str = "cpu"
) -> RadGraphExtractor:
    """Loads a RadGraph model.

    Args:
        weights: "radgraph" or "radgraph-xl", looked for where the package keeps them; or a folder
            of one of these names with `config.json`, `vocabulary/` and `weights.th`, as in the
            published archive. Nothing is downloaded.
        tokenizer: a folder with the `vocab.txt` and `config.json` of the model's BERT; by default
            what the model's configuration names, on the hub or in its cache.
        device: a torch device.

    Raises:
        ConfigError: a missing folder or file, weights that do not fit, no tokenizer.
    """
    folder = published(weights).path if weights in MODELS else Path(weights).expanduser().resolve()
    if folder.name not in MODELS:
        raise ConfigError(
            f"RadGraph weights {weights}: the folder's name tells which model it is: "
            f"{nearest(folder.name, MODELS)}"
        )
    if missing := [name for name in _FILES if not (folder / name).exists()]:
        raise ConfigError(
            f"RadGraph weights {folder}: {', '.join(missing)} missing: get "
            f"{published(folder.name).source}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise ConfigError(f"RadGraph weights {folder / 'config.json'}: {error!r}") from error
    source = tokenizer or name
    try:
        words = _Tokenizer.from_pretrained(source)
        bert = AutoModel.from_config(AutoConfig.from_pretrained(source))
    except Exception as error:  # transformers raises anything from OSError to TypeError here
        raise ConfigError(
            f"RadGraph tokenizer {source}: {one_line(error)}: give a folder with the vocab.txt and "
            f"config.json of {name}"
        ) from error
    if len(words) != bert.config.vocab_size:
        raise ConfigError(
            f"RadGraph tokenizer {source}: it has {len(words)} entries, its configuration says "
            f"{bert.config.vocab_size}: give a folder with the vocab.txt and config.json of {name}"
        )
    specification = cached_transformers.TransformerSpec(name, None, None)
    cached_transformers._model_cache[specification] = bert
    for options in (
        {"use_fast": True},
        {"use_fast": True, "cache_dir": None},
    ):  # both are asked for
        cached_transformers._tokenizer_cache[name, frozenset(options.items())] = words
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the package prints the device
            package = RadGraph(model_type=folder.name, model_cache_dir=str(folder.parent), cuda=-1)
        tensors = package.model.state_dict()
        if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{', '.join(broken[:3])}: NaN or infinity")
        return RadGraphExtractor(package, device)
    except Exception as error:  # whatever a broken or foreign folder makes of the package's loader
        raise ConfigError(f"RadGraph weights {folder}: {one_line(error)}") from error
    finally:
        del cached_transformers._model_cache[specification]
