"""A radiologist's report in free text: its sections, and which of them is the reference.

A reader of free text goes through four steps, each of which can be left out: `sections_of` cuts,
`joined` makes one paragraph of a section, `without_marks` treats what de-identification left, and
`report_of` chooses. `indication_of` says why the study was made.

Sections are cut by the rules of MIMIC-CXR's own script (MIT-LCP/mimic-cxr 3190146, txt/), written
anew: the same names and texts for every report, see `tests/golden/make_sections.py`. Three things
are other here, because there they are slips:

* The 23 studies whose conclusion stands under a wrong heading, and the 31 for which the script has
  character offsets (8 of them conclude nothing), are missing from its `mimic_cxr_sectioned.csv`;
  its other files have one text for each. Here that text is the `impression`, and under a wrong
  heading no longer the section that it was under: else a prompt with the indication could hold
  the report. A study with offsets has no other section, because its headings mislead.
* "NDICATION" is an indication, not an impression.
* "PFI" (preliminary findings or impression) is a wet read, not the patient's history, from which
  it would get into prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf
from typing import Literal, get_args

from reward_sdk.errors import ConfigError
from reward_sdk.models.statements import ITEM, WANTS_MORE, remembered

Choice = Literal["findings", "impression", "both"]
"""Which section is the report; `both` is ReXrank's form, "Findings: ... Impression: ..."."""

Marks = Literal["keep", "remove", "drop-sentence"]
"""What becomes of de-identification marks, see `without_marks`."""


def sections_of(text: str, study: str | None = None) -> dict[str, str]:
    """The sections of a report as MIMIC-CXR writes them, by their normalised names, in order.

    A heading is a line of capitals after one space, up to a colon. What stands before the first is
    the `preamble`, a text without any the `full report`. Of sections of one name the last one
    stays, but an empty one does not replace findings or an impression. A report with neither
    has a `last_paragraph` if there is a blank line in its last section: what follows that.

    Args:
        text: the report as its file has it; MIMIC begins every line with a space. Line ends may be
            of any kind.
        study: id of the study in MIMIC-CXR, such as "s50414267" or "50414267", for the 54 studies
            that need more than rules; None for reports from elsewhere.

    Returns:
        Name -> text, stripped, line breaks inside. Names are lower-case: `findings`, `impression`,
        `last_paragraph`, `comparison`, `indication`, `history`, `technique`, `examination`,
        `recommendations`, `wet read`, `addendum`..., or what the heading says where no rule knows
        it. Only findings and impression are never "".

    Raises:
        ConfigError: the text lacks the section in which the study's conclusion should be.

    >>> report = " FINAL REPORT\\n INDICATION:  Cough.\\n \\n FINDINGS: Clear\\n lungs."
    >>> sections_of(report)
    {'preamble': 'FINAL REPORT', 'indication': 'Cough.', 'findings': 'Clear\\n lungs.'}
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    study = study and study.removeprefix("s")
    if study in _OFFSETS:
        conclusion = text[slice(*_OFFSETS[study])].strip()
        return {"impression": conclusion} if conclusion else {}
    sections = _cut(text)
    names = {name for name, _ in sections}
    if "impression" not in names and "findings" not in names:
        name, last = sections[-1]
        paragraph, blank, rest = last.partition("\n \n")
        if blank:
            sections[-1:] = (name, paragraph), ("last_paragraph", rest)
    if wrong := _MISNAMED.get(study or ""):
        if wrong not in names:
            raise ConfigError(
                f"study {study}: its conclusion should be in the section {wrong!r}, but the text "
                f"has only {', '.join(sorted(names))}: is this MIMIC-CXR's report of that study?"
            )
        place = max(i for i, (name, _) in enumerate(sections) if name == wrong)
        sections.append(("impression", sections.pop(place)[1]))
    return {name: section.strip() for name, section in sections}


_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s")


def _cut(text: str) -> list[tuple[str, str]]:
    """Name and text of every section, without empty findings and impressions."""
    heading = _HEADING.search(text)
    if heading is None:
        return [("full report", text)]
    sections = [("preamble", text[: heading.start(1)])]
    while heading:
        name, start = _normalised(heading[1]), heading.end()
        # A heading on the first line of a section is part of its text.
        heading = _HEADING.search(text, max(text.find("\n", start), start))
        section = text[start : heading.start() if heading else None]
        if name not in ("findings", "impression") or section.strip():
            sections.append((name, section))
    return sections


_SPELLINGS = {
    spelling: name
    for name, spellings in {
        "indication": "reason for examination|reason for exam|clinical indication|idication"
        "|ndication",
        "history": "clinical information",
        "impression": "conclusion|impresson|imprression|imoression|impressoin|imprssion|impresion"
        "|imperssion|mpression|impession",
        "findings": "finding|findins|findindgs|findgings|findngs|findnings|finidngs",
        "comparison": "reference exam|comparision|comparsion|comparrison|comparisions",
        "examination": "exam|type of examination",
        "recommendations": "recommendation|recommendation(s)",
        "wet read": "wetread|pfi",
    }.items()
    for spelling in spellings.split("|")
}
# In the order in which they are looked for.
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
_VIEW = re.compile(  # a heading that says how the films were taken is one of findings
    r"chest|portable|ribs|bone window|two views|(?:pa|ap|one|frontal|lateral) view"
    r"|frontal (?:and|upright|semi-upright)|pa and lat|ap and lateral|lateral and (?:pa|ap)"
)


@lru_cache(maxsize=1 << 12)  # ours: MIMIC has fewer headings
def _normalised(heading: str) -> str:
    name = heading.lower().strip()
    if name in _SPELLINGS:
        return _SPELLINGS[name]
    if contained := next((known for known in _CONTAINED if known in name), None):
        return contained
    return "findings" if _VIEW.search(name) else name


# Studies of MIMIC-CXR by the name of the section in which their conclusion is.
_MISNAMED = {
    study: name
    for name, studies in {
        "recommendations": "50913680 59768032 59067458 59087630 58157373 56482935 58375018",
        "examination": "59363654 53356173 50743547 59215320 55157853",
        "technique": "59279892 53202765 50808053",
        "indication": "57936451 50058765 51966317 55124749 54365831 54654948",
        "note": "56451190",
        "history": "51491012",
    }.items()
    for study in studies.split()
}
# Where the conclusion begins and ends, in characters.
_OFFSETS = {
    "50525523": (201, 349), "57564132": (233, 554), "59982525": (313, 717),
    "53488209": (149, 475), "54875119": (234, 988), "50196495": (59, 399),
    "56579911": (59, 218), "52648681": (292, 631), "59889364": (172, 453),
    "53514462": (73, 377), "59505494": (59, 450), "53182247": (59, 412),
    "51410602": (47, 320), "56412866": (522, 822), "54986978": (59, 306),
    "59003148": (262, 505), "57150433": (61, 394), "56760320": (219, 457),
    "59562049": (158, 348), "52674888": (145, 296), "55258338": (192, 568),
    "59330497": (140, 655), "52119491": (179, 454),
    "58235663": (0, 0), "50798377": (0, 0), "54168089": (0, 0), "53071062": (0, 0),
    "56724958": (0, 0), "54231141": (0, 0), "53607029": (0, 0), "52035334": (0, 0),
}  # fmt: skip


def indication_of(sections: Mapping[str, str]) -> str | None:
    """Why the study was made: the indication, else the patient's history; None without either."""
    return sections.get("indication") or sections.get("history") or None


