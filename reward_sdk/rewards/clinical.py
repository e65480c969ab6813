"""Rewards for what a report says clinically, by CheXbert and RadGraph, measured against the
reference.

The F1 of CheXbert's labels is that of `reward_sdk.rewards.findings`; the F1 of two graphs is what
the radgraph package defines, 0 if either text has no entities. The embedding that CheXbert reads
labels from is defined for every text, and so is the cosine of two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Set as AbstractSet
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from reward_sdk.errors import ConfigError
from reward_sdk.models import Graph
from reward_sdk.models.annotator import Annotator
from reward_sdk.observations import CHEXPERT_5, FINDINGS, OBSERVATIONS, Labels, Uncertain
from reward_sdk.registry import reward
from reward_sdk.rewards.findings import ClinicalReward, f1, known_observations, labels_f1

if TYPE_CHECKING:
    from reward_sdk.models.chexbert import Reading

Level = Literal["simple", "partial", "complete"]
Precision = Literal["float32", "bfloat16"]


def labels_similarity(report: Labels, reference: Labels) -> float:
    """Cosine of the signed labels of two reports, in [-1, 1].

    Present and uncertain count +1, absent -1, blank 0; No Finding is left out, since it repeats the
    others (borrowed: MRG-R1, arXiv 2512.16145). 1 if both are blank, 0 if one is.
    """
    a, b = ([_SIGN[labels[name]] for name in FINDINGS] for labels in (report, reference))
    norms = sum(map(abs, a)) * sum(map(abs, b))
    if norms == 0:
        return float(a == b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms**0.5


_SIGN = {1: 1, -1: 1, 0: -1, None: 0}


def embeddings_similarity(report: Reading, reference: Reading) -> float:
    """Cosine of the [CLS] embeddings of two reports, in [-1, 1]: the SembScore of CXR-Report-Metric
    (Yu et al., 2023). Not a number if an embedding is none, which a set takes for a failure."""
    return max(min(float(report.embedding @ reference.embedding), 1.0), -1.0)  # rounding


def graphs_f1(report: Graph, reference: Graph, level: Level) -> float:
    """RadGraph F1 of two graphs, in [0, 1].

    Args:
        report: graph of the judged report.
        reference: graph of the reference report.
        level: what must agree: "simple" words and label of an entity (RG_E), "partial" also
            whether it has a relation (RG_ER), "complete" every relation with its type and the words
            of its target.
    """
    if not report or not reference:
        return 0.0
    return f1(_facts(report, level), _facts(reference, level))


def _facts(graph: Graph, level: Level) -> set[tuple[object, ...]]:
    facts: set[tuple[object, ...]] = set()
    for entity in graph:
        own = (entity.tokens, entity.label)
        if level == "simple" or not entity.relations:
            facts.add(own)
        elif level == "partial":
            facts.add((*own, True))
        else:
            facts |= {(*own, kind, graph[other].tokens) for kind, other in entity.relations}
    return facts


def entities_and_relations_f1(report: Graph, reference: Graph) -> float:
    """Mean of the F1 of entities and that of relations of two graphs, in [0, 1], as
    CXR-Report-Metric has it (Yu et al., 2023).

    An entity is its words and label, a relation its type and both entities. An F1 is 0 where either
    set is empty, so that equal reports without relations earn .5 at the most.
    """
    pairs = zip(_entities_and_relations(report), _entities_and_relations(reference), strict=True)
    return sum(f1(a, b) if a and b else 0.0 for a, b in pairs) / 2


def _entities_and_relations(graph: Graph) -> tuple[AbstractSet[Hashable], AbstractSet[Hashable]]:
    entities = [(entity.tokens, entity.label) for entity in graph]
    relations = {
        (source, entities[target], kind)
        for source, entity in zip(entities, graph, strict=True)
        for kind, target in entity.relations
    }
    return set(entities), relations


@reward("chexbert_f1")
def chexbert_f1(
    model: str | None = None,
    tokenizer: str = "bert-base-uncased",
    observations: Literal[14, 5] | list[str] = 14,
    uncertain: Uncertain = "positive",
    precision: Precision = "float32",
    device: str = "cpu",
) -> ClinicalReward:
    """F1 of the observations that report and reference assert, by CheXbert, in [0, 1].

    Args:
        model: file of CheXbert's checkpoint; by default the place where f1chexbert keeps it.
        tokenizer: folder with BERT's `vocab.txt`, or a name on the hub.
        observations: observations that count: all 14, the 5 of `CHEXPERT_5`, or a list of names of
            `OBSERVATIONS`.
        uncertain: what an uncertain observation counts as: "positive" (asserted) or "negative" (not
            asserted).
        precision: type of the matrix products: "float32" gives f1chexbert's labels, "bfloat16" is
            faster where the processor has it and moves labels whose margin is thin.
        device: a torch device.
    """
    names = {14: OBSERVATIONS, 5: CHEXPERT_5}
    chosen = (
        names[observations] if isinstance(observations, int) else known_observations(observations)
    )
    score = partial(labels_f1, observations=chosen, uncertain=uncertain)
    annotator = shared_chexbert(model, tokenizer, precision, device)
    return ClinicalReward("chexbert_f1", annotator, _of_labels(score))


@reward("chexbert_similarity")
def chexbert_similarity(
    model: str | None = None,
    tokenizer: str = "bert-base-uncased",
    precision: Precision = "float32",
    device: str = "cpu",
) -> ClinicalReward:
    """Cosine of the signed CheXbert labels of report and reference, in [-1, 1].

    Unlike an F1 it also pays for findings that both call absent, and a contradiction costs more
    than silence.

    Args:
        model: file of CheXbert's checkpoint; by default the place where f1chexbert keeps it.
        tokenizer: folder with BERT's `vocab.txt`, or a name on the hub.
        precision: type of the matrix products: "float32" gives f1chexbert's labels, "bfloat16" is
            faster where the processor has it and moves labels whose margin is thin.
        device: a torch device.
    """
    annotator = shared_chexbert(model, tokenizer, precision, device)
    score = _of_labels(labels_similarity)
    return ClinicalReward("chexbert_similarity", annotator, score, (-1.0, 1.0))


def _of_labels(score: Callable[[Labels, Labels], float]) -> Callable[[Reading, Reading], float]:
    return lambda report, reference: score(report.labels, reference.labels)


@reward("semb_score")
def semb_score(
    model: str | None = None,
    tokenizer: str = "bert-base-uncased",
    precision: Precision = "float32",
    device: str = "cpu",
) -> ClinicalReward:
    """SembScore: cosine of CheXbert's embeddings of report and reference, in [-1, 1].

    Args:
        model: file of CheXbert's checkpoint; by default the place where f1chexbert keeps it.
        tokenizer: folder with BERT's `vocab.txt`, or a name on the hub.
        precision: type of the matrix products: "float32" gives the published number, "bfloat16" is
            faster where the processor has it.
        device: a torch device.
    """
    annotator = shared_chexbert(model, tokenizer, precision, device)
    return ClinicalReward("semb_score", annotator, embeddings_similarity, (-1.0, 1.0))


@reward("radgraph_f1")
def radgraph_f1(
    model: str = "radgraph-xl",
    level: Level = "partial",
    tokenizer: str | None = None,
    device: str = "cpu",
) -> ClinicalReward:
    """RadGraph F1 of report and reference, in [0, 1].

    Args:
        model: "radgraph" or "radgraph-xl", looked for where the radgraph package keeps them, or a
            folder of one of these names.
        level: what must agree, as `graphs_f1` defines it: "simple", "partial", which most papers
            report, or "complete".
        tokenizer: folder with the `vocab.txt` and `config.json` of the model's BERT; by default
            what the model's configuration names.
        device: a torch device.
    """
    annotator = shared_radgraph(model, tokenizer, device)
    return ClinicalReward("radgraph_f1", annotator, partial(graphs_f1, level=level))


# Rewards of one process that read the same weights share them, and what they have annotated.
@lru_cache
def shared_chexbert(
    model: str | None, tokenizer: str, precision: Precision, device: str
) -> Annotator[Reading]:
    """CheXbert, as `load_chexbert` loads it, in this process."""
    try:
        from reward_sdk.models.chexbert import load_chexbert
    except ImportError as error:
        raise ConfigError(f"CheXbert: {error}: pip install 'valor-rrg[clinical]'") from error
    return Annotator(load_chexbert(model, tokenizer, precision, device).read)


@lru_cache
def shared_radgraph(model: str, tokenizer: str | None, device: str) -> Annotator[Graph]:
    """A RadGraph model, as `load_radgraph` loads it, in this process."""
    try:
        from reward_sdk.models.radgraph import load_radgraph
    except ImportError as error:
        raise ConfigError(f"RadGraph: {error}: pip install 'valor-rrg[clinical]'") from error
    return Annotator(load_radgraph(model, tokenizer, device))
