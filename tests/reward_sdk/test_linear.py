"""No text stops a server: what hurts a pattern or a reward, repeated to the longest text that the
server takes, is read in a time that does not grow with the square of its length."""

import time
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from reward_sdk.adapters.openrlhf import response_of
from reward_sdk.models import rule_findings, rule_labeler
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import NORMALISE, parse_response, sentences, wrap_report
from reward_sdk.types import Sample
from reward_sdk.wire import MAX_TEXT

SECONDS = 2.0  # quadratic patterns take ten and more; the slowest of these takes 0.4
PIECES = [
    " ", "\n", "\n ", ". ", "!", "-", "a", "a-", "1", "1. ", "a b ", "</think><report>", "<",
    "\u0130",  # two characters in lower case, and a word of its own
]  # fmt: skip
CLAIMS = [
    ":cardiac", "bones/", "lung ", "heart size size ", "and mediastinum heart ", "no,edema,",
    "no effusion, small edema ", "not never may edema ", "edema is x ", "no is is x chf ",
    "no " + "is " * 60 + "chf " * 60, "no edema" + ", small edema" * 21 + " or ", "opaci-",
    "enlarged of the x ", "collapse of ", "significantly ", "vs.", "correlat",
    "opacity ", "opacity likely edema, ", "lungs: clear ", "**a** ", "? ", "History: x ", "3 cm x ",
]  # fmt: skip
LIGHT = ["format", "rouge_l", "bleu", "gleu", "meteor", "cider", "length", "repetition"]


def endless(piece: str) -> str:
    """The piece again and again, up to another letter at the end of the longest text."""
    return (piece * MAX_TEXT)[: MAX_TEXT - len("<report>  </report>") - 1] + "x"


def seconds(read: Callable[[], object]) -> float:
    """Processor time of this thread, so that a busy machine counts for little."""
    began = time.thread_time()
    read()
    return time.thread_time() - began


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("read", [parse_response, sentences, *NORMALISE.values()])
def test_an_endless_text_is_divided_in_time(read, piece):
    assert seconds(lambda: read(endless(piece))) < SECONDS


@pytest.mark.parametrize("piece", PIECES)
def test_an_endless_response_is_found_behind_its_prompt_in_time(piece):
    text = endless(piece)
    assert seconds(lambda: response_of(f"{text}y{text}", f"z{text}")) < SECONDS


@pytest.mark.parametrize("piece", [*PIECES, *CLAIMS])
def test_the_rule_labeler_reads_an_endless_report_in_time(piece, monkeypatch):
    # Else the memory for sentences that recur would hide what a text of other numbers costs.
    monkeypatch.setattr(rule_labeler, "_label_sentence", rule_labeler._label_sentence.__wrapped__)
    assert seconds(lambda: rule_labeler.label_reports([endless(piece)])) < SECONDS


@pytest.mark.parametrize("piece", [*PIECES, *CLAIMS])
def test_findings_of_an_endless_report_are_read_in_time(piece, monkeypatch):
    monkeypatch.setattr(rule_findings, "_stated", rule_findings._stated.__wrapped__)
    assert seconds(lambda: rule_findings.read_findings([endless(piece)])) < SECONDS


@pytest.fixture(scope="module")
def chexbert(tmp_path_factory):
    pytest.importorskip("transformers")
    from support.tiny_bert import write_chexbert, write_tokenizer

    from reward_sdk.models.chexbert import load_chexbert

    folder = tmp_path_factory.mktemp("chexbert")
    tokenizer = write_tokenizer(folder / "bert")
    return load_chexbert(str(write_chexbert(folder / "chexbert.pth")), str(tokenizer))


@pytest.mark.parametrize("piece", PIECES)
def test_chexbert_reads_an_endless_report_in_time(chexbert, piece):
    assert seconds(lambda: chexbert([endless(piece)])) < SECONDS


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("piece", PIECES)
def test_two_endless_texts_are_compared_in_time(name, piece, tmp_path):
    if name == "meteor" and not find_spec("nltk"):
        pytest.skip("nltk is optional")
    (tmp_path / "corpus.txt").write_text("No effusion.\nClear lungs.\n")
    settings = {"corpus": str(tmp_path / "corpus.txt")} if name == "cider" else {}
    rewards = RewardSet.from_config({name: settings})
    text = endless(piece)
    sample = Sample(wrap_report(text), text[::-1])
    assert seconds(lambda: rewards.score([sample])) < SECONDS


@pytest.mark.parametrize("name", ["rouge_l", "bleu", "gleu"])
def test_two_endless_texts_of_other_words_are_compared_in_time(name):
    words = [f"{i:x}" for i in range(MAX_TEXT // 6)]
    sample = Sample(wrap_report(" ".join(words)), " ".join(reversed(words)))
    rewards = RewardSet.from_config({name: {}})
    assert seconds(lambda: rewards.score([sample])) < SECONDS
