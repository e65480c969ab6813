"""Reading a report out of a response, and the text conventions that metrics share."""

import re

_REPORT = re.compile(r"\s*<report>(.*)</report>\s*", re.DOTALL)
_TAG = re.compile(r"</?report>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])|\n{2,}")
_NOT_WORD = re.compile(r"[^a-z0-9\s]+")


def extract_report(response: str) -> str | None:
    """The stripped text of the one `<report>...</report>` pair that makes up the response.

    None when tags are missing, repeated, nested or unclosed, when anything but white space
    stands outside of them, or when nothing stands inside.

    >>> extract_report("<report> No effusion. </report>")
    'No effusion.'
    >>> extract_report("Sure! <report> No effusion. </report>") is None
    True
    """
    match = _REPORT.fullmatch(response)
    if match is None or _TAG.search(match[1]):
        return None
    return match[1].strip() or None


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
