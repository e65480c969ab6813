"""The rewards here read numbers out of the response: word i is the value of the set's part i, and
a word that is no number makes the reward raise."""

import errno
import math
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_sdk.config import Entry
from reward_sdk.errors import ConfigError, ExhaustedError, ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import ImageRef, Outcome, Sample

NOTHING: frozenset[str] = frozenset()


class Word:
    """Outcome `column` of the response as a number; raises where that is none."""

    def __init__(self, column: int = 0, needs: frozenset[str] = NOTHING, bounds=(0.0, 1.0)) -> None:
        self.name = f"word_{column}"
        self.column = column
        self.needs = needs
        self.bounds = bounds
        self.seen: list[Sample] = []

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        self.seen += samples
        return [Outcome(float(sample.response.split()[self.column])) for sample in samples]


class Gives:
    """The given parts, whatever the samples are."""

    name = "gives"
    bounds = (0.0, 1.0)
    needs = NOTHING

    def __init__(self, *parts: Outcome) -> None:
        self.parts = parts

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Outcome]:
        return self.parts


def word_set(*entries: dict, **settings) -> RewardSet:
    return RewardSet([(Word(i, **settings), Entry(**entry)) for i, entry in enumerate(entries)])


def score(rewards: RewardSet, response: str, step: int | None = None):
    (result,) = rewards.score([Sample(response)], step)
    return result


value = st.floats(0, 1)
bad = st.sampled_from(["boom", "nan", "inf", "-0.5", "1.5"])
weights = st.lists(st.floats(0.1, 5), min_size=1, max_size=4)


@st.composite
def responses(draw, columns: int = 2, ok: bool = False) -> str:
    words = st.one_of(value.map(repr), st.nothing() if ok else bad)
    return " ".join(draw(words) for _ in range(columns))


@given(weights, st.data())
def test_the_total_is_the_weighted_sum(weights, data):
    values = data.draw(st.lists(value, min_size=len(weights), max_size=len(weights)))
    result = score(word_set(*({"weight": w} for w in weights)), " ".join(map(repr, values)))
    expected = sum(w * v for w, v in zip(weights, values, strict=True))
    assert result.total == pytest.approx(expected, abs=1e-9)


@given(weights, value, st.data())
def test_a_failed_part_is_never_a_zero_in_the_total(weights, same, data):
    # Parts that agree give the same total, however many of them are missing.
    words = [repr(same)] * len(weights)
    failing = data.draw(st.sets(st.integers(0, len(weights) - 1), max_size=len(weights) - 1))
    for i in failing:
        words[i] = data.draw(bad)
    result = score(word_set(*({"weight": w} for w in weights)), " ".join(words))
    assert result.total == pytest.approx(same * sum(weights), abs=1e-9)


def test_without_any_part_there_is_no_total():
    assert score(word_set({}, {}), "boom nan").total is None


def test_a_part_that_fails_has_no_value_and_says_why():
    part = score(word_set({}), "boom").parts["word_0"]
    assert (part.value, part.status) == (None, "failed")
    assert "could not convert string to float: 'boom'" in part.reason


@given(st.lists(responses(), min_size=1, max_size=6), st.data())
def test_a_bad_sample_leaves_the_rest_of_its_batch_as_it_was(texts, data):
    rewards = word_set({"weight": 0.3}, {"weight": 0.7})
    position = data.draw(st.integers(0, len(texts)))
    clean = rewards.score([Sample(text) for text in texts])
    mixed = rewards.score([Sample(t) for t in (*texts[:position], "boom x", *texts[position:])])
    assert mixed[:position] + mixed[position + 1 :] == clean
    assert mixed[position].total is None


@given(st.lists(responses(), max_size=6))
def test_a_batch_gives_what_its_samples_give_alone_in_their_order(texts):
    rewards = word_set({"weight": 0.3}, {"weight": 0.7})
    assert rewards.score([Sample(text) for text in texts]) == [score(rewards, t) for t in texts]


