"""The one micro-batcher: callers hand in single items, a worker thread sees batches."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Collects items from concurrent callers into batches for one owner thread.

    Args:
        function: called with a list of items, returns one result each, in order. It runs in one
            thread only, so a model behind it needs no lock. If it raises, every caller of that
            batch gets the exception.
        max_batch: the largest batch.
        max_wait: seconds that the first item of a batch waits for company.
    """

    def __init__(
        self,
        function: Callable[[list[Item]], Sequence[Result]],
        max_batch: int = 64,
        max_wait: float = 0.005,
    ) -> None:
        self._function = function
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._queue: queue.SimpleQueue[tuple[Item, Future[Result]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="micro-batcher").start()

    async def submit(self, item: Item) -> Result:
        """The function's result for this item."""
        future: Future[Result] = Future()
        self._queue.put((item, future))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            deadline = time.monotonic() + self._max_wait
            while len(batch) < self._max_batch:
                try:
                    batch.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    break
            # A caller that gave up leaves the batch now; from here on none can.
            batch = [entry for entry in batch if entry[1].set_running_or_notify_cancel()]
            if not batch:
                continue
            items = [item for item, _ in batch]
            try:
                results = self._function(items)
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            except BaseException as error:  # the boundary between this thread and its callers
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
