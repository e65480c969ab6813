"""A verifiers taskset's row, as a user would define it, and the framework's own scoring of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import verifiers.v1 as vf
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.errors import RolloutError
from verifiers.v1.graph import MessageNode
from verifiers.v1.state import state_cls
from verifiers.v1.trace import AgentInfo, Trace, TraceTask
from verifiers.v1.types import AssistantMessage

from reward_sdk.types import Sample


class ReportData(vf.TaskData):
    """A study."""

    reference: str | None = None
    report: str | None = None
    ground_truth: str | None = None
    xray: str | None = None
    view: str | None = None


class ReportTask(vf.Task[ReportData]):
    """It has no rewards of its own: they are plugged in."""


def trace_of(task: vf.Task, response: str) -> Trace:
    """What a finished rollout leaves."""
    node = MessageNode(message=AssistantMessage(content=response), sampled=True)
    info = TraceTask(type=type(task).__name__, data=task.data)
    state = state_cls(type(task))()
    return Trace(task=info, agent=AgentInfo(config=AgentConfig()), nodes=[node], state=state)


async def scored(plugin: Path, batch: Sequence[Sample]) -> list[Trace]:
    """The traces of these samples after `Task.score`; errors are what the rollout would record.

    Args:
        plugin: the file that has a reward `report`.
        batch: the samples.
    """
    config = vf.TaskConfig(rewards={"report": vf.RewardFunctionConfig(fn=f"{plugin}:report")})
    traces = []
    for sample in batch:
        image = sample.image
        data = ReportData(
            id=sample.id, prompt="Describe.", reference=sample.reference,
            xray=image and image.path, view=image and image.view,
        )  # fmt: skip
        task = ReportTask(data, config)
        trace = trace_of(task, sample.response)
        try:
            await task.score(trace)
        except RolloutError as error:
            trace.info["error"] = str(error)
        traces.append(trace)
    return traces
