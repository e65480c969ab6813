"""Annotating reports for rewards: in batches, and no text twice.

In GRPO eight or more responses share one reference, which returns with every epoch, and responses
repeat each other. A labeler or graph extractor behind a reward therefore sees each new text once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

from reward_sdk.types import Sample

Annotation = TypeVar("Annotation")

_PATIENCE = 20.0  # ours: seconds; far longer than a batch takes, far shorter than a deadline

REFERENCES = 1 << 16  # ours: references remembered
_LONGEST = 4000  # ours: characters of a text that is remembered; reports have a few hundred
RESPONSES = 1 << 12  # ours: responses remembered; few return, and then soon


class Turn:
    """A lock that lets one thread work at a time, so that no two do the same work; but a call that
    hangs must not hang all others for ever, so whoever has waited in vain gives it up, and the
    others need not wait."""

    def __init__(self) -> None:
        self._lock = Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn, which ends with the context."""
        while not (lock := self._lock).acquire(timeout=_PATIENCE):
            if lock is self._lock:
                self._lock = Lock()
        try:
            yield
        finally:
            lock.release()


class Annotator(Generic[Annotation]):
    """Annotations of the reports and references of samples. Thread-safe.

    Args:
        annotate: makes one annotation for each of a list of texts, in order; called in one thread
            at a time, unless a call hangs.
    """

    def __init__(self, annotate: Callable[[list[str]], Sequence[Annotation]]) -> None:
        self._annotate = annotate
        self._references: OrderedDict[str, Annotation] = OrderedDict()
        self._responses: OrderedDict[str, Annotation] = OrderedDict()
        self._turn, self._lock = Turn(), Lock()

    def pairs(self, samples: Sequence[Sample]) -> list[tuple[Annotation, Annotation]]:
        """(of the report, of the reference) for every sample; both texts must be there.

        All that is new in the batch goes through `annotate` in one call.
        """
        reports = [sample.report or "" for sample in samples]
        references = [sample.reference or "" for sample in samples]
        with self._turn.taken():
            with self._lock:
                known = {
                    t: a for t in references if (a := _recall(self._references, t)) is not None
                }
                known |= {t: a for t in reports if (a := _recall(self._responses, t)) is not None}
            new = list(dict.fromkeys(t for t in (*references, *reports) if t not in known))
            if new:
                known |= zip(new, self._annotate(new), strict=True)
        with self._lock:
            _remember(self._references, references, known, REFERENCES)
            _remember(self._responses, reports, known, RESPONSES)
        return [(known[a], known[b]) for a, b in zip(reports, references, strict=True)]


def _recall(memory: OrderedDict[str, Annotation], text: str) -> Annotation | None:
    if text in memory:
        memory.move_to_end(text)
    return memory.get(text)


def _remember(
    memory: OrderedDict[str, Annotation],
    texts: Iterable[str],
    known: dict[str, Annotation],
    size: int,
) -> None:
    memory.update((text, known[text]) for text in texts if len(text) <= _LONGEST)
    while len(memory) > size:
        memory.popitem(last=False)
