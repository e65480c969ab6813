import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.adapters.openrlhf import make_reward_func, reply, response_of, sample
from reward_sdk.config import Entry
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Outcome, Sample

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
    found = sample("q <report> a </report>", "q", label, {"image"})
    assert (found.id, found.reference, found.image.path, found.image.view) == (
        "s1", "Clear.", "x.png", "AP"
    )  # fmt: skip


@pytest.mark.parametrize("label", ["{", 7, ["a"]])
def test_a_label_that_cannot_be_read_says_what_is_wrong(label):
    with pytest.raises(ScoringError, match="label"):
        sample("q a", "q", label, ())


def test_a_label_s_report_may_have_the_names_that_rows_have():
    assert sample("q a", "q", '{"ground_truth": "Clear.", "id": 5}', ()).reference == "Clear."
    assert sample("q a", "q", "Clear.", ()).reference == "Clear."
    assert sample("q a", "q", "", ()).reference is None


def test_scores_are_the_totals_on_the_scale_of_dynamic_filtering():
    rewards = RewardSet.from_config(
        {"rouge_l": {"weight": 2.0}, "length": {"low": 2, "high": 9, "of": "words"}}
    )
    scores = rewards.score([Sample("<report> Clear lungs. </report>", "Clear heart.")])
    answer = reply(scores, rewards.bounds, rewards.log_keys)
    assert answer["rewards"] == [1.0]
    assert answer["scores"] == [pytest.approx(2 / 3)]  # of -1 to 2


@pytest.mark.parametrize(
    ("query", "prompt", "label"),
    [("q a", "q", 7), ("q a", "q", '{"report": 3}'), (None, None, None), ("x", "q", "a")],
)
def test_a_reward_function_of_a_file_never_raises(query, prompt, label):
    answer = make_reward_func(RewardSet.from_config({"rouge_l": {}}))([query], [prompt], [label])
    assert answer["extra_logs"]["unscored"] == [1.0]


def test_a_reward_function_scores_one_sample_at_a_time(tmp_path):
    running, most = [], []

    class Watched:
        name, bounds, needs = "watched", (0.0, 1.0), frozenset()

        def __call__(self, samples):
            running.append(1)
            most.append(len(running))
            time.sleep(0.005)
            running.pop()
            return [Outcome(1.0) for _ in samples]

    reward_func = make_reward_func(RewardSet([(Watched(), Entry())]))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: reward_func(["q a"], ["q"], [""]), range(24)))
    assert max(most) == 1


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
