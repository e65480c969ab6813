"""The radgraph package's form of an annotation, as golden files hold it."""

from collections.abc import Mapping
from typing import Any

from reward_sdk.models import Entity, Graph


def read_annotation(annotation: Mapping[str, Any]) -> Graph:
    """The graph of one annotation.

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
