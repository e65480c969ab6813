"""RadGraph and RadGraph-XL: the radgraph package's models with transformers 5, and in batches.

The package loads its models and divides reports into words; its tokenizer and its BERT are put into
its own caches beforehand, so that nothing of it or of transformers is replaced and no weights are
downloaded. Its network takes one report at a time and spends itself on more than the answer needs,
so what it has loaded is run by `Bert` and `Heads`. The annotations are the package's, up to ties
that rounding decides.
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
from radgraph.radgraph import RadGraph
from radgraph.utils import preprocess_reports
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers import AutoConfig, AutoModel, BertTokenizer

from reward_sdk.errors import ConfigError, nearest, one_line
from reward_sdk.models import Graph
from reward_sdk.models.bert import Bert
from reward_sdk.models.dygie import Heads
from reward_sdk.models.folders import check_folder
from reward_sdk.models.published import radgraph as published

MODELS = ("radgraph", "radgraph-xl")
# The package would unpack a vocabulary that is no folder as an archive, wherever that leads.
_FILES = {"config.json": Path.is_file, "weights.th": Path.is_file, "vocabulary": Path.is_dir}
# ours: words, and characters, that are read. Reports have a few hundred words, and more is a policy
# that repeats itself; every entity is compared with every other one, so time grows as the square.
_LONGEST, _WIDEST = 2000, 20_000


class _Tokenizer(BertTokenizer):
    """With the two methods that transformers 5 took away and radgraph calls."""

    def encode_plus(self, *args: Any, **options: Any) -> Any:
        return self(*args, **options)

    def build_inputs_with_special_tokens(self, ids: list[int]) -> list[Any]:
        return [self.cls_token_id, *ids, self.sep_token_id]


class RadGraphExtractor:
    """The extractor: `extract(texts)` gives one `Graph` per text, in order.

    Texts are lower-cased: the released package compares some tokens with their case. What follows
    the first 2,000 words or 20,000 characters of a text is not read, where the package reads it.

    Args:
        package: the model as the radgraph package loads it, which is taken apart.
        tokenizer: the tokenizer of the model's BERT.
        device: a torch device.
    """

    def __init__(self, package: RadGraph, tokenizer: BertTokenizer, device: str) -> None:
        self._kind = package.model_type
        model: Any = package.model.to(device)
        reader: Any = package.reader
        embedder = model._embedder.token_embedder_bert._matched_embedder
        bert = embedder.transformer_model
        heads = bert.config.num_attention_heads
        self._bert = Bert(bert.state_dict(), heads, device, torch.float32)
        self._heads = Heads(model, self._kind)
        self._ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._row = embedder._max_length - 2  # between these

        # The package tokenizes word by word, and reports are made of words that recur.
        @lru_cache(maxsize=1 << 16)
        def pieces(word: str) -> list[int]:
            return tokenizer(reader._normalize_word(word), add_special_tokens=False)["input_ids"]

        self._pieces = pieces

    def __call__(self, texts: Sequence[str]) -> list[Graph]:
        rows = preprocess_reports([text[:_WIDEST].lower() for text in texts], self._kind)
        reports = [row["sentences"][0][:_LONGEST] for row in rows]
        with torch.inference_mode():
            encoded = zip(reports, self._encode(reports), strict=True)
            return [self._heads(words, vectors) if words else () for words, vectors in encoded]

    def _encode(self, reports: list[list[str]]) -> Sequence[Tensor]:
        """(words, hidden) for each: the mean over a word's pieces, zeros where it has none."""
        rows, sizes = [], [0]
        for words in reports:
            pieces = [self._pieces(word) for word in words]
            sizes += map(len, pieces)
            flat = [piece for word in pieces for piece in word]
            for i in range(0, len(flat), self._row):
                rows.append([self._ends[0], *flat[i : i + self._row], self._ends[1]])
        none = torch.empty(0, self._bert.width, device=self._bert.device)  # there may be no words
        encoded = torch.cat([none, *(row[1:-1] for row in self._bert(rows))])
        every = torch.arange(len(encoded), device=encoded.device)
        starts = torch.tensor(sizes, device=encoded.device).cumsum(0)[:-1]
        means = embedding_bag(every, encoded, starts, mode="mean")
        return means.split([len(words) for words in reports])


def load_radgraph(
    model: str = "radgraph-xl", tokenizer: str | None = None, device: str = "cpu"
) -> RadGraphExtractor:
    """Loads a RadGraph model.

    Args:
        model: "radgraph" or "radgraph-xl", looked for where the package keeps them; or a folder
            of one of these names with `config.json`, `vocabulary/` and `weights.th`, as in the
            published archive. Nothing is downloaded.
        tokenizer: a folder with the `vocab.txt` and `config.json` of the model's BERT; by default
            what the model's configuration names, on the hub or in its cache.
        device: a torch device.

    Raises:
        ConfigError: a folder or file is missing, the weights do not fit, there is no tokenizer,
            `check_folder` refuses the folder of either, the configuration names classes, or the
            device is not there.
    """
    folder = published(model).path if model in MODELS else Path(model).expanduser().resolve()
    if folder.name not in MODELS:
        raise ConfigError(
            f"RadGraph weights {model}: the folder's name tells which model it is: "
            f"{nearest(folder.name, MODELS)}"
        )
    if missing := [name for name, there in _FILES.items() if not there(folder / name)]:
        raise ConfigError(
            f"RadGraph weights {folder}: {', '.join(missing)} missing: get "
            f"{published(folder.name).source}"
        )
    check_folder(folder)
    if (lock := folder / "vocabulary/.lock").is_symlink():
        raise ConfigError(f"{lock}: a link, which the radgraph package would write to: remove it")
    name = _bert_name(folder / "config.json")
    source = tokenizer or name
    check_folder(Path(source))
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
        return RadGraphExtractor(package, words, device)
    except Exception as error:  # whatever a broken or foreign folder makes of the package's loader
        raise ConfigError(f"RadGraph weights {folder}: {one_line(error)}") from error
    finally:
        del cached_transformers._model_cache[specification]


def _bert_name(file: Path) -> str:
    """What a configuration calls its BERT, if the package can safely build what it describes.

    Of all that the file says, the package looks at sizes, at the BERT's name in two places, and
    builds what stands below `model.modules`: for a text there it would import a class of that name
    from anywhere and call it. The published models have nothing but numbers there.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        embedder = config["model"]["embedder"]["token_embedders"]["bert"]
        indexer = config["dataset_reader"]["token_indexers"]["bert"]
        name = embedder["model_name"]
        one = isinstance(name, str) and name == indexer["model_name"]
        safe = _is_numbers(config["model"]["modules"])
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise ConfigError(f"RadGraph weights {file}: {error!r}") from error
    if not one:
        raise ConfigError(f"RadGraph weights {file}: its reader and its model name different BERTs")
    if not safe:
        raise ConfigError(
            f"RadGraph weights {file}: refused, because 'modules' of its 'model' holds more than "
            "numbers: it could name code, and the published models have none: do not trust it"
        )
    return name


def _is_numbers(value: Any) -> bool:
    """Whether there are only numbers below."""
    if isinstance(value, dict):
        return all(map(_is_numbers, value.values()))
    return isinstance(value, int | float)
