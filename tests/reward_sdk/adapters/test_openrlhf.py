import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.adapters.openrlhf import reply, response_of, sample
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ScoringError
from reward_sdk.types import Sample

END = "\nDescribe. Write between <report> and </report>. [/INST]"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(texts, st.integers(1, 600), texts)
def test_the_response_is_found_behind_the_expanded_image(before, images, response):
    prompt = f"{before}<image>{END}"
    query = f"{before}{'<image>' * images}{END}{response}"
    assert response_of(query, prompt) == response_of(response, "")


@pytest.mark.parametrize(
    "end", ["", "</s>", "<|im_end|>", "<|eot_id|></s>", " <pad><pad>", "<|im_end|>\n", "<eos>"]
)
def test_special_tokens_at_the_end_are_no_part_of_the_response(end):
    query = f"[INST] Describe. [/INST] <report> Clear. </report>{end}"
    assert response_of(query, "[INST] Describe. [/INST]") == "<report> Clear. </report>"


def test_tags_that_a_policy_writes_itself_stay():
    query = "Describe. <|im_end|> <report> a </s> b </report>"
    assert response_of(query, "Describe.") == "<|im_end|> <report> a </s> b </report>"


def test_a_prompt_that_the_response_repeats_is_found_where_it_stands_first():
    assert response_of("Describe. Describe. It is clear.", "Describe.") == "Describe. It is clear."


def test_a_query_without_its_prompt_is_no_sample():
    with pytest.raises(ScoringError, match="does not hold the end of its prompt"):
        response_of("something else", "Describe.")


def test_a_label_of_the_plugins_own_kind_is_read_whole():
    label = '{"id": "s1", "report": "Clear.", "image": "x.png", "view": "AP"}'
    wire = sample("q <report> a </report>", "q", label)
    assert (wire.id, wire.reference, wire.image.path, wire.image.view) == (
        "s1", "Clear.", "x.png", "AP"
    )  # fmt: skip


@pytest.mark.parametrize(
    "label", ["{", '{"report": 1}', 7, ["a"], '{"report": "' + "x" * 100_001 + '"}']
)
def test_a_label_that_cannot_be_read_says_what_is_wrong(label):
    with pytest.raises(ScoringError, match="label"):
        sample("q a", "q", label)


def test_samples_without_a_score_are_told_apart_and_finite():
    rewards = RewardSet.from_config(
        {"rouge_l": {"weight": 2.0}, "length": {"low": 2, "high": 9, "of": "words"}}
    )
    scores = rewards.score([Sample("<report> Clear lungs. </report>", "Clear lungs.")])
    answer = reply([scores[0], None], rewards.bounds, rewards.log_keys)
    assert answer["rewards"] == [2.0, -1.0]
    assert answer["scores"] == [1.0, 0.0]
    assert answer["extra_logs"]["unscored"] == [0.0, 1.0]
    assert {len(column) for column in answer["extra_logs"].values()} == {2}
