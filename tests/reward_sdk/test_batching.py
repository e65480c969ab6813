import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_sdk.batching import MicroBatcher


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
