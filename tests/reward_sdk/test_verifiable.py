import json
import tarfile
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError
from reward_sdk.rewards.verifiable import bleu_score, rouge_l_score
from reward_sdk.text import tokens
from reward_sdk.types import Sample

GOLDEN = Path(__file__).parents[3] / "shared/data/golden/iu_text_metrics.json"
TOKENS = st.lists(st.sampled_from("abcd"), max_size=40)


def findings_of_iu(ids: set[str]) -> dict[str, str]:
    spec = find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        pytest.skip("the IU-XRay reports come with torchxrayvision")
    texts = {}
    with tarfile.open(Path(spec.origin).parent / "data/NLMCXR_reports.tgz") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) and member.name.endswith(".xml"):
                root = ElementTree.parse(file).getroot()
                (uid,) = (element.attrib["id"] for element in root.iter("uId"))
                if uid in ids:
                    texts[uid] = root.findtext(".//AbstractText[@Label='FINDINGS']") or ""
    return texts


@pytest.mark.skipif(not GOLDEN.exists(), reason="shared data absent")
def test_rouge_l_and_bleu_1_equal_pycocoevalcap_on_iu_reports():
    pairs = json.loads(GOLDEN.read_text())["pairs"]
    texts = findings_of_iu({pair[side] for pair in pairs for side in ("ref", "hyp")})
    for pair in pairs:
        response, reference = tokens(texts[pair["hyp"]]), tokens(texts[pair["ref"]])
        assert rouge_l_score(response, reference) == pytest.approx(pair["rouge_l"], abs=1e-12)
        assert bleu_score(response, reference, 1) == pytest.approx(pair["bleu"][0], abs=1e-8)


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
def test_scores_stay_between_0_and_1(a, b):
    assert 0 <= rouge_l_score(a, b) <= 1
    assert 0 <= bleu_score(a, b) <= 1


@given(TOKENS)
def test_equal_texts_score_1_whatever_their_length(a):
    assert rouge_l_score(a, a) == pytest.approx(1)
    assert bleu_score(a, a) == pytest.approx(1)


def test_bleu_halves_the_precision_of_each_order_without_a_match():
    # matches of orders 1 to 4: 2 of 4, 0 of 3, 0 of 2, 0 of 1
    expected = (2 / 4 * (1 / 2) / 3 * (1 / 4) / 2 * (1 / 8) / 1) ** (1 / 4)
    assert bleu_score(["a", "x", "b", "y"], ["a", "b", "c", "d"]) == pytest.approx(expected)


def test_bleu_of_order_1_ignores_the_order_of_words():
    assert bleu_score(["b", "a"], ["a", "b"], max_n=1) == pytest.approx(1)


@pytest.mark.parametrize("name", ["rouge_l", "bleu"])
def test_the_rewards_ignore_case_and_punctuation(name):
    sample = Sample(
        "<report>NO focal opacity; no effusion</report>", "no focal opacity, no effusion."
    )
    (score,) = RewardSet.from_config({name: {}}).score([sample])
    assert score.total == pytest.approx(1)


@pytest.mark.parametrize("name", ["rouge_l", "bleu"])
def test_reports_without_a_common_word_earn_0(name):
    sample = Sample("<report>Clear lungs.</report>", "Cardiomegaly.")
    (score,) = RewardSet.from_config({name: {}}).score([sample])
    assert score.total == 0


def test_bleu_refuses_orders_beyond_4():
    with pytest.raises(ConfigError, match=r"bleu\.max_n"):
        RewardSet.from_config({"bleu": {"max_n": 5}})