@given(responses(columns=3), st.integers(1, 20))
def test_log_keys_are_the_same_whatever_happens(text, step):
    rewards = word_set({}, {"every": 3}, {"on_failure": 0.0})
    assert tuple(score(rewards, text, step).logs) == rewards.log_keys


@given(responses(columns=3), st.integers(1, 20))
def test_logged_numbers_are_finite(text, step):
    rewards = word_set({}, {"every": 3}, {"on_failure": 0.0})
    assert all(math.isfinite(number) for number in score(rewards, text, step).logs.values())


def test_logs_tell_a_failure_from_a_zero():
    assert score(word_set({}), "boom").logs == {
        "word_0": 0.0, "word_0/applied": 0.0, "word_0/failed": 1.0, "word_0/not_applicable": 0.0
    }  # fmt: skip
    assert score(word_set({}), "0").logs == {
        "word_0": 0.0, "word_0/applied": 1.0, "word_0/failed": 0.0, "word_0/not_applicable": 0.0
    }  # fmt: skip


def test_logs_tell_what_does_not_apply_from_what_waits_for_its_step():
    rewards = RewardSet([(Word(needs=frozenset({"image"})), Entry(every=2))])
    logs = [score(rewards, "0.5", step).logs["word_0/not_applicable"] for step in (1, 2)]
    assert logs == [0.0, 1.0]


@given(st.integers(2, 12), st.integers(1, 200))
def test_every_applies_exactly_on_multiples(every, step):
    part = score(word_set({}, {"every": every}), "0.5 0.5", step).parts["word_1"]
    assert (part.status == "ok") == (step % every == 0)


def test_a_reward_that_waits_is_not_called():
    reward = Word()
    RewardSet([(reward, Entry(every=2))]).score([Sample("0.5")], step=1)
    assert reward.seen == []


def test_a_reward_that_waits_does_not_scale_the_others():
    assert score(word_set({"weight": 0.4}, {"weight": 9, "every": 2}), "1 1", 1).total == 0.4


def test_a_schedule_without_a_step_is_an_error():
    with pytest.raises(ConfigError, match="every"):
        score(word_set({"every": 2}), "0.5")


def test_without_a_schedule_no_step_is_needed():
    rewards = word_set({})
    assert not rewards.needs_step
    assert score(rewards, "0.5").total == 0.5


def test_on_failure_raise_ends_the_call_and_names_the_sample():
    rewards = word_set({"on_failure": "raise"})
    with pytest.raises(ScoringError, match="word_0 failed on sample 's7'"):
        rewards.score([Sample("0.5"), Sample("boom", id="s7")])


def test_on_failure_with_a_number_counts_it_and_still_says_that_the_part_failed():
    result = score(word_set({"weight": 2, "on_failure": 0.25}, {"weight": 1}), "boom 1")
    assert result.total == 1.5
    assert result.parts["word_0"].status == "failed"
    assert result.logs["word_0/failed"] == 1


@given(bad)
def test_a_value_that_is_not_finite_or_out_of_range_fails(word):
    assert score(word_set({}), word).parts["word_0"].status == "failed"


@given(st.floats(-3, 3))
def test_exactly_the_closed_range_is_accepted(number):
    part = score(word_set({}, bounds=(-1.0, 1.0)), repr(number)).parts["word_0"]
    assert (part.status == "ok") == (-1 <= number <= 1)


@pytest.mark.parametrize("parts", [[], [Outcome(0.5)] * 2])
def test_a_reward_that_returns_the_wrong_number_of_parts_fails(parts):
    result = score(RewardSet([(Gives(*parts), Entry())]), "")
    assert (result.total, result.parts["gives"].status) == (None, "failed")


def test_a_reward_that_calls_no_value_ok_fails():
    result = score(RewardSet([(Gives(Outcome(None)), Entry())]), "")
    assert (result.total, result.parts["gives"].status) == (None, "failed")


