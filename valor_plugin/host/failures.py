"""Why a run failed: the exceptions of its processes, and which of them is the root."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from reward_sdk.errors import plain
from valor_plugin.records import Failure, now

_ECHOES = ("EngineDeadError", "See root cause above", "ray.exceptions.")
"""What stands in an exception that only reports that of another process."""

_QUOTED = ("error raised in its creation task", "Original Traceback (most recent call last)")
"""Where Ray, or torch's DataLoader, keeps an exception of another process as a text; its own line
comes last."""

_TAKEN = ("EADDRINUSE", "Address already in use")
"""What torch and Python say of a port that another process has."""

_LOST = ("onnection closed by peer", "onnection reset by peer", "remote process exited")
"""What gloo and NCCL say where another process has ended."""


def failure(process: str, error: BaseException) -> Failure:
    """An exception as a record. Ray wraps what a worker raised; that is what counts."""
    if isinstance(cause := vars(error).get("cause"), BaseException):  # never another of Ray's
        error = cause
    told = "".join(traceback.format_exception_only(error)).strip()
    if any(mark in told for mark in _QUOTED):
        told = told.splitlines()[-1]
    return Failure(process, now(), plain(told))


def root(failures: Sequence[Failure]) -> Failure | None:
    """The failure that explains the others: the driver's own, unless it only reports one of another
    process and there is a record of that; None without any."""
    own = [each for each in failures if not any(echo in each.error for echo in _ECHOES)]
    drivers = [each for each in failures if each.process == "driver"]
    return next(iter([each for each in drivers if each in own] or own or list(failures)), None)


def lost_a_port(failure: Failure) -> bool:
    """Whether another process took a port that the host had found free."""
    return any(sign in failure.error for sign in _TAKEN)


def lost_a_peer(failure: Failure) -> bool:
    """Whether the process failed because another one that it worked with had ended."""
    return any(sign in failure.error for sign in _LOST)
