import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import iu_findings
from support.shared import DATA

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.cider import Cider, read_reports
from reward_sdk.text import tokens, wrap_report
from reward_sdk.types import Sample

GOLDEN = DATA / "golden/iu_text_metrics.json"
TOKENS = st.lists(st.sampled_from("abcd"), max_size=12)
CORPUS = ["Clear lungs.", "No effusion.", "Clear, no edema seen."]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(CORPUS))
    return str(path)


def rewards(corpus: str, **settings: object) -> RewardSet:
    return RewardSet.from_config({"cider": {"corpus": corpus, **settings}})


def value(corpus: str, report: str, reference: str, **settings: object) -> float | None:
    (score,) = rewards(corpus, **settings).score([Sample(wrap_report(report), reference)])
    assert score.parts["cider"].status == "ok", score.parts["cider"].reason
    return score.total


@pytest.mark.skipif(not (GOLDEN.exists() and iu_findings()), reason="shared data absent")
def test_cider_equals_pycocoevalcap_on_iu_reports():
    pairs = json.loads(GOLDEN.read_text())["pairs"]
    texts = {uid: tokens(text) for uid, text in iu_findings().items()}
    cider = Cider([texts[pair["ref"]] for pair in pairs])
    for pair in pairs:
        ours = cider(texts[pair["hyp"]], texts[pair["ref"]])
        assert ours == pytest.approx(pair["cider"], abs=1e-12)


@given(st.lists(TOKENS, min_size=1, max_size=5), TOKENS, TOKENS)
def test_cider_stays_between_0_and_10(documents, a, b):
    assert 0 <= Cider(documents)(a, b) <= 10


@given(st.lists(st.sampled_from("abcd"), min_size=4))
def test_equal_texts_of_words_that_are_rare_score_10(a):
    assert Cider([["x"], ["y"]])(a, a) == pytest.approx(10)


def test_words_that_every_document_has_are_worth_nothing():
    assert Cider([["no", "edema"], ["no", "effusion"]])(["no"], ["no"]) == 0


def test_a_longer_report_earns_less_however_much_it_repeats_the_reference():
    cider = Cider([["x"], ["y"]])
    assert cider(list("abcd") * 3, list("abcd")) < cider(list("abcd"), list("abcd")) / 2


def test_the_reward_is_a_tenth_of_cider(corpus):
    cider = Cider([tokens(text) for text in CORPUS])
    expected = cider(["clear", "lungs"], ["clear", "chest"]) / 10
    assert value(corpus, "Clear lungs.", "Clear chest.") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("report", "reference", "expected"),
    [("...", "...", 1), ("...", "!", 0), ("...", "Clear.", 0), ("Clear.", "!", 0)],
)
def test_equal_texts_without_a_word_score_1_and_others_0(corpus, report, reference, expected):
    assert value(corpus, report, reference) == expected


def test_corpus_and_reports_share_their_normalisation(corpus):
    assert value(corpus, "CLEAR", "clear", normalise="whitespace") == 0
    assert value(corpus, "CLEAR", "clear") > 0


def test_a_batch_scores_as_its_samples_do_alone(corpus):
    set_ = rewards(corpus)
    samples = [Sample(wrap_report(report), CORPUS[0]) for report in [*CORPUS, "é\u2028", "..."]]
    assert set_.score(samples) == [score for sample in samples for score in set_.score([sample])]


def test_a_report_of_100_kb_is_scored_in_time(corpus):
    begin = time.process_time()
    value(corpus, "no effusion " * 8_000, "clear lungs " * 8_000)
    assert time.process_time() - begin < 5


def test_a_studies_file_is_a_corpus(tmp_path):
    path = tmp_path / "studies.jsonl"
    rows = [{"report": "One."}, {"report": None}, {"id": "s"}, {"reference": "Two.\u2028Three."}]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_reports(str(path)) == ["One.", "Two.\u2028Three."]


def test_a_text_file_has_one_report_a_line(corpus):
    assert read_reports(corpus) == CORPUS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: No such file"),
        ("empty.txt", b"\n \n", "empty.txt holds no report"),
        ("other.jsonl", b'{"text": "Clear."}', "other.jsonl holds no report"),
        ("bad.txt", b"\xff\xfe", "bad.txt is not UTF-8"),
        ("bad.jsonl", b'{"report": "a"}\n{', "bad.jsonl, line 2 is not JSON"),
        ("list.jsonl", b"[1]", "list.jsonl, line 1: not a JSON object"),
        ("number.jsonl", b'{"report": 1}', "number.jsonl, line 1: 'report' must be a text"),
        ("one.txt", b"Clear.", "one.txt holds one report"),
    ],
)
def test_a_corpus_that_cannot_serve_is_refused_with_its_place(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        rewards(str(tmp_path / name))