@pytest.mark.parametrize("status", ["failed", "not_applicable"])
def test_a_value_beside_a_failure_or_what_does_not_apply_does_not_count(status):
    result = score(RewardSet([(Gives(Outcome(0.5, status, "reason")), Entry())]), "")
    assert result.total is None
    assert result.parts["gives"] == Outcome(None, status, "reason")


def test_without_a_wellformed_report_a_reward_that_reads_it_gives_its_lower_bound():
    reward = Word(needs=frozenset({"report"}), bounds=(-1.0, 1.0))
    result = score(RewardSet([(reward, Entry())]), "0.5")
    assert (result.total, result.parts["word_0"].status, reward.seen) == (-1.0, "ok", [])


@pytest.mark.parametrize("what", ["reference", "image"])
def test_without_its_reference_or_image_a_reward_does_not_apply_and_sees_nothing(what):
    reward = Word(needs=frozenset({what}))
    result = score(RewardSet([(reward, Entry())]), "0.5")
    assert (result.total, result.not_applicable, reward.seen) == (None, ("word_0",), [])


def test_a_sample_with_everything_reaches_the_reward():
    reward = Word(needs=frozenset({"reference", "image"}))
    sample = Sample("0.5", reference="Clear.", image=ImageRef(path="x.png"))
    (result,) = RewardSet([(reward, Entry())]).score([sample])
    assert (result.total, reward.seen) == (0.5, [sample])


def test_a_part_that_does_not_apply_scales_the_others_up():
    rewards = RewardSet([
        (Word(0), Entry(weight=0.5)), (Word(1, frozenset({"image"})), Entry(weight=1.5))
    ])  # fmt: skip
    assert score(rewards, "0.5 1").total == 1.0


def test_weight_zero_logs_a_reward_without_counting_it():
    result = score(word_set({"weight": 0}, {"weight": 1}), "1 0.25")
    assert (result.total, result.logs["word_0"]) == (0.25, 1.0)


@given(weights, st.data())
def test_no_total_leaves_the_bounds(weights, data):
    rewards = word_set(*({"weight": w} for w in weights), bounds=(0.0, 1.0))
    result = score(rewards, data.draw(responses(len(weights))))
    low, high = rewards.bounds
    assert result.total is None or low - 1e-9 <= result.total <= high + 1e-9


def test_a_set_needs_what_some_reward_needs():
    first, second = Word(0, frozenset({"report"})), Word(1, frozenset({"image"}))
    assert RewardSet([(first, Entry()), (second, Entry())]).needs == {"report", "image"}


def test_ctrl_c_inside_of_a_reward_is_no_failed_part():
    class Interrupted(Word):
        def __call__(self, samples):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(RewardSet([(Interrupted(), Entry())]), "0.5")


def test_a_set_from_a_file_scores(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("rewards: {format: {weight: 2}}", encoding="utf-8")
    assert score(RewardSet.from_config(path), "<report> Clear. </report>").total == 2


def test_an_offset_moves_the_steps_on_which_a_reward_counts():
    rewards = word_set({}, {"every": 3, "offset": 1})
    counted = [s for s in range(1, 8) if score(rewards, "0 1", s).logs["word_1/applied"]]
    assert counted == [1, 4, 7]


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"every": 2, "offset": 2}, "smaller than every"), ({"mode": "replace"}, "no step")],
)
def test_a_schedule_that_never_fits_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        RewardSet.from_config({"rouge_l": {}, "findings_f1": entry})


def replacing() -> RewardSet:
    """A text reward, a reward that needs nothing, and one that replaces every second step."""
    text = Word(0, needs=frozenset({"reference"}))
    entries = [(text, Entry()), (Word(1), Entry()), (Word(2), Entry(every=2, mode="replace"))]
    return RewardSet(entries)


def test_a_replacing_reward_stands_in_place_of_those_that_compare_with_the_reference():
    sample = Sample("0.1 0.2 0.4", reference="x")
    odd, even = (replacing().score([sample], step)[0] for step in (1, 2))
    assert odd.total == pytest.approx(0.1 + 0.2)
    assert even.total == pytest.approx(0.2 + 0.4)
    assert even.parts["word_0"].status == "skipped"
    assert odd.logs.keys() == even.logs.keys()


