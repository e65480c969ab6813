"""What a run says of itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.errors import ConfigError
from valor_plugin.host.progress import step_record
from valor_plugin.records import (
    Failure,
    Follower,
    RewardMeans,
    Step,
    TrainablePart,
    append,
    read_steps,
    read_trainable,
    write_trainable,
)

REWARDS = ["rouge_l", "findings_f1"]
STATUS = {
    "reward": 0.5, "rouge_l": 0.3, "rouge_l/applied": 0.5, "rouge_l/failed": 0.25,
    "rouge_l/not_applicable": 0.25,
    "findings_f1": 0.0, "findings_f1/applied": 0.0, "findings_f1/failed": 0.0,
    "unscored": 0.25, "image/failed": 0.125, "group_tied": 0.75, "group_reward_std": 0.1,
    "kl": 0.01, "response_length": 31.0, "truncated": 0.0, "actor_grad_norm": float("nan"),
    "timing/generation": 2.0, "timing/make_experience": 1.0, "timing/ppo_train": 3.0,
    "timing/broadcast": 0.5, "timing/step_total": 6.5, "sync/tensors": 4, "sync/bytes": 124,
    "generated_samples": ["a report", 0.5],
}  # fmt: skip


def test_a_record_has_the_hosts_numbers_under_our_names():
    step = step_record(7, STATUS, REWARDS)
    assert (step.step, step.reward, step.kl, step.tied, step.unscored) == (7, 0.5, 0.01, 0.75, 0.25)
    assert (step.length, step.truncated) == (31.0, 0.0)
    assert step.synced == {"tensors": 4, "bytes": 124}
    assert step.seconds == {
        "generation": 2.0, "experience": 1.0, "training": 3.0, "sync": 0.5, "total": 6.5
    }  # fmt: skip


def test_a_reward_is_averaged_over_the_samples_that_it_gave_a_value():
    parts = step_record(1, STATUS, REWARDS).parts
    assert list(parts) == REWARDS
    assert parts == {
        "rouge_l": RewardMeans(mean=0.6, applied=0.5, failed=0.25, not_applicable=0.25),
        "findings_f1": RewardMeans(mean=None, applied=0.0, failed=0.0),
    }


def test_no_number_of_the_host_is_lost_and_what_is_not_finite_is_null():
    metrics = step_record(1, STATUS, REWARDS).metrics
    assert metrics == {"group_reward_std": 0.1, "image/failed": 0.125, "actor_grad_norm": None}


def test_reports_stay_out_of_the_records():
    assert "a report" not in str(step_record(1, STATUS, REWARDS))


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
means = st.builds(RewardMeans, numbers, *[st.floats(0, 1)] * 3)
steps = st.builds(
    Step, step=st.integers(1, 10**6), time=st.floats(0, 1e10), reward=numbers,
    parts=st.dictionaries(st.text(), means),
    unscored=numbers, tied=numbers, kl=numbers, length=numbers, truncated=numbers,
    seconds=st.dictionaries(st.text(), numbers), synced=st.dictionaries(st.text(), numbers),
    metrics=st.dictionaries(st.text(), numbers),
)  # fmt: skip


@given(st.lists(steps, min_size=1, max_size=5, unique_by=lambda step: step.step))
def test_steps_are_read_back_as_they_were_written(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("steps") / "steps.jsonl"
    for step in written:
        append(path, step)
    assert read_steps(path) == sorted(written, key=lambda step: step.step)


def test_of_a_step_that_was_taken_twice_the_later_record_stands(tmp_path):
    path = tmp_path / "steps.jsonl"
    for number, reward in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4)):
        append(path, step_record(number, {"reward": reward}, []))
    assert [(step.step, step.reward) for step in read_steps(path)] == [(1, 0.1), (2, 0.4), (3, 0.3)]


def test_a_line_that_broke_off_is_no_record_and_spoils_no_other(tmp_path):
    path = tmp_path / "steps.jsonl"
    append(path, step_record(1, {"reward": 0.1}, []))
    follower = Follower(path, Step)
    with path.open("a") as file:
        file.write('{"step": 2, "rew')
    assert [step.step for step in read_steps(path)] == [1]
    append(path, step_record(3, {"reward": 0.3}, []))
    assert [step.step for step in read_steps(path)] == [1, 3]
    assert [step.step for step in follower.new()] == [3]


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path):
    path = tmp_path / "steps.jsonl"
    append(path, step_record(1, {"reward": 0.1}, []))
    with path.open("a") as file:
        file.write('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"steps\.jsonl, line 2: no record of a policy step"):
        read_steps(path)


def test_a_run_without_a_step_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the steps .*No such file"):
        read_steps(tmp_path / "steps.jsonl")
    (tmp_path / "steps.jsonl").touch()
    with pytest.raises(ConfigError, match="holds no policy step"):
        read_steps(tmp_path / "steps.jsonl")


def test_a_follower_sees_whole_new_records_once(tmp_path):
    path = tmp_path / "failures.jsonl"
    append(path, Failure("driver", 0.0, "old"))
    follower = Follower(path, Failure)
    assert list(follower.new()) == []
    append(path, Failure("driver", 0.0, "new"))
    line = json.dumps({"process": "vLLM", "time": 1.0, "error": "late"}) + "\n"
    with path.open("a") as file:
        file.write(line[:20])
    assert [each.error for each in follower.new()] == ["new"]
    with path.open("a") as file:
        file.write(line[20:])
    assert [each.error for each in follower.new()] == ["late"]
    assert list(follower.new()) == []


def test_a_follower_waits_for_a_file_that_is_not_there_yet(tmp_path):
    follower = Follower(tmp_path / "failures.jsonl", Failure)
    assert list(follower.new()) == []
    append(tmp_path / "failures.jsonl", Failure("driver", 0.0, "first"))
    assert [each.error for each in follower.new()] == ["first"]


def test_the_table_of_what_trains_is_read_back_and_empty_before(tmp_path):
    path = tmp_path / "trainable.json"
    assert read_trainable(path) == []
    table = [TrainablePart("tower", 67, 1234, False), TrainablePart("projector", 4, 99, True)]
    write_trainable(path, table)
    assert read_trainable(path) == table
    assert [str(part).split()[-1] for part in table] == ["frozen", "trains"]
