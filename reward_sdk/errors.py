"""The error model.

Three kinds of failure are kept apart, because each wants another reaction:

* **Configuration errors** are the user's to mend and stop everything before work starts. The
  message names the file, the place in it, what is wrong and what would be right: `ConfigError`.
* **Scoring errors** concern one sample: an unreadable image, a model that ran out of memory. A
  reward raises `ScoringError` (or anything else); the reward set, and only it, turns that into a
  `failed` outcome. It never becomes a number unless the set says so with `on_failure`.
* **A bad response** is neither: a response without a well-formed report is a wrong answer. It
  earns the lower bound of every reward that reads reports.

Programming errors of the caller, such as a step that is not an integer, propagate.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Protocol


class RewardSDKError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1
    """Of a command that ends with it."""


class ConfigError(RewardSDKError):
    """A setting, a file or a combination of them that cannot work; tells what to do."""

    exit_code = 2


class TokenError(ConfigError):
    """A reward server wants a token, or another one."""


class ScoringError(RewardSDKError):
    """A sample that a reward could not score."""


class OverloadedError(RewardSDKError):
    """More samples wait to be scored than may; trying again later helps."""


class ServerError(RewardSDKError):
    """A reward server could not be reached, or did not answer in time."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, or all of them if none is close.

    >>> nearest("rogue_l", ["bleu", "rouge_l"])
    "did you mean 'rouge_l'?"
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class _Invalid(Protocol):
    """A validation error of pydantic, or FastAPI's."""

    def errors(self) -> Sequence[Any]: ...


def explain(error: _Invalid, values: bool = True) -> str:
    """A validation error as one line: what is wrong at which places, of which ten are named.

    Args:
        error: pydantic's, or FastAPI's.
        values: whether to repeat what was given there, which may be a report.
    """
    parts = []
    for item in error.errors()[:10]:
        place = ".".join(str(key) for key in item["loc"])
        given = f" (got {item['input']!r})" if values else ""
        parts.append(f"{place + ': ' if place else ''}{item['msg']}{given}")
    return "; ".join(dict.fromkeys(parts))


def one_line(error: BaseException) -> str:
    """A foreign exception as part of a message: its type and text on one line, cut at 500."""
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be read)"
    return plain(f"{type(error).__name__}: {text}")


def plain(text: str) -> str:
    """A foreign text as part of a message: on one line, valid Unicode, cut at 500."""
    return " ".join(text[:1000].encode("utf-8", "backslashreplace").decode().split())[:500]
