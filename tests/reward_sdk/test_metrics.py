import json
import random
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import iu_findings
from support.shared import DATA

from reward_sdk.metrics import corpus_metrics, label_agreement
from reward_sdk.observations import CHEXPERT_5, OBSERVATIONS
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


def random_labels(n, seed):
    draw = random.Random(seed)
    return [{o: draw.choice([1, 0, -1, None]) for o in OBSERVATIONS} for _ in range(n)]


def f1(pairs, names, counted):
    """By its definition, of the cells of all names."""
    cells = [(ours[o] in counted, theirs[o] in counted) for ours, theirs in pairs for o in names]
    return 2 * sum(a and b for a, b in cells) / sum(a + b for a, b in cells)


@pytest.mark.parametrize(("rule", "counted"), [("positive", (1, -1)), ("negative", (1,))])
def test_agreement_is_that_of_the_cells_pooled_and_averaged(rule, counted):
    found, gold = random_labels(40, 0), random_labels(40, 1)
    pairs = list(zip(found, gold, strict=True))
    got = label_agreement(found, gold, OBSERVATIONS, rule)
    for names in (OBSERVATIONS, CHEXPERT_5):
        each = [f1(pairs, [name], counted) for name in names]
        assert [got[name].f1 for name in names] == pytest.approx(each)
        assert got[f"micro-{len(names)}"].f1 == pytest.approx(f1(pairs, names, counted))
        assert got[f"macro-{len(names)}"].f1 == pytest.approx(sum(each) / len(names))
        assert got[f"micro-{len(names)}"].negative_f1 == pytest.approx(f1(pairs, names, (0,)))


def test_the_interval_of_agreement_is_that_of_drawing_studies_one_by_one():
    found, gold = random_labels(60, 2), random_labels(60, 3)
    pairs, draw = list(zip(found, gold, strict=True)), random.Random(4)
    drawn = sorted(f1(draw.choices(pairs, k=60), ["Edema"], (1, -1)) for _ in range(1000))
    interval = label_agreement(found, gold, ["Edema"])["Edema"].interval
    assert interval == pytest.approx((drawn[24], drawn[975]), abs=0.03)


def test_an_observation_that_neither_side_has_counts_in_no_mean():
    blank = dict.fromkeys(OBSERVATIONS)
    got = label_agreement([{**blank, "Edema": 1}], [{**blank, "Edema": 1}], ["Edema", "Fracture"])
    assert got["Fracture"].f1 is got["Fracture"].precision is got["Fracture"].recall is None
    assert got["macro-2"].f1 == got["micro-2"].f1 == 1


@pytest.mark.parametrize("sizes", [(0, 0), (1, 2)])
def test_agreement_needs_both_labels_of_at_least_one_study(sizes):
    with pytest.raises(ValueError, match="at least one study"):
        label_agreement(*(random_labels(n, 0) for n in sizes), OBSERVATIONS)
