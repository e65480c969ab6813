import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_sdk.batching import BatchedSet, MicroBatcher
from reward_sdk.config import Entry
from reward_sdk.errors import OverloadedError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Outcome, Sample


async def one(batcher: MicroBatcher, item):
    """The result of a single item."""
    [result] = await batcher.submit([item])
    return result


def submit(batcher: MicroBatcher, items) -> list:
    """What each of the items, handed in together, gets: a result or its exception."""

    async def run():
        return await asyncio.gather(*(one(batcher, i) for i in items), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(run(), 10))


class Recorder:
    """Squares numbers and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        return [item**2 for item in items]


@settings(max_examples=25)
@given(st.lists(st.integers(), max_size=40), st.integers(1, 8))
def test_every_caller_gets_the_result_of_its_own_item(items, max_batch):
    batcher = MicroBatcher(Recorder(), max_batch, max_wait=0.001)
    assert submit(batcher, items) == [item**2 for item in items]


def test_no_batch_is_larger_than_allowed():
    record = Recorder()
    submit(MicroBatcher(record, max_batch=4), range(30))
    assert max(map(len, record.batches)) <= 4


def test_items_that_come_together_share_a_batch():
    record = Recorder()
    submit(MicroBatcher(record, max_batch=8, max_wait=5), range(8))
    assert record.batches == [list(range(8))]


def test_a_lonely_item_does_not_wait_for_a_full_batch():
    batcher = MicroBatcher(Recorder(), max_batch=64, max_wait=0.01)
    began = time.monotonic()
    assert submit(batcher, [3]) == [9]
    assert time.monotonic() - began < 2


def test_the_function_runs_in_one_thread_whoever_calls():
    record = Recorder()
    batcher = MicroBatcher(record, max_batch=2)
    callers = [threading.Thread(target=submit, args=(batcher, range(5))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(record.threads) == 1
    assert threading.get_ident() not in record.threads


def test_an_exception_reaches_every_caller_of_its_batch():
    def fail(items):
        raise ValueError("no")

    results = submit(MicroBatcher(fail, max_batch=3, max_wait=5), range(3))
    assert [str(result) for result in results] == ["no"] * 3


def test_batches_after_an_exception_are_scored():
    def fail_on_zero(items):
        return [1 / item for item in items]

    batcher = MicroBatcher(fail_on_zero, max_batch=1)
    assert [type(r) for r in submit(batcher, [0])] == [ZeroDivisionError]
    assert submit(batcher, [2]) == [0.5]


def test_a_caller_that_gives_up_does_not_spoil_its_batch():
    record = Recorder()
    batcher = MicroBatcher(record, max_batch=3, max_wait=5)

    async def run():
        leaving, *staying = [asyncio.ensure_future(one(batcher, i)) for i in (1, 2)]
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0.05)
        staying.append(asyncio.ensure_future(one(batcher, 3)))
        return await asyncio.gather(*staying)

    assert asyncio.run(asyncio.wait_for(run(), 10)) == [4, 9]
    assert record.batches == [[2, 3]]


def test_a_caller_that_gives_up_during_the_call_does_not_spoil_its_batch():
    started, go_on = threading.Event(), threading.Event()

    def slow(items):
        started.set()
        go_on.wait(5)
        return items

    batcher = MicroBatcher(slow, max_batch=2, max_wait=5)

    async def run():
        leaving, staying = [asyncio.ensure_future(one(batcher, i)) for i in (1, 2)]
        await asyncio.to_thread(started.wait, 5)
        leaving.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert asyncio.run(asyncio.wait_for(run(), 10)) == 2


def test_the_items_of_one_caller_stay_together_and_in_order():
    record = Recorder()
    batcher = MicroBatcher(record, max_batch=4, max_wait=0.05)

    async def run():
        return await asyncio.gather(*(batcher.submit(x) for x in ([1, 2, 3], [4, 5], range(6, 16))))

    found = asyncio.run(asyncio.wait_for(run(), 10))
    assert [list(results) for results in found] == [
        [1, 4, 9],
        [16, 25],
        [i**2 for i in range(6, 16)],
    ]
    assert record.batches == [[1, 2, 3], [4, 5], list(range(6, 16))]


def test_a_function_that_gives_too_few_results_is_an_error():
    [error] = submit(MicroBatcher(lambda items: []), [1])
    assert "0 results for 1 items" in str(error)


class Letters:
    """The share of one letter in a response; notes the sizes of its batches and its threads."""

    bounds, needs = (0.0, 1.0), frozenset()

    def __init__(self, letter: str, light: bool = False, seconds: float = 0.0) -> None:
        self.name, self.light, self.seconds = f"letter_{letter}", light, seconds
        self.letter = letter
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, samples):
        time.sleep(self.seconds)
        self.sizes.append(len(samples))
        self.threads.add(threading.get_ident())
        if any("!" in sample.response for sample in samples):
            raise ValueError("no")
        return [Outcome(s.response.count(self.letter) / max(1, len(s.response))) for s in samples]


def letters(**options):
    return RewardSet(
        [
            (Letters("a"), Entry(weight=0.5)),
            (Letters("b", light=True), Entry(every=2)),
            (Letters("c"), Entry(every=3, mode="replace")),
        ]
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text("abc!", max_size=5000), st.integers(1, 6)), max_size=12))
def test_a_batched_set_scores_every_call_as_the_set_does(calls):
    rewards = letters()
    batched = BatchedSet(rewards, max_wait=0.001)

    async def run():
        return await asyncio.gather(*(batched.score([Sample(text)], step) for text, step in calls))

    found = asyncio.run(asyncio.wait_for(run(), 30))
    assert found == [rewards.score([Sample(text)], step) for text, step in calls]


def test_calls_that_come_together_share_a_batch_whatever_their_step():
    rewards = letters()
    batched = BatchedSet(rewards, max_wait=0.2)

    async def run():
        await asyncio.gather(*(batched.score([Sample("abc")], step) for step in range(1, 7)))

    asyncio.run(run())
    a, b, c = (column.reward for column in rewards.members)
    assert a.sizes == [6]
    assert b.sizes == [3]
    assert c.sizes == [2]


def test_each_reward_has_a_thread_of_its_own_and_light_ones_share_one():
    chosen = [Letters("a"), Letters("b", True), Letters("c"), Letters("d", True)]
    batched = BatchedSet(RewardSet([(letter, Entry()) for letter in chosen]), max_wait=0)
    for _ in range(3):
        asyncio.run(batched.score([Sample("ab")]))
    a, b, c, d = (letter.threads for letter in chosen)
    assert [len(threads) for threads in (a, b, c, d)] == [1] * 4
    assert b == d
    assert len(a | b | c | {threading.get_ident()}) == 4


def test_more_than_may_wait_is_taken_when_nothing_else_is_there():
    batched = BatchedSet(RewardSet([(Letters("a"), Entry())]), max_queue=3)
    assert len(asyncio.run(batched.score([Sample("a")] * 10))) == 10


def test_more_samples_than_may_wait_are_refused_at_once():
    batched = BatchedSet(RewardSet([(Letters("a", seconds=0.2), Entry())]), max_queue=3)

    async def run():
        first = asyncio.ensure_future(batched.score([Sample("a")] * 2))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError, match="2 samples are waiting, 3 may"):
            await batched.score([Sample("a")] * 2)
        third = await batched.score([Sample("a")])
        return await first, third

    first, third = asyncio.run(run())
    assert [score.total for score in first + third] == [1.0] * 3
    assert batched.pending == 0


def test_what_is_not_there_in_time_has_failed_and_the_rest_counts():
    rewards = RewardSet([(Letters("a", seconds=5), Entry()), (Letters("b"), Entry())])
    [score] = asyncio.run(BatchedSet(rewards).score([Sample("ab")], limit=0.2))
    assert score.parts["letter_a"].reason == "no answer within 0.2 s"
    assert score.logs["letter_a/failed"] == 1.0
    assert score.total == pytest.approx(1.0)  # scaled for the part that is missing


def test_an_observer_hears_of_every_call():
    calls = []
    batched = BatchedSet(letters(), max_wait=0.1, observe=calls.append)

    async def run():
        await asyncio.gather(*(batched.score([Sample("abc")], 6) for _ in range(4)))

    asyncio.run(run())
    sizes = {
        name: sum(len(c.parts) for c in calls if c.reward == name) for name in batched.rewards.names
    }
    assert sizes == {"letter_a": 4, "letter_b": 4, "letter_c": 4}
    assert all(len(call.waits) == len(call.parts) and call.seconds >= 0 for call in calls)
