"""What the model is asked: a small collection, of which a recipe chooses one by its name, or a text
of the user's own. Fine-tuning, rollouts and evaluation all ask what `question` gives."""

from __future__ import annotations

import re

from reward_sdk.errors import ConfigError, nearest
from reward_sdk.text import wrap_report
from valor_plugin.data.studies import Study

PLAIN_REPORT = (
    "Describe the findings of this chest X-ray. Write the report between <report> and </report>."
)
PROMPTS = {
    "report": PLAIN_REPORT,
    "indication": PLAIN_REPORT,
    "findings_and_impression": (
        "Describe this chest X-ray, first under Findings:, then under Impression: what they mean. "
        "Write the report between <report> and </report>."
    ),
}
"""Name -> text. That of `indication` begins with the study's indication, where it has one."""

INDICATION_LENGTH = 400  # ours: characters; a recorded indication is a line or two
_OPENS = re.compile(r"([<\[])(?=\S)")
_TOKEN = re.compile(r"([<\[])(?=[/|\w]+[>\]])")


def problem_of(prompt: str) -> str | None:
    """Why this is neither a name of `PROMPTS` nor a text to be a prompt; None where it is one."""
    if prompt in PROMPTS:
        return None
    if len(prompt.split()) < 2:
        return (
            f"{prompt!r} is no prompt's name: {nearest(prompt, PROMPTS)}; a prompt of your own has "
            "more than one word"
        )
    if "<image>" in prompt:
        return "'<image>' is put before the prompt for every image: leave it out of the text"
    return None


def question(prompt: str, study: Study) -> str:
    """What the model is asked about a study, in every stage and in evaluation.

    An indication is a stranger's text: it comes on one line, cut at 400 characters, with a space
    behind every "<" and "[", so that what looks like a token of the model is none.

    Args:
        prompt: a name of `PROMPTS`, or a text of more than one word, which is asked as it is.
        study: the study that the model is asked about.

    Raises:
        ConfigError: the prompt is neither; gives the nearest name.
    """
    if problem := problem_of(prompt):
        raise ConfigError(problem)
    text = PROMPTS.get(prompt, prompt).strip()  # the host would strip it
    if prompt == "indication" and study.indication and study.indication.strip():
        line = _OPENS.sub(r"\1 ", " ".join(study.indication.split()))
        return f"Indication: {line[:INDICATION_LENGTH].rstrip()}\n{text}"
    return text


def answer(study: Study) -> str:
    """What the model learns to answer about a study: its report in its tags, with a space behind
    the bracket of what looks like a token of the model (`<image>`, `</s>`, `[INST]`).

    Args:
        study: a study with a report.
    """
    return wrap_report(_TOKEN.sub(r"\1 ", study.report or ""))