class Slow:
    """Answers after `seconds`."""

    name = "slow"
    bounds = (0.0, 1.0)
    needs = NOTHING

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        time.sleep(self.seconds)
        return [Outcome(1.0)] * len(samples)


def test_a_reward_that_misses_its_deadline_has_failed_for_all_samples_and_the_others_count():
    rewards = RewardSet([(Slow(5), Entry(deadline=0.05)), (Word(0), Entry())])
    start = time.monotonic()
    results = rewards.score([Sample("0.5"), Sample("0.25")])
    assert time.monotonic() - start < 2
    assert [result.parts["slow"].status for result in results] == ["failed", "failed"]
    assert "deadline of 0.05 s" in results[0].parts["slow"].reason
    assert [result.logs["word_0"] for result in results] == [0.5, 0.25]


def test_a_reward_within_its_deadline_scores_as_without():
    with_deadline = RewardSet([(Word(0), Entry(deadline=60))])
    assert score(with_deadline, "0.5").total == 0.5
    assert score(with_deadline, "boom").parts["word_0"].status == "failed"


@pytest.mark.parametrize("step", [0, -4])
def test_a_step_below_1_is_an_error(step):
    with pytest.raises(ConfigError, match="counted from 1"):
        score(word_set({}), "0.5", step)


def test_a_guard_is_not_replaced():
    guard = Word(0, needs=frozenset({"reference"}), bounds=(-1.0, 0.0))
    rewards = RewardSet([(guard, Entry()), (Word(1), Entry(every=2, mode="replace"))])
    (result,) = rewards.score([Sample("-0.5 0.5", reference="x")], 2)
    assert result.parts["word_0"].value == -0.5


def test_without_its_schedule_every_reward_of_a_set_counts():
    (result,) = replacing().without_schedule().score([Sample("0.1 0.2 0.4", reference="x")])
    assert result.total == pytest.approx(0.7)


def test_a_numpy_number_becomes_a_plain_one():
    np = pytest.importorskip("numpy")
    part = RewardSet([(Gives(Outcome(np.float32(0.5))), Entry())]).score([Sample("x")])[0].parts
    assert type(part["gives"].value) is float


@pytest.mark.parametrize("status", ["weird", "skipped"])  # which only a schedule does
def test_a_status_that_a_reward_cannot_give_is_a_failure(status):
    (result,) = RewardSet([(Gives(Outcome(0.5, status)), Entry())]).score([Sample("x")])
    assert result.parts["gives"].status == "failed"
    assert "which is none of ok, not_applicable and failed" in result.parts["gives"].reason


class Hanging(Slow):
    """Waits until it is let go."""

    def __init__(self):
        super().__init__(0)
        self.free, self.calls = threading.Event(), 0

    def __call__(self, samples):
        self.calls += 1
        self.free.wait(20)
        return [Outcome(1.0)] * len(samples)


def test_calls_that_never_come_back_are_not_made_for_ever_and_are_made_again_when_they_do():
    reward = Hanging()
    rewards = RewardSet([(reward, Entry(deadline=0.02))])
    reasons = [score(rewards, "x").parts["slow"].reason for _ in range(18)]
    assert "deadline" in reasons[15]
    assert reasons[16:] == ["slow: 16 calls have not come back, no more are made"] * 2
    assert reward.calls == rewards.members[0].late_calls == 16
    reward.free.set()
    end = time.monotonic() + 10
    while score(rewards, "x").total is None and time.monotonic() < end:
        time.sleep(0.02)
    assert score(rewards, "x").total == 1.0


class Picky(Hanging):
    """Hangs for what says so."""

    def __call__(self, samples):
        return super().__call__(samples) if any("hang" in s.response for s in samples) else [
            Outcome(1.0)
        ] * len(samples)  # fmt: skip


