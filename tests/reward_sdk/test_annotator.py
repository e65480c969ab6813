import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward_sdk.models import annotator as module
from reward_sdk.models.annotator import Annotator
from reward_sdk.types import Sample


class Upper:
    """Annotates a text with itself in capitals, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[str]:
        self.calls.append(list(texts))
        return [text.upper() for text in texts]


def samples(*pairs: tuple[str, str]) -> list[Sample]:
    return [Sample(f"<report>{report}</report>", reference) for report, reference in pairs]


def test_every_sample_gets_the_annotations_of_its_own_texts_in_order():
    pairs = Annotator(Upper()).pairs(samples(("a", "x"), ("b", "y"), ("a", "y")))
    assert pairs == [("A", "X"), ("B", "Y"), ("A", "Y")]


def test_all_new_texts_of_a_batch_are_annotated_in_one_call_and_each_once():
    upper = Upper()
    Annotator(upper).pairs(samples(("a", "x"), ("b", "x"), ("a", "x"), ("x", "x")))
    assert upper.calls == [["x", "a", "b"]]


def test_what_was_annotated_is_not_annotated_again():
    upper = Upper()
    annotator = Annotator(upper)
    annotator.pairs(samples(("a", "x")))
    annotator.pairs(samples(("a", "x"), ("b", "x")))
    assert upper.calls == [["x", "a"], ["b"]]


def test_references_outlive_many_responses(monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 2)
    upper = Upper()
    annotator = Annotator(upper)
    for i in range(10):
        annotator.pairs(samples((f"r{i}", "x")))
    annotator.pairs(samples(("r0", "x")))
    asked = [text for call in upper.calls for text in call]
    assert asked.count("x") == 1
    assert asked.count("r0") == 2


def test_a_batch_larger_than_the_memory_is_annotated_whole(monkeypatch):
    monkeypatch.setattr(module, "RESPONSES", 1)
    monkeypatch.setattr(module, "REFERENCES", 1)
    pairs = Annotator(Upper()).pairs(samples(*((f"a{i}", f"x{i}") for i in range(5))))
    assert pairs == [(f"A{i}", f"X{i}") for i in range(5)]


def test_threads_get_their_own_results_and_share_what_is_known():
    upper = Upper()
    annotator = Annotator(upper)
    batches = [samples(*((f"a{i % 3}", f"x{j}") for i in range(4))) for j in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(annotator.pairs, batches))
    assert results == [[(f"A{i % 3}", f"X{j}") for i in range(4)] for j in range(8)]
    asked = [text for call in upper.calls for text in call]
    assert sorted(asked) == sorted(set(asked))


def test_an_annotator_that_fails_leaves_nothing_behind():
    broken = [True]

    def annotate_(texts: list[str]) -> list[str]:
        if broken[0]:
            raise RuntimeError("out of memory")
        return [text.upper() for text in texts]

    annotator = Annotator(annotate_)
    with pytest.raises(RuntimeError):
        annotator.pairs(samples(("a", "x")))
    broken[0] = False
    assert annotator.pairs(samples(("a", "x"))) == [("A", "X")]


def test_an_annotator_that_loses_a_text_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        Annotator(lambda texts: texts[1:]).pairs(samples(("a", "x")))


def test_a_call_that_hangs_does_not_hang_the_others_for_ever(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    free, started = threading.Event(), threading.Event()

    def hang(texts):
        if "hang" in texts:
            started.set()
            free.wait(20)
        return [len(text) for text in texts]

    annotator = Annotator(hang)
    hanging = threading.Thread(
        target=lambda: annotator.pairs([Sample("<report> hang </report>", "b")]), daemon=True
    )
    hanging.start()
    started.wait(5)
    assert annotator.pairs([Sample("<report> a </report>", "ccc")]) == [(1, 3)]
    free.set()
    hanging.join(5)
    assert annotator.pairs([Sample("<report> hang </report>", "b")]) == [(4, 1)]
