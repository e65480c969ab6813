import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.adapters.nemo_gym import VerifyRequest, reply, sample
from reward_sdk.config import Entry
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.format import format_
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Outcome, Sample


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
    for given_score, problem, kind in (
        (score, "", "reward_not_applicable"), (None, "no message", "reward_failed")
    ):  # fmt: skip
        answer = reply(request(), given_score, {"rouge_l": 1.0}, rewards.log_keys, problem)
        assert answer["reward"] == 0.0
        assert answer["reward_components"] == {"rouge_l": 0.0, "missing_parts": 0.0}
        assert answer["_ng_failure_class"] == kind
        assert answer["_ng_failure_reason"] == (problem or "no reference")
        assert set(rewards.log_keys) <= answer.keys()


NEWER = ("reward", "mask_sample", "failure_kind", "failure_reason")


class Odd:
    """Fails, or does not apply, or gives 1, as the response says."""

    name, bounds, needs = "odd", (0.0, 1.0), frozenset()

    def __call__(self, samples):
        gives = {"fails": "failed", "is none": "not_applicable"}
        return [
            Outcome(None, gives[s.response], "why") if s.response in gives else 1.0 for s in samples
        ]


@pytest.mark.parametrize(
    ("response", "also", "told"),
    [
        ("fails", False, (True, "verifier_error", "why")),
        ("fails", True, (False, "verifier_error", "why")),  # the total stands on the other reward
        ("is none", False, (True, None, "why")),
        ("is none", True, (False, None, None)),
        ("gives 1", False, (False, None, None)),
    ],
)
def test_newer_answers_say_whether_the_reward_counts_and_what_failed(response, also, told):
    members = [(Odd(), Entry()), *([(format_(), Entry())] if also else [])]
    rewards = RewardSet(members)
    [score] = rewards.score([Sample(response)])
    answer = reply(request(), score, dict.fromkeys(rewards.names, 1.0), (), fields=NEWER)
    assert tuple(answer[key] for key in NEWER[1:]) == told


def test_a_request_that_cannot_be_read_is_masked_as_the_verifier_s_error():
    answer = reply(request(), None, {"rouge_l": 1.0}, (), "no message", NEWER)
    assert [answer[key] for key in NEWER] == [0.0, True, "verifier_error", "no message"]


def test_an_older_gym_is_told_nothing_of_newer_fields():
    assert not set(NEWER[1:]) & reply(request(), None, {"rouge_l": 1.0}, (), "x").keys()


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
