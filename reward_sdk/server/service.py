"""What a reward server does, whatever its routes are: it warms rewards up, reads images, scores,
and answers a request that comes again as it did before. The event loop never waits for a reward,
because rewards run in threads of their own (`BatchedSet`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from reward_sdk.batching import BatchedSet
from reward_sdk.errors import OverloadedError, RewardSDKError, ScoringError, explain
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.security import RefusedError, admit, open_wire_image
from reward_sdk.server.telemetry import Telemetry
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import ImageBytes, ImageFile, ScoreRequest, ServedSet, WireSample

logger = logging.getLogger(__name__)

LIMIT = 150.0  # ours: seconds for a request; OpenRLHF gives up after 180
DEADLINE = 100.0  # ours: seconds for a call of a reward whose entry in the set names none
_REMEMBERED = 512  # ours: answers kept for requests that come again
_RETRY = 5.0  # ours: seconds until a reward that failed to warm up is tried again


class RewardServer:
    """A reward set in work, images and repeated requests included.

    Args:
        rewards: the set.
        folders: image folders, resolved.
        max_batch: see `BatchedSet`.
        max_wait: see `BatchedSet`.
        max_queue: see `BatchedSet`.

    Attributes:
        info: what is served.
        telemetry: what was.
        batched: the set.
    """

    def __init__(
        self,
        rewards: RewardSet,
        folders: Sequence[Path] = (),
        max_batch: int = 64,
        max_wait: float = 0.005,
        max_queue: int = 4096,
    ) -> None:
        self.info = ServedSet(
            **vars(rewards.info), image_folders=tuple(str(folder) for folder in folders)
        )
        self.telemetry = Telemetry(rewards.names)
        self.batched = BatchedSet(
            rewards.with_deadline(DEADLINE), max_batch, max_wait, max_queue, self.telemetry.called
        )
        self.telemetry.watch(self.batched)
        self._folders, self._names = tuple(folders), frozenset(rewards.names)
        self._unwarmed = dict.fromkeys(rewards.names, "not called yet")
        self._images: WeakValueDictionary[ImageFile | ImageBytes, ImageRef] = WeakValueDictionary()
        self._answers: OrderedDict[str, tuple[bytes, asyncio.Task[list[Score]]]] = OrderedDict()

    @property
    def not_ready(self) -> dict[str, str]:
        """Reward -> why no calls of it can be expected to work: it has not been called without
        failing yet, or too many calls have not come back."""
        members = self.batched.rewards.members
        return self._unwarmed | {member.name: member.stuck for member in members if member.stuck}

    async def warm_up(self) -> None:
        """Calls every reward once, again and again until none of them fails."""
        image = ImageRef(pixels=Image.linear_gradient("L"))
        sample = Sample(wrap_report("No effusion."), "No effusion.", image, "warm-up")
        while self._unwarmed:
            try:
                [score] = await self.batched.score([sample], counting=frozenset(self._unwarmed))
                parts = {name: score.parts[name] for name in self._unwarmed}
                self._unwarmed = {
                    n: part.reason for n, part in parts.items() if part.status == "failed"
                }
            except RewardSDKError as error:  # failures may have to raise, the queue may be full
                self._unwarmed = dict.fromkeys(self._unwarmed, str(error))
            if self._unwarmed:
                logger.error(
                    "not ready: %s; tried again every %g s", ", ".join(self._unwarmed), _RETRY
                )
                await asyncio.sleep(_RETRY)
        logger.info("ready: %s", ", ".join(reward.name for reward in self.info.rewards))

    async def _sample(self, wire: WireSample) -> Sample:
        """The sample, its image's file read if a reward looks at it; RefusedError for an image that
        may not be."""
        image = None
        if wire.image is not None and "image" in self.info.needs:
            # The samples of a group share an image; its bytes are held once while any is in work.
            image = self._images.get(wire.image)
            if image is None:
                image = await asyncio.to_thread(open_wire_image, wire.image, self._folders)
                self._images[wire.image] = image
        return Sample(wire.response, wire.reference, image, wire.id)

    async def score_request(self, request: ScoreRequest, body: bytes) -> list[Score]:
        """The scores of a request; those of its first coming if it has come before.

        Raises:
            HTTPException: 409 for another request under the same id.
            RefusedError: an image may not be read; names its sample.
            OverloadedError, ConfigError, ScoringError: as `BatchedSet.score` does.
        """
        if request.request_id is None:
            return await self._score(request)
        key, digest = request.request_id, hashlib.sha256(body).digest()
        known, task = self._answers.get(key, (digest, None))
        if known != digest:
            raise HTTPException(409, f"request_id {key!r} was that of another request")
        if task is None:
            task = asyncio.create_task(self._score(request))
            self._answers[key] = digest, task
            while len(self._answers) > _REMEMBERED and self._oldest_is_done():
                self._answers.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception()):
                self._answers.pop(key, None)

    def _oldest_is_done(self) -> bool:
        _, task = next(iter(self._answers.values()))
        return task.done()

    async def _score(self, request: ScoreRequest) -> list[Score]:
        samples = []
        for i, wire in enumerate(request.samples):
            try:
                samples.append(await self._sample(wire))
            except RefusedError as error:
                raise RefusedError(f"samples.{i}: {error}") from None
        return await self.batched.score(samples, request.step, limit=LIMIT)

    async def score_row(self, row: Sample) -> Score:
        """The score of another stack's row. Waits for room. An image that may not be read fails the
        rewards that look at it.

        Raises:
            ScoringError: a text is too long; or a part failed whose policy is "raise".
            OverloadedError: there was no room for too long.
        """
        try:
            WireSample(response=row.response, reference=row.reference, id=row.id)  # its limits
        except ValidationError as error:
            raise ScoringError(explain(error, values=False)) from None
        sample = replace(row, image=await self._row_image(row.image))
        end = time.monotonic() + LIMIT
        while True:
            left = end - time.monotonic()
            try:
                return await self.score_one(sample, left)
            except OverloadedError:
                if left < 1:
                    raise
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def score_one(self, sample: Sample, limit: float) -> Score:
        """The score of a sample that comes without its step: every reward counts.

        Args:
            sample: its image is not checked.
            limit: see `BatchedSet.score`, which says what it raises.
        """
        [score] = await self.batched.score([sample], counting=self._names, limit=limit)
        return score

    async def _row_image(self, image: ImageRef | None) -> ImageRef | None:
        if image is None:
            return None
        try:
            return await asyncio.to_thread(admit, image, self._folders)
        except RefusedError as error:
            self.telemetry.problem("image", str(error))
            return ImageRef(data=b"", view=image.view)