def test_a_sample_that_hangs_fails_alone():
    reward = Picky()
    rewards = RewardSet([(reward, Entry(deadline=0.6))])
    samples = [Sample("hang" if i == 37 else "x") for i in range(64)]
    parts = [score.parts["slow"] for score in rewards.score(samples)]
    reward.free.set()
    assert [i for i, part in enumerate(parts) if part.status == "failed"] == [37]
    assert parts[37].reason == "slow: no answer within its deadline of 0.6 s"
    assert {part.value for i, part in enumerate(parts) if i != 37} == {1.0}


def test_a_sample_that_is_slow_has_its_time_also_where_others_hang():
    class Uneven(Picky):
        def __call__(self, samples):
            if len(samples) == 1 and samples[0].response == "slow":
                time.sleep(0.8)
            return super().__call__(samples)

    reward = Uneven()
    rewards = RewardSet([(reward, Entry(deadline=2))])
    texts = ["hang", "slow", "x"]
    parts = [score.parts["slow"] for score in rewards.score([Sample(text) for text in texts])]
    reward.free.set()
    assert [part.status for part in parts] == ["failed", "ok", "ok"]


@pytest.mark.parametrize("deadline", [None, 5])
@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "x"), ScoringError("an image"), ExhaustedError()]
)
def test_a_machine_that_is_out_of_something_fails_the_call_and_no_sample(error, deadline):
    class Raising(Slow):
        def __call__(self, samples):
            raise error from OSError(errno.ENOSPC, "x")

    with pytest.raises(ExhaustedError):
        RewardSet([(Raising(0), Entry(deadline=deadline))]).score([Sample("x")] * 3)


def test_calls_within_a_deadline_share_a_thread():
    threads = set()

    class Seen(Slow):
        def __call__(self, samples):
            threads.add(threading.get_ident())
            return [Outcome(1.0)] * len(samples)

    rewards = RewardSet([(Seen(0), Entry(deadline=30))])
    for _ in range(5):
        score(rewards, "x")
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_deadline_for_all_leaves_alone_those_that_have_one():
    chosen = RewardSet([(Word(0), Entry()), (Slow(0), Entry(deadline=1))])
    assert [member.entry.deadline for member in chosen.with_deadline(7).members] == [7, 1]


@given(
    st.lists(st.sampled_from(["0.5", "-0.5", "-1", "1", "boom"]), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_totals_stay_in_their_range_also_where_parts_are_missing(words, weights):
    rewards = RewardSet(
        [(Word(i, bounds=(-1.0, 1.0)), Entry(weight=w)) for i, w in enumerate(weights)]
    )
    low, high = rewards.bounds
    total = score(rewards, " ".join(words)).total
    assert total is None or low <= total <= high


def test_weights_whose_totals_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="so large"):
        RewardSet([(Word(0), Entry(weight=1e308)), (Word(1), Entry(weight=1e308))])


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


class Panic(BaseException):
    """As tokenizers raise it."""


@pytest.mark.parametrize(
    "error",
    [Unreadable(), ValueError("bad \udcff"), ValueError("x" * 9999), Panic("p"), SystemExit(3)],
)
@pytest.mark.parametrize("deadline", [None, 5])
def test_whatever_a_reward_raises_is_a_failed_part_that_can_be_sent(error, deadline):
    class Raising(Slow):
        def __call__(self, samples):
            raise error

    part = score(RewardSet([(Raising(0), Entry(deadline=deadline))]), "x").parts["slow"]
    assert part.status == "failed"
    assert len(part.reason.encode()) < 600


def test_the_digest_tells_settings_apart_and_nothing_else():
    one = {"rouge_l": {"weight": 1.0}, "format": {}}
    digests = [
        RewardSet.from_config(config).digest
        for config in (
            one, {"rouge_l": {}, "format": None}, {"format": {}, "rouge_l": {}},
            {"rouge_l": {"weight": 2.0}, "format": {}},
            {"rouge_l": {"normalise": "r2gen"}, "format": {}},
        )
    ]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4  # the order is that of the logs
