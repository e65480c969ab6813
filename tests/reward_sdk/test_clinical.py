import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.annotations import read_annotation

from reward_sdk.models import Entity, Graph
from reward_sdk.observations import OBSERVATIONS
from reward_sdk.rewards.clinical import (
    entities_and_relations_f1,
    graphs_f1,
    labels_similarity,
)
from reward_sdk.rewards.findings import labels_f1


def labels(**given: int) -> dict[str, int | None]:
    named = {name.replace("_", " "): value for name, value in given.items()}
    return dict.fromkeys(OBSERVATIONS) | named


def test_signed_similarity_of_hand_made_labels():
    reference = labels(Edema=1, Pneumonia=0, Fracture=-1, No_Finding=1)
    assert labels_similarity(reference, reference) == pytest.approx(1)
    assert labels_similarity(labels(Edema=1), reference) == pytest.approx(1 / 3**0.5)
    assert labels_similarity(labels(Edema=0), reference) == pytest.approx(-1 / 3**0.5)
    assert labels_similarity(labels(No_Finding=1), reference) == 0
    assert labels_similarity(labels(), labels(No_Finding=1)) == 1


ANY_LABELS = st.fixed_dictionaries(
    {name: st.sampled_from([None, 0, 1, -1]) for name in OBSERVATIONS}
)


@given(ANY_LABELS, ANY_LABELS)
def test_scores_of_labels_are_symmetric_and_in_their_range(a, b):
    assert 0 <= labels_f1(a, b, OBSERVATIONS, "positive") <= 1
    assert labels_f1(a, b, OBSERVATIONS, "positive") == labels_f1(b, a, OBSERVATIONS, "positive")
    assert -1 <= labels_similarity(a, b) <= 1
    assert labels_similarity(a, b) == pytest.approx(labels_similarity(b, a))
    assert labels_similarity(a, a) == pytest.approx(1)


@st.composite
def graphs(draw) -> Graph:
    n = draw(st.integers(0, 5))
    words, kinds = (
        st.sampled_from(["lung", "effusion", "left"]),
        st.sampled_from(["OBS-DP", "ANAT"]),
    )
    relation = st.tuples(st.sampled_from(["modify", "located_at"]), st.integers(0, max(0, n - 1)))
    entity = st.builds(Entity, words, kinds, st.lists(relation, max_size=2).map(tuple))
    return tuple(draw(st.lists(entity, min_size=n, max_size=n)))


def annotation(graph: Graph) -> dict:
    return {
        "entities": {
            str(i): {
                "tokens": entity.tokens, "label": entity.label,
                "relations": [[kind, str(other)] for kind, other in entity.relations],
            }
            for i, entity in enumerate(graph)
        }
    }  # fmt: skip


@given(graphs(), graphs())
def test_radgraph_f1_is_that_of_the_radgraph_package_at_every_level(a, b):
    rewards = pytest.importorskip("radgraph.rewards")
    for level in ("simple", "partial", "complete"):
        expected = rewards.compute_reward(annotation(a), annotation(b), level)
        assert graphs_f1(a, b, level) == pytest.approx(expected)
    assert read_annotation(annotation(a)) == a


def dice(a: set, b: set) -> float:
    hits = len(a & b)
    precision, recall = hits / max(len(a), 1), hits / max(len(b), 1)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@given(graphs(), graphs())
def test_entities_and_relations_count_by_half_each(a, b):
    nodes = [{(entity.tokens, entity.label) for entity in graph} for graph in (a, b)]
    edges = [
        {
            (entity.tokens, entity.label, kind, graph[other].tokens, graph[other].label)
            for entity in graph
            for kind, other in entity.relations
        }
        for graph in (a, b)
    ]
    expected = (dice(*nodes) + dice(*edges)) / 2
    assert entities_and_relations_f1(a, b) == pytest.approx(expected)


def test_equal_graphs_without_relations_share_a_half_and_empty_ones_nothing():
    graph = (Entity("effusion", "OBS-DP"),)
    assert entities_and_relations_f1(graph, graph) == 0.5
    assert entities_and_relations_f1((), ()) == 0
