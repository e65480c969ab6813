import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.adapters.nemo_gym import VerifyRequest, reply, sample
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample


def request(*output, **row):
    return VerifyRequest.model_validate({"response": {"output": list(output)}, **row})


def message(*texts):
    content = [{"type": "output_text", "text": text} for text in texts]
    return {"type": "message", "role": "assistant", "content": content}


def test_the_last_message_is_the_response_and_reasoning_is_none():
    reasoning = {"type": "reasoning", "summary": []}
    asked = request(reasoning, message("first"), message("<report> a", " </report>"))
    assert sample(asked, ()).response == "<report> a </report>"


@pytest.mark.parametrize("output", [[], [{"type": "function_call"}], ["text"], [3]])
def test_a_response_without_a_message_is_no_sample(output):
    with pytest.raises(ScoringError, match="no message"):
        sample(request(*output), ())


@given(st.lists(st.text("the heart is clear", max_size=40), min_size=2, max_size=2), st.booleans())
def test_components_sum_to_the_reward_also_when_a_part_is_missing(texts, with_reference):
    rewards = RewardSet.from_config({"rouge_l": {"weight": 0.7}, "bleu": {"weight": 0.4},
                                     "length": {"low": 3, "high": 5, "weight": 0.3}})  # fmt: skip
    weights = {member.name: member.entry.weight for member in rewards.members}
    one = Sample(wrap_report(texts[0] or "x"), texts[1] if with_reference else None)
    [score] = rewards.score([one])
    answer = reply(request(message("x")), score, weights, rewards.log_keys)
    assert answer["reward"] == pytest.approx(sum(answer["reward_components"].values()), abs=1e-12)
    if score.total is not None:
        assert answer["reward"] == pytest.approx(score.total, abs=1e-9)


def test_a_sample_without_a_score_is_a_failure_of_its_own_kind_under_the_same_keys():
    rewards = RewardSet.from_config({"rouge_l": {}})
    [score] = rewards.score([Sample("<report> a </report>")])
    for given_score, problem in ((score, ""), (None, "no message")):
        answer = reply(request(), given_score, {"rouge_l": 1.0}, rewards.log_keys, problem)
        assert answer["reward"] == 0.0
        assert answer["reward_components"] == {"rouge_l": 0.0, "missing_parts": 0.0}
        assert answer["_ng_failure_class"] == "reward_failed"
        assert answer["_ng_failure_reason"] == (problem or "no reference")
        assert set(rewards.log_keys) <= answer.keys()


def test_a_row_s_own_image_wins_over_the_prompt_s_and_either_needs_a_reward():
    part = {"type": "input_image", "image_url": "data:image/png;base64,UE5H"}
    params = {"input": [{"role": "user", "content": [part]}]}
    asked = request(message("x"), responses_create_params=params, view="AP", id=7)
    assert sample(asked, {"image"}).image == ImageRef(data=b"PNG", view="AP")
    assert sample(asked, ()).image is None
    own = request(message("x"), responses_create_params=params, image="a.png")
    assert sample(own, {"image"}).image.path == "a.png"


@pytest.mark.parametrize("name", ["reference", "report", "ground_truth"])
def test_a_row_s_report_may_have_the_names_that_rows_have(name):
    assert sample(request(message("x"), **{name: "Clear."}), ()).reference == "Clear."
