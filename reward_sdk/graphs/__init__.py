"""Report -> RadGraph: the entities of a report and the relations between them (Jain et al., 2021).

An extractor is any function from reports without tags to one `Graph` each, in order;
`reward_sdk.graphs.radgraph.load_radgraph(...)` is the one of the literature.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entity:
    """An anatomy or an observation that a report names.

    Attributes:
        tokens: its words, separated by blanks.
        label: what it is and how certain, e.g. "Observation::definitely absent" or "OBS-DA".
        relations: (type, index of the other entity in the graph), e.g. ("located_at", 1).
    """

    tokens: str
    label: str
    relations: tuple[tuple[str, int], ...] = ()


Graph = tuple[Entity, ...]
Extractor = Callable[[Sequence[str]], Sequence[Graph]]


def read_annotation(annotation: Mapping[str, Any]) -> Graph:
    """The graph of one annotation in the radgraph package's form.

    Args:
        annotation: {"entities": {id: {"tokens", "label", "relations": [[type, id], ...]}}, ...}.
    """
    entities = annotation["entities"]
    place = {key: i for i, key in enumerate(entities)}
    return tuple(
        Entity(
            entity["tokens"],
            entity["label"],
            tuple((kind, place[other]) for kind, other in entity["relations"]),
        )
        for entity in entities.values()
    )
