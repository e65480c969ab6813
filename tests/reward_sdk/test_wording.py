import json
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import iu_findings
from support.shared import DATA

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards import wording
from reward_sdk.rewards.wording import bleu_score, gleu_score, meteor_score, rouge_l_score
from reward_sdk.text import tokens, wrap_report
from reward_sdk.types import Sample

GOLDEN = DATA / "golden/iu_text_metrics.json"
TOKENS = st.lists(st.sampled_from("abcd"), max_size=40)
WORDS = st.lists(st.sampled_from(["opacity", "opacities", "clear", "clearing"]), max_size=20)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
NO_NLTK = pytest.mark.skipif(find_spec("nltk") is None, reason="nltk is optional")
NAMES = ["rouge_l", "bleu", "gleu", pytest.param("meteor", marks=NO_NLTK)]


def value(name: str, report: str, reference: str, **settings: object) -> float | None:
    (score,) = RewardSet.from_config({name: settings}).score(
        [Sample(wrap_report(report), reference)]
    )
    assert score.parts[name].status == "ok", score.parts[name].reason
    return score.total


@pytest.fixture
def golden() -> list[tuple[dict, list[str], list[str]]]:
    """(golden values, tokens of the response, tokens of the reference) of 100 pairs."""
    if not GOLDEN.exists() or not (texts := iu_findings()):
        pytest.skip("shared data or torchxrayvision absent")
    pairs = json.loads(GOLDEN.read_text())["pairs"]
    return [(pair, tokens(texts[pair["hyp"]]), tokens(texts[pair["ref"]])) for pair in pairs]


def test_rouge_l_equals_pycocoevalcap_on_iu_reports(golden):
    for pair, response, reference in golden:
        assert rouge_l_score(response, reference) == pytest.approx(pair["rouge_l"], abs=1e-12)


@pytest.mark.parametrize("max_n", [1, 2, 3, 4])
def test_bleu_without_smoothing_is_near_pycocoevalcap_on_iu_reports(golden, max_n):
    for pair, response, reference in golden:
        # it adds 1e-15 to matches, so that an order without one makes it 1e-4 or so instead of 0
        expected = pytest.approx(pair["bleu"][max_n - 1], abs=1e-8 if max_n == 1 else 1e-4)
        assert bleu_score(response, reference, max_n, "none") == expected


def test_meteor_without_synonyms_goes_with_the_jar_of_meteor_1_5_on_iu_reports(golden):
    pytest.importorskip("nltk")
    ours = [meteor_score(response, reference) for _, response, reference in golden]
    assert correlation(ours, [pair["meteor"] for pair, _, _ in golden]) > 0.9


