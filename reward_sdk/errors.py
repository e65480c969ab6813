"""The error model.

Four kinds of failure are kept apart, because each wants another reaction:

* **Configuration errors** are the user's to mend and stop everything before work starts. The
  message names the file, the place in it, what is wrong and what would be right: `ConfigError`.
* **Scoring errors** concern one sample: an unreadable image, a model that ran out of memory. A
  reward raises `ScoringError` (or anything else); the reward set, and only it, turns that into a
  `failed` outcome. It never becomes a number unless the set says so with `on_failure`.
* **Exhaustion** concerns no sample: the machine is out of files, memory or disk. It is raised as
  `ExhaustedError` through rewards and sets, for whoever can wait and try again; a server answers
  503. A sample that was only there at the time has not failed.
* **A bad response** is none of these: a response without a well-formed report is a wrong answer. It
  earns the lower bound of every reward that reads reports.

Programming errors of the caller, such as a step that is not an integer, propagate.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, Protocol

_LONGEST = 4000  # ours: characters of a message; what is wrong may be as long as a file


class RewardSDKError(Exception):
    """Base of everything this package raises on purpose. Long messages are cut."""

    exit_code = 1
    """Of a command that ends with it."""

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST:
            message = f"{message[:_LONGEST]} ... ({len(message):,} characters)"
        super().__init__(message)


class ConfigError(RewardSDKError):
    """A setting, a file or a combination of them that cannot work; tells what to do."""

    exit_code = 2


class TokenError(ConfigError):
    """A reward server wants a token, or another one."""


class ScoringError(RewardSDKError):
    """A sample that a reward could not score."""


class OverloadedError(RewardSDKError):
    """More samples wait to be scored than may; trying again later helps."""


class ExhaustedError(RewardSDKError):
    """The machine is out of files, memory or disk; trying again later helps."""


_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def exhausted(error: BaseException) -> ExhaustedError | None:
    """The error that says so if this one, or one that it came from, means that the machine is out
    of something."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ExhaustedError):
            return cause
        if isinstance(cause, MemoryError):
            return ExhaustedError(os.strerror(errno.ENOMEM))
        if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
            return ExhaustedError(os.strerror(cause.errno))
        cause = cause.__cause__
    return None


class ServerError(RewardSDKError):
    """A reward server could not be reached, or did not answer in time."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the known ones that begin with it, the closest, or all of them.

    >>> nearest("rogue_l", ["bleu", "rouge_l"])
    "did you mean 'rouge_l'?"
    >>> nearest("densenet121", ["densenet121-res224-chex", "densenet121-res224-all", "resnet50"])
    "did you mean 'densenet121-res224-all' or 'densenet121-res224-chex'?"
    """
    known = sorted(known)
    near, lower = name[:100].lower(), {one.lower(): one for one in known}
    close = [one for one in known if near and one.lower().startswith(near)]
    close = close or [lower[one] for one in get_close_matches(near, lower, n=1, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(map(repr, close[:_NAMES]))}?"
    more = f" and {len(known) - _NAMES} more" if len(known) > _NAMES else ""
    return f"known: {', '.join(known[:_NAMES])}{more}"


_OBJECT = re.compile(r"<([^<>]{1,200}?)(?: object)? at 0x[0-9a-f]{1,16}>")
_DECIMAL_COMMA = re.compile(r"[+-]?\d{1,20},\d{1,20}", re.ASCII)
_NAMES = 30  # ours: names in a hint
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist = 3, 8, 8
_SHORT.maxstring = _SHORT.maxother = 200


class _Invalid(Protocol):
    """A validation error of pydantic, or FastAPI's."""

    def errors(self) -> Sequence[Any]: ...


def explain(error: _Invalid, values: bool = True) -> str:
    """A validation error as one line: what is wrong at which places, of which ten are named.

    Args:
        error: a validation error of pydantic or FastAPI.
        values: whether to repeat the values that were given, which may be reports.
    """
    parts = []
    for item in error.errors()[:10]:
        place = ".".join(str(key) for key in item["loc"])
        # of a whole mapping a validator says itself what is wrong in it
        told = item["type"] == "value_error" and isinstance(item["input"], Mapping)
        given = f" (got {_shown(item['input'])})" if values and not told else ""
        if isinstance(item["input"], str) and _DECIMAL_COMMA.fullmatch(item["input"]):
            given += "; numbers have a decimal point"
        parts.append(f"{place + ': ' if place else ''}{item['msg']}{given}")
    return "; ".join(dict.fromkeys(parts))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):  # what it holds may be secret
        return f"a mapping with {', '.join(map(str, [*value][:10])) or 'no key'}"
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"


def one_line(error: BaseException) -> str:
    """A foreign exception as part of a message: its type and text on one line, cut at 500."""
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be read)"
    return plain(f"{type(error).__name__}: {text}")


def plain(text: str) -> str:
    """A foreign text as part of a message: on one line, valid Unicode, cut at 500."""
    if not text:  # as most reasons are
        return ""
    text = _OBJECT.sub(r"\1", text[:1000])  # a Python object says nothing to people
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:500]
