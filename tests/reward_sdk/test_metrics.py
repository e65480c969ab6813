import json
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import iu_findings
from support.shared import DATA

from reward_sdk.metrics import corpus_metrics
from reward_sdk.rewards.wording import meteor_score, rouge_l_score
from reward_sdk.text import tokens

GOLDEN = DATA / "golden/iu_text_metrics.json"
TEXTS = st.text(st.sampled_from("ab. é"), max_size=30)


@pytest.fixture(scope="module")
def golden() -> tuple[dict, list[str], list[str]]:
    """Golden values of the corpus, its reports and references.

    The file's own cleaning rule and "iu" give the same tokens for all texts of these 100 pairs.
    Over all of IU-XRay they differ in 3 reports, which have "<" or ">" in them.
    """
    if not GOLDEN.exists() or not (texts := iu_findings()):
        pytest.skip("shared data or torchxrayvision absent")
    content = json.loads(GOLDEN.read_text())
    sides = ([texts[pair[side]] for pair in content["pairs"]] for side in ("hyp", "ref"))
    return content["corpus"], *sides


def test_corpus_values_equal_pycocoevalcap_on_iu_reports(golden):
    expected, reports, references = golden
    ours = corpus_metrics(reports, references, meteor=False)
    assert [ours[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(expected["bleu"], abs=1e-8)
    assert ours["rouge_l"] == pytest.approx(expected["rouge_l"], abs=1e-12)
    assert ours["cider"] == pytest.approx(expected["cider"], abs=1e-12)


def test_corpus_gleu_equals_that_of_nltk(golden):
    nltk = pytest.importorskip("nltk.translate.gleu_score")
    _, reports, references = golden
    expected = nltk.corpus_gleu([[tokens(b)] for b in references], [tokens(a) for a in reports])
    assert corpus_metrics(reports, references, meteor=False)["gleu"] == pytest.approx(expected)


@pytest.mark.skipif(find_spec("nltk") is None, reason="nltk is optional")
def test_meteor_and_rouge_l_are_means_of_the_pairs():
    reports, references = ["Clear lungs.", "No edema."], ["Lungs are clear.", "No effusion."]
    ours = corpus_metrics(reports, references)
    pairs = [(tokens(a), tokens(b)) for a, b in zip(reports, references, strict=True)]
    assert ours["meteor"] == pytest.approx(sum(meteor_score(*pair) for pair in pairs) / 2)
    assert ours["rouge_l"] == pytest.approx(sum(rouge_l_score(*pair) for pair in pairs) / 2)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_every_value_is_finite_and_in_range(pairs):
    reports, references = zip(*pairs, strict=True)
    ours = corpus_metrics(reports, references, meteor=False)
    assert 0 <= ours.pop("cider") <= 10
    assert all(0 <= value <= 1 for value in ours.values())  # and so finite


@given(st.permutations(range(4)))
def test_the_order_of_the_pairs_does_not_matter(order):
    reports = ["Clear lungs.", "", "No effusion or edema.", "Large heart."]
    references = ["Lungs are clear.", "Clear.", "No effusion.", "The heart is large."]
    ours = corpus_metrics([reports[i] for i in order], [references[i] for i in order], meteor=False)
    assert ours == pytest.approx(corpus_metrics(reports, references, meteor=False))


def test_equal_reports_have_the_highest_values():
    texts = ["The lungs are clear.", "There is no pleural effusion."]
    ours = corpus_metrics(texts, texts, meteor=False)
    assert ours.pop("cider") == pytest.approx(10)
    assert list(ours.values()) == pytest.approx([1] * len(ours))


def test_the_normalisation_is_the_one_named():
    upper, lower = ["Clear lungs again today."], ["clear lungs again today."]
    assert corpus_metrics(upper, lower, "whitespace", meteor=False)["bleu_1"] == 0.75
    assert corpus_metrics(upper, lower, "r2gen", meteor=False)["bleu_1"] == pytest.approx(1)


def test_stop_tokens_are_no_reason_to_warn(caplog):
    corpus_metrics(["Clear."] * 200, ["Clear."] * 200, "r2gen", meteor=False)
    assert not caplog.records


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least one pair"):
        corpus_metrics([], [])


def test_lists_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        corpus_metrics(["Clear."], ["Clear.", "Clear."])