@dataclass(frozen=True)
class NoReport:
    """There is no report of the kind that was asked for.

    Attributes:
        reason: what is lacking, such as "no findings"; fit for counting.
    """

    reason: str


def report_of(sections: Mapping[str, str], choice: Choice) -> str | NoReport:
    """The reference: one section as it is, or both as "Findings: ... Impression: ...".

    `both` needs both. Half of the form would teach that a half is enough, and compare halves with
    wholes.

    >>> report_of({"findings": "Clear lungs.", "impression": "Normal."}, "both")
    'Findings: Clear lungs. Impression: Normal.'
    >>> report_of({"findings": "Clear lungs."}, "both")
    NoReport(reason='no impression')
    """
    _check(choice, Choice, "section of the report")
    wanted = ("findings", "impression") if choice == "both" else (choice,)
    if lacking := [name for name in wanted if not sections.get(name)]:
        return NoReport(f"no {' and no '.join(lacking)}")
    if choice == "both":
        return f"Findings: {sections['findings']} Impression: {sections['impression']}"
    return sections[choice]


def _check(value: str, kind: object, what: str) -> None:
    if value not in (known := get_args(kind)):
        raise ConfigError(f"{what}: {value!r} is none of {', '.join(known)}")


_COLUMNS = 60, 100  # ours: characters; who wraps does so between these, MIMIC near 78


def joined(text: str) -> str:
    """A text as one paragraph with single spaces.

    Wrapped lines are put together. A new statement begins after a blank line, with an item of a
    list, and with a capital at the start of a line whose first word had room on the line before.
    The statement before it gets a full stop if it ends without any mark, so that labelers do not
    read two as one.

    >>> joined("1. No effusion\\n2. Heart is\\n enlarged.")
    '1. No effusion. 2. Heart is enlarged.'
    """
    lines = [line.strip() for line in text.splitlines()]
    narrowest, widest = _COLUMNS
    longest = max(map(len, lines), default=0)
    column = max(longest, narrowest) if longest <= widest else inf
    if any(_begun(line, before, column) for before, line in pairwise(lines)):
        column = inf  # a list without marks; its longest line only seems to be full
    paragraph: list[str] = []
    blank = False
    for line in lines:
        if line and paragraph:
            before = paragraph[-1]
            begins = blank or ITEM.match(line) or _begun(line, before, column)
            if begins and before[-1] not in _STOPS:
                paragraph[-1] += "."
        if line:
            paragraph.append(line)
        blank = not line
    return " ".join(" ".join(paragraph).split())


_STOPS = ".!?;:,(/&-"


def _begun(line: str, before: str, column: float) -> bool:
    """Whether a line begins a statement, though none ends visibly and nothing was full."""
    if not before or not line[:1].isupper() or before[-1] in _STOPS or WANTS_MORE.search(before):
        return False
    return len(before) + 1 + len(line.split(None, 1)[0]) <= column


