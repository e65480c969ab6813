"""DyGIE's heads (Wadden et al., 2019): the encoded words of a report -> its entities and relations.

The package writes out what describes each of a report's hundreds of spans (its first word, its last
word and its width: 1,556 numbers) and each pair of the spans that it keeps (4,668), and most of its
time goes into the first layer over them. A linear layer over parts is the sum of layers over each
part: here they see each word and each width once, and spans add up what they consist of. And since
the package drops relations of what is no entity, only pairs of entities are looked at.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from reward_sdk.models import Entity, Graph

_PAIRS = 1 << 16  # ours: pairs of entities at a time, 400 MB; two hundred words give 10,000


class Heads:
    """The heads of one RadGraph model, which make a graph of encoded words.

    Args:
        model: the radgraph package's DyGIE model; it loses its heads' first layers.
        dataset: name that the model's sets of labels begin with, such as "radgraph-xl".

    Raises:
        ValueError: the model has a part that the published ones do not have.
    """

    def __init__(self, model: Any, dataset: str) -> None:
        if model._coref.coref_prop:
            raise ValueError("spans that depend on coreference are not supported")
        model.requires_grad_(False)
        tagger, relation = model._ner, model._relation
        labels, kinds = f"{dataset}__ner_labels", f"{dataset}__relation_labels"
        self._labels, self._kinds = map(model.vocab.get_index_to_token_vocabulary, (labels, kinds))
        self._kept_per_word = relation._spans_per_word
        self._widths = model._endpoint_span_extractor._span_width_embedding.weight

        entity, self._entity_scores = _split(*(m._module for m in tagger._ner_scorers[labels]))
        pruner = relation._mention_pruners[kinds]._scorer
        mention, self._mention_scores = _split(*(m._module for m in pruner))
        weight = torch.cat((entity.weight, mention.weight))  # both are asked about every span
        places = weight.shape[1] - self._widths.shape[1]
        self._first, self._last = weight[:, :places].chunk(2, 1)
        bias = torch.cat((entity.bias, mention.bias))
        self._width = linear(self._widths, weight[:, places:], bias)

        pair, self._pair_scores = _split(
            relation._relation_feedforwards[kinds], relation._relation_scorers[kinds]
        )
        self._one, self._other, self._product = pair.weight.chunk(3, 1)
        self._pair_bias = pair.bias

    def __call__(self, words: list[str], encoded: Tensor) -> Graph:
        """The graph of one report, from its words and their encodings, (words, hidden)."""
        place = torch.arange(len(words), device=encoded.device)
        width = torch.arange(len(self._widths), device=encoded.device)
        starts, widths = (place[:, None] + width < len(words)).nonzero().unbind(1)
        ends = starts + widths  # its last word

        first, last = linear(encoded, self._first), linear(encoded, self._last)
        hidden = first[starts] + last[ends] + self._width[widths]
        for_entities, for_mentions = hidden.chunk(2, 1)
        labels = pad(self._entity_scores(for_entities), (1, 0)).argmax(1)  # "none" scores 0
        mentions = self._mention_scores(for_mentions).squeeze(1)
        kept = mentions.topk(ceil(len(words) * self._kept_per_word)).indices.sort().values
        kept = kept[labels[kept] > 0]
        spans = (encoded[starts[kept]], encoded[ends[kept]], self._widths[widths[kept]])
        kinds = self._relations(torch.cat(spans, 1), mentions[kept])

        found = labels.nonzero().squeeze(1)
        relations: list[list[tuple[str, int]]] = [[] for _ in found]
        index = torch.searchsorted(found, kept).tolist()  # of what is kept, among the entities
        one, other = (kinds >= 0).nonzero().unbind(1)
        for i, j, kind in torch.stack((one, other, kinds[one, other]), 1).tolist():
            relations[index[i]].append((self._kinds[kind], index[j]))
        entities = torch.stack((starts, ends, labels), 1)[found].tolist()
        return tuple(
            Entity(" ".join(words[start : end + 1]), self._labels[label], tuple(related))
            for (start, end, label), related in zip(entities, relations, strict=True)
        )

    def _relations(self, spans: Tensor, mentions: Tensor) -> Tensor:
        """(spans, spans): which relation one has to the other, -1 for none."""
        one, other = linear(spans, self._one, self._pair_bias), linear(spans, self._other)
        kinds, size = [], max(1, _PAIRS // max(1, len(spans)))
        for some in zip(one.split(size), spans.split(size), mentions.split(size), strict=True):
            one_, spans_, mentions_ = (part[:, None] for part in some)
            scores = self._pair_scores(one_ + other + linear(spans_ * spans, self._product))
            scores += (mentions_ + mentions)[..., None]
            kinds.append(pad(scores, (1, 0)).argmax(2) - 1)  # "none" scores 0
        return torch.cat(kinds)


def _split(feedforward: Any, scorer: nn.Linear) -> tuple[nn.Linear, nn.Sequential]:
    """The first layer, and all that follows it."""
    first, feedforward._linear_layers[0] = feedforward._linear_layers[0], nn.Identity()
    return first, nn.Sequential(feedforward, scorer)
