"""Reading a report out of a response, and the text conventions that metrics share."""

import re
from dataclasses import dataclass

_RESPONSE = re.compile(
    r"(?:\s*(?:<think>)?(?P<think>.*?)</think>)?\s*<report>(?P<report>.*)</report>\s*", re.DOTALL
)
_TAG = re.compile(r"</?(?:report|think)>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])|\n{2,}")
_NOT_WORD = re.compile(r"[^a-z0-9\s]+")


@dataclass(frozen=True)
class Parsed:
    """A well-formed response.

    Attributes:
        report: the text between the `<report>` tags, stripped, never empty.
        think: the reasoning before it, stripped, never empty; None if there is no `<think>` block.
    """

    report: str
    think: str | None


def parse_response(response: str) -> Parsed | None:
    """Reads `<report>...</report>`, with or without one `<think>...</think>` block before it.

    The opening `<think>` may be missing: some chat templates write it into the prompt.

    None when the response is not well formed: tags missing, repeated, nested, unclosed or with
    nothing inside, or anything but white space outside of them.

    >>> parse_response("<think> Clear. </think> <report> No effusion. </report>")
    Parsed(report='No effusion.', think='Clear.')
    >>> parse_response("Sure! <report> No effusion. </report>") is None
    True
    """
    match = _RESPONSE.fullmatch(response)
    if match is None:
        return None
    think, report = (part if part is None else part.strip() for part in match.group(1, 2))
    if not report or think == "" or any(_TAG.search(part) for part in (think, report) if part):
        return None
    return Parsed(report, think)


def extract_report(response: str) -> str | None:
    """The report of a well-formed response, else None."""
    parsed = parse_response(response)
    return parsed and parsed.report


def wrap_report(report: str) -> str:
    """The response that a policy should give: the report between its tags."""
    return f"<report> {report.strip()} </report>"


def tokens(text: str) -> list[str]:
    """Words in the IU-XRay / R2Gen convention: lower case, punctuation dropped, split at blanks.

    >>> tokens("No focal consolidation, effusion.")
    ['no', 'focal', 'consolidation', 'effusion']
    """
    return _NOT_WORD.sub(" ", text.lower()).split()


def sentences(text: str) -> list[str]:
    """Sentences of a report, in order, stripped; a decimal point does not end one.

    >>> sentences("Heart size normal. Nodule of 1.5 cm.  No effusion.")
    ['Heart size normal.', 'Nodule of 1.5 cm.', 'No effusion.']
    """
    return [s for part in _SENTENCE_END.split(text) if (s := part.strip())]