@given(TOKENS, TOKENS)
def test_rouge_l_finds_the_same_subsequence_as_the_textbook_recursion(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    if a and b and row[-1]:
        precision, recall = row[-1] / len(a), row[-1] / len(b)
        expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    else:
        expected = float(not a and not b)
    assert rouge_l_score(a, b) == pytest.approx(expected)


@given(TOKENS, TOKENS)
def test_gleu_equals_that_of_nltk(a, b):
    nltk = pytest.importorskip("nltk.translate.gleu_score")
    if a or b:  # nltk gives 0 to two empty texts
        assert gleu_score(a, b) == pytest.approx(nltk.sentence_gleu([b], a))


@given(WORDS, WORDS)
def test_meteor_follows_its_formula_on_the_matches_that_nltk_finds(a, b):
    nltk = pytest.importorskip("nltk.translate.meteor_score")
    exact, rest_a, rest_b = nltk.exact_match(a, b)
    stemmed, _, _ = nltk._enum_stem_match(rest_a, rest_b)
    matches = sorted(exact + stemmed)
    if not matches:
        assert meteor_score(a, b) == (not a and not b)
        return
    chunks = 1 + sum((x + 1, y + 1) != after for (x, y), after in pairwise(matches))
    precision, recall = len(matches) / len(a), len(matches) / len(b)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert meteor_score(a, b) == pytest.approx(mean * (1 - 0.6 * (chunks / len(matches)) ** 0.2))


def test_meteor_takes_words_of_one_stem_for_the_same():
    pytest.importorskip("nltk")
    assert meteor_score(["opacities"], ["opacity"]) == meteor_score(["opacity"], ["opacity"]) > 0


def test_meteor_without_nltk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", None)
    wording._meteor.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'valor-rrg\[text\]'"):
        RewardSet.from_config({"meteor": {}})


@pytest.mark.parametrize("name", NAMES)
@given(report=TEXTS, reference=TEXTS)
def test_any_two_texts_score_between_0_and_1(name, report, reference):
    assert 0 <= value(name, f"a{report}", f"b{reference}") <= 1  # neither may be blank


@pytest.mark.parametrize("score", [rouge_l_score, bleu_score, gleu_score])
@given(a=TOKENS)
def test_equal_texts_score_1_whatever_their_length(score, a):
    assert score(a, a) == pytest.approx(1)


@given(TOKENS, TOKENS)
def test_gleu_is_symmetric(a, b):
    assert gleu_score(a, b) == gleu_score(b, a)


@pytest.mark.parametrize("name", NAMES)
def test_two_texts_without_a_word_agree_only_if_they_are_equal(name):
    assert value(name, "...", "...") == 1
    assert value(name, "...", "!") == value(name, "肺炎", "心脏") == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_text_without_a_word_scores_0(name):
    assert value(name, "...", "Clear.") == value(name, "Clear.", "...") == 0


@pytest.mark.parametrize("name", NAMES)
def test_tags_without_a_report_score_0_and_a_blank_reference_is_none(name):
    rewards = RewardSet.from_config({name: {}})
    samples = [Sample("<report> </report>", "..."), Sample("<report> a </report>", " \n")]
    assert [score.total for score in rewards.score(samples)] == [0, None]


@pytest.mark.parametrize("name", NAMES)
@given(reports=st.lists(TEXTS, max_size=5))
def test_a_batch_scores_as_its_samples_do_alone(name, reports):
    rewards = RewardSet.from_config({name: {}})
    samples = [Sample(wrap_report(report), "No effusion.") for report in reports]
    alone = [score for sample in samples for score in rewards.score([sample])]
    assert rewards.score(samples) == alone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loop", ["effusion ", "no effusion, ", "yyyyyyyying "])
def test_a_report_of_100_kb_is_scored_in_time(name, loop):
    begin = time.process_time()
    value(name, loop * (100_000 // len(loop)), "lungs effusions " * 6_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("smoothing", "precision"),
    [("exp", 1 / 2), ("floor", 0.1), ("none", 0)],
)
def test_the_smoothing_decides_what_bleu_gives_for_an_order_without_a_match(smoothing, precision):
    # one of two words, none of one pair
    expected = (1 / 2 * precision) ** (1 / 2)
    assert bleu_score(["a", "x"], ["a", "b"], smoothing=smoothing) == pytest.approx(expected)


def test_bleu_halves_the_precision_of_each_order_without_a_match():
    # matches of orders 1 to 4: 2 of 4, 0 of 3, 0 of 2, 0 of 1
    expected = (2 / 4 * (1 / 2) / 3 * (1 / 4) / 2 * (1 / 8) / 1) ** (1 / 4)
    assert bleu_score(["a", "x", "b", "y"], ["a", "b", "c", "d"]) == pytest.approx(expected)


def test_bleu_of_order_1_ignores_the_order_of_words():
    assert bleu_score(["b", "a"], ["a", "b"], max_n=1) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_rewards_ignore_case_and_punctuation(name):
    plain = value(name, "no opacity no effusion", "no opacity no effusion")
    assert value(name, "NO opacity; no effusion", "no opacity, no effusion.") == plain


@pytest.mark.parametrize("name", NAMES)
def test_another_normalisation_tells_cases_apart(name):
    assert value(name, "CLEAR", "clear", normalise="whitespace") == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_normalisation_is_refused(name):
    with pytest.raises(ConfigError, match=rf"{name}\.normalise.*'iu', 'r2gen' or 'whitespace'"):
        RewardSet.from_config({name: {"normalise": "ptb"}})


@pytest.mark.parametrize("name", NAMES)
def test_reports_without_a_common_word_earn_0(name):
    assert value(name, "Clear lungs.", "Cardiomegaly.") == 0


def test_bleu_refuses_orders_beyond_4():
    with pytest.raises(ConfigError, match=r"bleu\.max_n"):
        RewardSet.from_config({"bleu": {"max_n": 5}})
