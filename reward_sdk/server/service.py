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
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from reward_sdk.batching import BatchedSet
from reward_sdk.errors import (
    ExhaustedError,
    OverloadedError,
    RewardSDKError,
    ScoringError,
    explain,
)
from reward_sdk.images import RefusedError
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.security import admit, open_wire_image
from reward_sdk.server.telemetry import Telemetry
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample, Score
from reward_sdk.wire import ImageBytes, ImageFile, ScoreRequest, ServedSet, WireSample

logger = logging.getLogger(__name__)

LIMIT = 150.0  # ours: seconds for a request; OpenRLHF gives up after 180
DEADLINE = 100.0  # ours: seconds for a call of a reward whose entry in the set names none
_REMEMBERED = 512  # ours: answers kept for requests that come again, ...
_SAMPLES = 16_384  # ours: ... and samples of these, 50 MB
_RETRY = 5.0  # ours: seconds until a reward that failed to warm up is tried again


@dataclass(frozen=True)
class _Answer:
    """The answer to a request that may come again: which it was, its samples, its scores."""

    digest: bytes
    samples: int
    task: asyncio.Task[list[Score]]

    @property
    def failed(self) -> bool:
        return self.task.done() and bool(self.task.cancelled() or self.task.exception())


class RewardServer:
    """A reward set in work, images and repeated requests included.

    Args:
        rewards: the set to serve.
        folders: folders of images that clients may name by path, without symbolic links.
        max_batch: largest number of samples in a batch of several calls; the samples of one are
            never split.
        max_wait: seconds that the first sample of a batch waits for company.
        max_queue: number of samples that may be waiting or in work at a time. A request of more is
            taken when there is no other.

    Attributes:
        info: what is served, in plain values: the set, and the image folders.
        telemetry: what has been counted and remembered of calls, requests and problems.
        batched: the set behind its queue, with a deadline for every reward.
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
        self._opening: dict[ImageFile | ImageBytes, asyncio.Task[ImageRef]] = {}
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._remembered = 0  # samples of these

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
                why = "; ".join(f"{name}: {reason}" for name, reason in self._unwarmed.items())
                logger.error("not ready: %s; tried again every %g s", why, _RETRY)
                await asyncio.sleep(_RETRY)
        logger.info("ready: %s", ", ".join(reward.name for reward in self.info.rewards))

    async def _sample(self, wire: WireSample) -> Sample:
        """The sample, its image checked if a reward looks at it.

        Raises:
            RefusedError: the image may not be read.
            ExhaustedError: the machine is out of files or memory.
        """
        image = None
        if wire.image is not None and "image" in self.info.needs:
            # The samples of a group share an image: it is held once while any of them is in work,
            # also when all of them come at the same time.
            image = self._images.get(wire.image)
            if image is None:
                image = self._images[wire.image] = await self._opened(wire.image)
        return Sample(
            wire.response, wire.reference, image, wire.id, age=wire.age, indication=wire.indication
        )

    async def _opened(self, image: ImageFile | ImageBytes) -> ImageRef:
        """`open_wire_image`, once for all who ask meanwhile."""
        task = self._opening.get(image)
        if task is None:
            task = self._opening[image] = asyncio.create_task(
                asyncio.to_thread(open_wire_image, image, self._folders)
            )
            task.add_done_callback(lambda _: self._opening.pop(image))
        return await asyncio.shield(task)

    async def score_request(self, request: ScoreRequest, body: bytes) -> list[Score]:
        """The scores of a request; those of its first coming if it has come before.

        Raises:
            HTTPException: another request has come under the same id (409).
            RefusedError: an image may not be read; names its sample.
            OverloadedError: the queue has no room for these samples.
            ConfigError: the set has a schedule and there is no step, or the step is below 1.
            ScoringError: a part failed whose policy (`on_failure`) is "raise".
            ExhaustedError: the machine is out of files, memory or disk.
        """
        if request.request_id is None:
            return await self._score(request)
        key, digest = request.request_id, hashlib.sha256(body).digest()
        answer = self._answers.get(key)
        if answer is None:
            task = asyncio.create_task(self._score(request))
            answer = self._answers[key] = _Answer(digest, len(request.samples), task)
            self._remembered += answer.samples
            while self._too_many_answers and next(iter(self._answers.values())).task.done():
                self._forget(next(iter(self._answers)))
        if answer.digest != digest:
            raise HTTPException(409, f"request_id {key!r} was that of another request")
        try:
            return await asyncio.shield(answer.task)
        finally:
            if answer.failed and self._answers.get(key) is answer:
                self._forget(key)

    @property
    def _too_many_answers(self) -> bool:
        return len(self._answers) > _REMEMBERED or self._remembered > _SAMPLES

    def _forget(self, key: str) -> None:
        self._remembered -= self._answers.pop(key).samples

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
            OverloadedError, ExhaustedError: there was no room, file or memory for too long.
        """
        try:
            WireSample(  # its limits
                response=row.response,
                reference=row.reference,
                id=row.id,
                indication=row.indication,
            )
        except ValidationError as error:
            raise ScoringError(explain(error, values=False)) from None
        end = time.monotonic() + LIMIT
        while True:
            left = end - time.monotonic()
            try:
                sample = replace(row, image=await self._row_image(row.image))
                return await self.score_one(sample, left)
            except (OverloadedError, ExhaustedError) as error:
                if isinstance(error, ExhaustedError):
                    self.telemetry.exhausted(str(error))
                if left < 1:
                    raise
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def score_one(self, sample: Sample, limit: float) -> Score:
        """The score of a sample that comes without its step: every reward counts. Raises as
        `BatchedSet.score` does.

        Args:
            sample: the sample to score; its image is not checked.
            limit: seconds after which the parts that are not there yet have failed.
        """
        [score] = await self.batched.score([sample], counting=self._names, limit=limit)
        return score

    async def _row_image(self, image: ImageRef | None) -> ImageRef | None:
        """The image, checked; one that may not be read has no content. ExhaustedError as `admit`
        raises it."""
        if image is None:
            return None
        try:
            return await asyncio.to_thread(admit, image, self._folders)
        except RefusedError as error:
            self.telemetry.problem("image", str(error))
            return ImageRef(data=b"", view=image.view)
