"""Reading a report out of a response, and the text conventions that metrics share."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isnan
from typing import Literal

MAX_TEXT = 100_000  # ours: characters of one text; reports have a few hundred

_TAG = re.compile(r"</?(?:report|think)>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])|\n{2,}")
_NOT_WORD = re.compile(r"[^a-z0-9\s]+")
_LIST_NUMBER = re.compile(r"(?<!\S)[1-5]\. ")
_R2GEN_DROPS = re.compile(r"""[].,?;*!%^&_+():<=>@[{}"'/\\]""")


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
    # By the first and the last tag: one pattern for all of it takes quadratic time on a text of
    # repeated tags.
    before, opened, rest = response.strip().partition("<report>")
    report, closed, after = rest.rpartition("</report>")
    if not opened or not closed or after:
        return None
    think = None
    if before:
        think, ended, between = before.removeprefix("<think>").partition("</think>")
        if not ended or between.strip():
            return None
        think = think.strip()
    report = report.strip()
    if not report or think == "" or any(_TAG.search(part) for part in (think, report) if part):
        return None
    return Parsed(report, think)


Tags = Literal["required", "optional"]
"""Whether a report must stand between `<report>` tags, or a response without any is one itself."""


def has_tags(response: str) -> bool:
    """Whether a response has a `<report>` tag, well formed or not."""
    return "<report>" in response or "</report>" in response


def extract_report(response: str, tags: Tags = "required") -> str | None:
    """The report of a well-formed response, else None.

    >>> extract_report("<think> Clear. </think> No effusion.", tags="optional")
    'No effusion.'
    """
    if tags == "optional" and not has_tags(response):
        head, ended, rest = response.rpartition("</think>")
        response = f"{head}{ended}{wrap_report(rest)}"
    parsed = parse_response(response)
    return parsed and parsed.report


def plain_reference(text: str) -> str | None:
    """The report of a reference, which may still have its tags and the reasoning before them; None
    where nothing but blanks is in it.

    Raises:
        ValueError: the tags are not well formed, so that what the report is cannot be told.

    >>> plain_reference("<think> Hm. </think> <report> No effusion. </report>")
    'No effusion.'
    """
    if not _TAG.search(text):
        return text if text.strip() else None
    if not _TAG.sub("", text).strip():
        return None
    report = extract_report(text, "optional")
    if report is None:
        if re.fullmatch(r"(?:<think>[\s\S]*</think>)?\s*<report>\s*</report>", text.strip()):
            return None
        raise ValueError("its tags are not one <report> pair around all of the report")
    return report


# A bare "M" is months behind DICOM's three digits; elsewhere it may well mean a man.
_AGE = re.compile(
    r"[>\u2265]? ?(\d+(?:\.\d+)?)\+?[ -]?(?:(y|yo|y/o|yrs?|years?)|((?<=\d{3})m|mos?|months?)"
    r"|(w|weeks?)|(d|days?))?(?:[ -]old)?(?: (?:man|woman|male|female|m|f))?",
    re.IGNORECASE,
)
_PER_YEAR = (1, 12, 52.18, 365.25)
_OLDEST = 150  # ours: years


def years_of(age: float | str | None) -> float | None:
    """An age in years, 0 to 150, from a number of years or a text such as "82", "64 years", "90+",
    as de-identified data have it, or DICOM's "082Y", "006M", "003W" and "012D"; None for None, a
    blank text and NaN.

    Raises:
        ValueError: it is no such age.

    >>> years_of("082Y"), years_of("006M"), years_of("64 years")
    (82.0, 0.5, 64.0)
    """
    if age is None or (isinstance(age, str) and age.strip().lower() in ("", "nan")):
        return None
    years = -1.0
    if isinstance(age, str):
        if found := _AGE.fullmatch(age.strip()):
            number, *units = found.groups()
            per_year = next((n for unit, n in zip(units, _PER_YEAR, strict=True) if unit), 1)
            years = float(number) / per_year
    elif not isinstance(age, bool):
        with suppress(TypeError, ValueError, OverflowError):  # no number, or a huge one
            years = float(age)
    if isnan(years):
        return None
    if not 0 <= years <= _OLDEST:
        raise ValueError(f"no age: {str(age)[:100]!r}; write years (82) or as DICOM does (006M)")
    return years


def wrap_report(report: str) -> str:
    """The response that a policy should give: the report between its tags."""
    return f"<report> {report.strip()} </report>"


def tokens(text: str) -> list[str]:
    """Words as the IU-XRay literature has them: lower case, split where it is not a-z or 0-9.

    Reports in another alphabet are empty by this rule: use `whitespace` for them.

    >>> tokens("No focal consolidation, effusion.")
    ['no', 'focal', 'consolidation', 'effusion']
    """
    return _NOT_WORD.sub(" ", text.lower()).split()


def r2gen_tokens(text: str) -> list[str]:
    """Words as R2Gen's cleaning leaves them, with a full stop as the last token of every sentence.

    Lower case; the list numbers 1 to 5 dropped; sentences end at a stop with a blank behind it, or
    with the text; other punctuation is deleted, so that "1.5" becomes "15", but hyphens stay.
    Two deviations from R2Gen's code: it also cuts "1. " off the end of a word ("T11. "), and
    it writes a lone stop for a sentence without a word, so that an empty report has a token.

    >>> r2gen_tokens("1. Heart size is normal. 2. X-ray shows a nodule, 1.5 cm")
    ['heart', 'size', 'is', 'normal', '.', 'x-ray', 'shows', 'a', 'nodule', '15', 'cm', '.']
    """
    text = _LIST_NUMBER.sub(". ", " ".join(text.lower().split()))
    parts = (_R2GEN_DROPS.sub("", part).split() for part in text.split(". "))
    return [word for part in parts if part for word in (*part, ".")]


Normalise = Literal["iu", "r2gen", "whitespace"]
NORMALISE: Mapping[Normalise, Callable[[str], list[str]]] = {
    "iu": tokens,
    "r2gen": r2gen_tokens,
    "whitespace": str.split,
}
"""Text normalisations by name: text -> tokens, none of which is empty or holds white space."""


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs; empty for fewer than n words.

    >>> ngrams(["no", "no", "no"], 2)
    Counter({('no', 'no'): 2})
    """
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def sentences(text: str) -> list[str]:
    """Sentences of a report, in order, stripped; a decimal point does not end one.

    >>> sentences("Heart size normal. Nodule of 1.5 cm.  No effusion.")
    ['Heart size normal.', 'Nodule of 1.5 cm.', 'No effusion.']
    """
    return [s for part in _SENTENCE_END.split(text) if (s := part.strip())]
