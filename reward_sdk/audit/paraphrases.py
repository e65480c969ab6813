"""The same facts in other words, for whole sentences of common kinds. All wordings are ours."""

from __future__ import annotations

import re
from collections.abc import Callable

from reward_sdk.models.rule_labeler import label_reports

_IS_SEEN = r"(?: (?:is|are) (?:seen|identified|present|noted|visuali[sz]ed))?"
_NO_PART = r"(?:and|or|with|which|that|is|are|of|from|for|in|there|definite|changes?)\b"
_THING = rf"(?!{_NO_PART})[\w-]+(?: (?!{_NO_PART})[\w-]+){{0,6}}"
_IS_NORMAL = r"(?:(?:is|are|appears?) )?(?:normal|unremarkable|within normal limits)"
_ADVERBS = {
    "mild": "mildly", "moderate": "moderately", "severe": "severely", "marked": "markedly",
    "minimal": "minimally", "borderline": "borderline",
}  # fmt: skip
_ADJECTIVES = {adverb: adjective for adjective, adverb in _ADVERBS.items()}
# A whole sentence, without its full stop -> another wording; the first one that fits counts.
_WORDINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (
        r"no (?:evidence of )?(?:acute|active) (?:cardio)?(?:pulmonary )?"
        r"(?:disease|abnormalit(?:y|ies)|process|findings?)",
        "nothing acute is seen in the chest",
    ),
    (
        rf"(?:there (?:is|are) )?no (?:evidence of )?({_THING}) or ({_THING}){_IS_SEEN}",
        r"\1 and \2 are absent",
    ),
    (
        rf"(?:there (?:is|are) )?no (?:evidence of )?({_THING}){_IS_SEEN}",
        lambda m: (
            f"{m[1]} {'are' if m[1].endswith('s') and not m[1].endswith('is') else 'is'} absent"
        ),
    ),
    (
        rf"(?:the )?(?:heart|cardiac) (?:size |silhouette )?{_IS_NORMAL}(?: in size)?"
        r"|normal heart size",
        "the heart is not enlarged",
    ),
    (
        rf"(?:the )?cardio-?mediastinal (?:silhouette|contours?) {_IS_NORMAL}",
        "normal cardiomediastinal silhouette",
    ),
    (rf"(?:the )?(?:mediastinum|mediastinal contours?) {_IS_NORMAL}", "normal mediastinum"),
    (
        r"(?:the |both )?lungs (?:are|appear) (?:grossly )?clear(?: bilaterally)?|clear lungs",
        "there is no pulmonary opacity or consolidation",
    ),
    (
        r"(?:the )?(?:visuali[sz]ed )?(?:bony|osseous) structures (?:are|appear) "
        r"(?:intact|unremarkable|normal)",
        "the bones are intact",
    ),
    (
        rf"(?:there is )?(?:({'|'.join(_ADVERBS)}) )?cardiomegaly{_IS_SEEN}",
        lambda m: f"the heart is {_ADVERBS[m[1].lower()] + ' ' if m[1] else ''}enlarged",
    ),
    (
        rf"(?:the )?heart (?:size )?is (?:({'|'.join(_ADJECTIVES)}) )?enlarged",
        lambda m: f"{_ADJECTIVES[m[1].lower()] + ' ' if m[1] else ''}cardiomegaly",
    ),
    (rf"there (is|are) ({_THING}(?: in the [a-z ]{{3,30}})?)", r"\2 \1 seen"),
)


def capital(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]


def reworded(sentence: str) -> str:
    """The sentence in other words, or as it was if none fit without changing a label."""
    for pattern, new in _WORDINGS:
        match = re.fullmatch(pattern, sentence.rstrip(". "), re.IGNORECASE | re.ASCII)
        if match:
            other = capital(match.expand(new) if isinstance(new, str) else new(match)) + "."
            if label_reports([other]) == label_reports([sentence]):
                return other
    return sentence
