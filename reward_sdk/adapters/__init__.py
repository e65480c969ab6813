"""What other RL stacks send and expect, one file per stack; docstrings are the documentation."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import import_module

STACKS = ("trl", "verl", "swift", "openrlhf", "nemo_gym", "verifiers")
_RUN = "Run for real"
FIELDS = ("Receives", "Returns", "Logs", "On failure", "Not applicable", "Does not", _RUN)


@dataclass(frozen=True)
class Stack:
    """What an adapter's docstring says, in its parts.

    Attributes:
        name: name of the adapter's module, one of `STACKS`.
        title: the docstring's first paragraph: the stack, and what the adapter is there.
        example: what a user writes, as code or command line, without indent.
        facts: field of `FIELDS` -> what the docstring says under it, on one line.
        notes: what else the docstring says; "" if nothing.
    """

    name: str
    title: str
    example: str
    facts: dict[str, str]
    notes: str


def describe(name: str) -> Stack:
    """The docstring of an adapter, taken apart.

    Args:
        name: name of the adapter's module, one of `STACKS`.
    """
    text = inspect.getdoc(import_module(f"reward_sdk.adapters.{name}")) or ""
    title, example, facts, *notes = text.split("\n\n")
    found = re.findall(r"^(\S[^:\n]*): (.*(?:\n {4}.*)*)", facts, re.MULTILINE)
    return Stack(
        name,
        title,
        inspect.cleandoc(example),
        {field: " ".join(words.split()) for field, words in found},
        "\n\n".join(notes),
    )


def page() -> str:
    """Markdown: what `docs/stacks.md` holds, a section for every adapter."""
    stacks = [describe(name) for name in STACKS]
    run = "\n".join(f"- {stack.facts[_RUN]}" for stack in stacks)
    return "\n\n".join([_INTRODUCTION.format(run=run), *map(_section, stacks)]) + "\n"


def _section(stack: Stack) -> str:
    language = "python" if "import" in stack.example else "text"
    facts = [f"- **{field}**: {words}" for field, words in stack.facts.items() if field != _RUN]
    title, example = stack.title.rstrip("."), f"```{language}\n{stack.example}\n```"
    parts = [f"## {title}", example, "\n".join(facts)]
    return "\n\n".join([*parts, stack.notes] if stack.notes else parts)


_INTRODUCTION = """\
# Rewards in other stacks

One definition of a reward set, `rewards.yaml` (see [rewards](rewards.md)), and the same totals in
every stack. Where its path stands, a list of names (`["rouge_l", "format"]`), a dict or the URLs
of [reward servers](server.md) (`"http://node1:8000,http://node2:8000"`) can stand, too. `pip
install .` in the clone is all that a stack's environment needs for text rewards. Where the stack
starts its workers elsewhere, as Ray does, give paths in full. Servers that want a token find it in
`$REWARD_SDK_TOKEN`. The lines below are beside those that the stack itself wants of a task.

Responses are reports between `<report>` tags. Where the policy writes reports without them, say so
in the set, `tags: optional`, else rewards that read reports give their lowest value, and a warning.

A row has its report under `reference`, `report` or `ground_truth`, its X-ray under `image` or
`images`, and may have `view`, `id`, `age` (the patient's: years, or DICOM's "082Y") and
`indication`. None, NaN and blank texts stand for what it does not have. A report that still has its
tags is taken out of them.

Components are logged one by one, and a failure is never a zero: it is None where the stack has
that, else a key of its own. So it is with a reward that does not apply to a sample (no reference,
no image, a side view), under another key. A part that is missing for either cause is left out of
the total, and the others are scaled up. Stacks that sum weighted rewards themselves get one
function more, `missing_parts`, which is 0 as long as nothing is missing and otherwise makes their
sum the set's total.

**Stale image embeddings.** vLLM keeps what vision tower and projector made of an image. If these
train, an image that comes again after an update gets the old embedding unless vLLM's encoder cache
is reset. TRL 1.16 (its issue 7198) and OpenRLHF 0.11.2 by itself do not reset it; verl 0.9.1 does,
and so does ms-swift 4.6 with vLLM 0.16 or later. The plugin in this distribution does at every
policy step, before the first sample of the step is generated. Elsewhere freeze both, or call vLLM's
`reset_encoder_cache` after each update.

`make test-contract` installs the real packages and drives them as their users would (minutes;
set-up once). Run for real, on a CPU:

{run}

Fifty samples, some without reference or image, some that fail, get the same totals and parts (to
2e-6) in process, from a server and from every adapter. What adapters cost:
[benchmarks](benchmarks.md#adapters).

This page is what `reward-sdk stacks` prints, from the docstrings of `reward_sdk.adapters`. Up:
[documentation](README.md)."""