_MARK = re.compile(r"_{3,}|X{4,}|x{4,}")
_BREAK = re.compile(  # between sentences; not behind a title, a short form or an item's number
    r"(?<=[.!?])(?<!\b[Dd]r\.)(?<!\b[Dd]rs\.)(?<!\b[Mm][rs]\.)(?<!\b[Mm]rs\.)(?<!\bvs\.)"
    r"(?<!\s\d\.)(?<!^\d\.)"
    r"(?:(?<!\b[ap]\.m\.)|(?=\s+[A-Z]))(\s+)"
)


def without_marks(text: str, policy: Marks) -> str:
    """A text with its de-identification marks treated: "___" in MIMIC-CXR, "XXXX" or "xxxx" in
    Open-i.

    Args:
        text: one paragraph, see `joined`.
        policy: `keep` changes nothing. `drop-sentence` takes every sentence with a mark, and what
            else it says, away. `remove` takes the mark, and of the words around it those that lead
            to nothing else: "compared to ___ ." ends before "compared", "Dr. ___" goes; so does a
            sentence that says no more than that the marked is normal ("The XXXX are intact.").
            Open-i also marks words that tell nothing of a person, "likely" among them: without
            it a sentence may say more than the radiologist did.

    Raises:
        ConfigError: there is no such policy.

    >>> without_marks("Compared to ___, no change. Clear. Seen by Dr. ___.", "remove")
    'No change. Clear. Seen.'
    """
    _check(policy, Marks, "policy for de-identification marks")
    if policy == "keep" or not _MARK.search(text):
        return text
    parts = _BREAK.split(text)
    kept = ""
    for sentence, gap in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if _MARK.search(sentence):
            sentence = _without(sentence) if policy == "remove" else ""
        if sentence:
            kept += sentence + gap
    return kept.rstrip()


_LEADS = (
    r"(?:(?:as|when|if) compared|in comparison|compared|to|with|from|of|on|at|by|in|for|since|via"
    r"|dated?|performed|per|the|an?|this|that)"
)
_TELLS = r"(?:is|are|was|were|appears?|remains?|has|have)"
_TIDIED = [
    (re.compile(pattern, re.IGNORECASE), by)
    for pattern, by in [
        # What belongs to a mark: titles, hyphens, units of age and time, brackets, more marks.
        (r"(?:\bdrs?\.?|\bm(?:rs?|s)\.)\s+___", "___"),
        (r"(?:\b\w?-)?___(?:[- ]years?[- ]old\b)?-?", "___"),
        (r"[(\[]\s*___\s*[)\]]", "___"),
        (r"___(?:\s*(?:[-/:,]|\band\b|\bor\b)?\s*(?:a-?)?___)+", "___"),
        (r"___\s+[ap]\.?m\b(?:\.(?=\s+[a-z]|[.,;]))?", "___"),
        # What leads up to it and to nothing else, or leads on from it.
        (r"\b(no)\s+___\s+of(?:\s+an?)?\b", r"\1"),
        (rf"\b({_LEADS})\s+___\s+of\b", r"\1"),
        (rf"(^|\b(?:{_LEADS}|no|without|and|or)\s+)___\s*,?\s*(?:and|or)\s+", r"\1"),
        (rf"\b(?:{_LEADS}|and|or)\s+___(?=\s*(?:[.,;:!?)]|$)|\s+(?:{_LEADS}|there)\b)", "___"),
        (rf"(?:,\s*)?\b(?:and|or)\s+___(?=\s+{_TELLS}\b)", "___"),
        (rf"\b{_TELLS}\s+___(?=\s*[.!?]|\s*$)", "___"),
    ]
]
_SAYS_NOTHING = re.compile(  # that something, nobody knows what, is there or is normal
    rf"(?:there {_TELLS}\s+)?(?:no\s+)?___[.!?\s]*$"
    rf"|(?:the\s+)?___\s+{_TELLS}(?:\s+\w+)?\s+(?:clear|intact|normal|present|seen|stable"
    r"|unchanged|unremarkable|within normal limits)[.!?\s]*$",
    re.IGNORECASE,
)
_GONE = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"^\s*___\s*[,;:]?\s*", ""),
        (r"(?:\s*[,;:])?\s*___\s*(?=[.,;:!?)]|$)", ""),
        (r"(?<=\()___\s*", ""),
        (r"(\s)___\s|___", r"\1"),
    ]
]


@remembered
def _without(sentence: str) -> str:
    """A sentence without its marks; "" if nothing is left."""
    item = ITEM.match(sentence)
    number = item[0] if item else ""
    body = sentence[len(number) :]
    left, before = _MARK.sub("___", body), ""
    while left != before:
        before = left
        for pattern, by in _TIDIED:
            left = pattern.sub(by, left)
    if _SAYS_NOTHING.match(left):
        return ""
    for pattern, by in _GONE:
        left = pattern.sub(by, left)
    if not re.search(r"\w", left):
        return ""
    return number + (left if body[0].islower() else left[0].upper() + left[1:])
