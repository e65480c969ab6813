"""What other RL stacks send and expect, one file per stack; `describe` reads their docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import import_module

STACKS = ("trl", "verl", "swift", "openrlhf", "nemo_gym", "verifiers")
FIELDS = ("Receives", "Returns", "Logs", "On failure", "Does not", "Run for real")


@dataclass(frozen=True)
class Stack:
    """What an adapter's docstring says.

    Attributes:
        name: of the module.
        title: the stack, and what the adapter is there.
        example: what a user writes.
        facts: of `FIELDS`.
    """

    name: str
    title: str
    example: str
    facts: dict[str, str]


def describe(name: str) -> Stack:
    """The docstring of an adapter, taken apart.

    Args:
        name: of `STACKS`.
    """
    text = inspect.getdoc(import_module(f"reward_sdk.adapters.{name}")) or ""
    title, example, facts, *_ = text.split("\n\n")
    found = re.findall(r"^(\S[^:\n]*): (.*(?:\n {4}.*)*)", facts, re.MULTILINE)
    return Stack(
        name,
        title,
        inspect.cleandoc(example),
        {field: " ".join(words.split()) for field, words in found},
    )


def table() -> str:
    """Markdown: what each stack's adapter receives, returns, logs, and does on failure."""
    head = "| | " + " | ".join(FIELDS) + " |"
    rows = [head, "| --- " * (len(FIELDS) + 1) + "|"]
    for stack in map(describe, STACKS):
        cells = [f"**{stack.title.split(':')[0]}**", *(stack.facts[field] for field in FIELDS)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
