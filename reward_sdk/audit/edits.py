"""The audit's edits: named ways to spoil a report, and ways to reword one without harm.

An edit that must lower makes a right report wrong, poorer or worse to read: the errors that
radiologists count (a false or missing finding; a wrong side, location, severity, size, certainty or
course; a comparison that nobody made) and what a policy may do instead of looking. An edit that
must not matter keeps every fact. Each does one thing and does not apply (None) where it could not;
what a report says is read by `reward_sdk.models.rule_labeler`. Choice of edits and all wordings are
ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random
from typing import Literal

from reward_sdk.audit.paraphrases import capital, reworded
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import asserted
from reward_sdk.text import sentences, wrap_report
from reward_sdk.types import ImageRef, Sample

Kind = Literal["must lower", "must not matter"]
# ours: the largest difference of two scores that is none. A fall may be small, since ranks make it
# count fully; of a rewording a little may be felt.
TOLERANCE: dict[Kind, float] = {"must lower": 1e-9, "must not matter": 0.02}

# The 13 findings as words that stand in "... is present." and in "No ...".
NOUNS = {
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "airspace opacity",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "central venous catheter",
}


@dataclass(frozen=True)
class Case:
    """What an edit sees.

    Attributes:
        sample: the sample to edit, with a well-formed report and a reference.
        others: every sample of the audit, in an order that does not depend on the file's.
        rng: random generator for this sample and this edit alone.
    """

    sample: Sample
    others: Sequence[Sample]
    rng: Random

    @property
    def report(self) -> str:
        return self.sample.report or ""

    @property
    def reference(self) -> str:
        return self.sample.reference or ""

    def shuffled(self, items: Sequence[str]) -> list[str]:
        return self.rng.sample(items, len(items))

    def other(self) -> Sample | None:
        """A patient whose findings are neither the reference's nor the report's, with an image
        where this one has an image."""
        own = findings(self.reference), findings(self.report)
        start, n = self.rng.randrange(len(self.others)), len(self.others)
        candidates = (self.others[(start + i) % n] for i in range(n))
        return next(
            (
                other
                for other in candidates
                if findings(other.reference or "") not in own
                and (self.sample.image is None or other.image is not None)
            ),
            None,
        )


@dataclass(frozen=True)
class Edit:
    """A named edit.

    Attributes:
        name: name of the edit, as tables have it.
        kind: what a good reward makes of the edit: "must lower" or "must not matter".
        function: gives the new report, or the new image, or None where it does not apply.
    """

    name: str
    kind: Kind
    function: Callable[[Case], str | ImageRef | None]

    @property
    def about(self) -> str:
        """What it does, in one sentence."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, sample: Sample, others: Sequence[Sample], seed: int = 0) -> Sample | None:
        """The edited sample; None where the edit does not apply or would change nothing: no word
        if it must lower, no character but blanks and a full stop if it must not matter.

        The same sample, others and seed give the same result; no other sample's edits matter.
        """
        # repr, because `Random` cannot take a text with half a surrogate pair
        case = Case(sample, others, Random(f"{seed} {self.name} {sample.id!r}"))
        new = self.function(case)
        if isinstance(new, ImageRef):
            return replace(sample, image=new)
        if new is None or self._unchanged(case.report, new):
            return None
        return replace(sample, response=wrap_report(new))

    def _unchanged(self, report: str, new: str) -> bool:
        if self.kind == "must lower":
            return _words(new) == _words(report)
        return new in (report, _text(sentences(report)))


EDITS: dict[str, Edit] = {}


def _edit(kind: Kind) -> Callable[[Callable[[Case], str | ImageRef | None]], Edit]:
    """Puts a function into `EDITS` under its own name with blanks."""

    def register(function: Callable[[Case], str | ImageRef | None]) -> Edit:
        name = function.__name__.replace("_", " ")
        EDITS[name] = Edit(name, kind, function)
        return EDITS[name]

    return register


def findings(text: str) -> frozenset[str]:
    """The findings that a report asserts, the uncertain ones among them."""
    (labels,) = label_reports([text])
    return frozenset(asserted(labels))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _spoils(case: Case, text: str) -> bool:
    """Whether a text's findings differ from the report's, and only where the report was right."""
    changed = findings(text) ^ findings(case.report)
    return bool(changed) and not changed & (findings(case.report) ^ findings(case.reference))


def _text(parts: Sequence[str]) -> str:
    """Sentences as a report; one without a full stop would run into the next."""
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts)


def _swap(text: str, words: Mapping[str, str]) -> str:
    """Replaces whole words, all at once; a capital stays one."""
    return re.sub(
        rf"\b(?:{'|'.join(words)})\b",
        lambda m: capital(words[m[0].lower()]) if m[0][0].isupper() else words[m[0].lower()],
        text,
        flags=re.IGNORECASE | re.ASCII,  # elsewhere other letters match "s" that do not lower to it
    )


def _in_assertions(case: Case, change: Callable[[str], str]) -> str:
    """The report with the sentences that assert a finding changed."""
    parts = sentences(case.report)
    return _text([change(part) if findings(part) else part for part in parts])


_FLIPS = (
    (r"\bno (?:evidence (?:of|for) )?", ""),
    (r"\bwithout (?:evidence (?:of|for) )?", "with "),
    (r"\bnegative for\b", "positive for"),
    (r"\b(?:is|are) (?:clear|free) of\b", "show"),
    (r"\bnot ", ""),
    (r"\babsent\b", "present"),
    (r"\bthere (is|are) (?:an? )?", r"there \1 no "),
    (r"\b(is|are) ", r"\1 not "),
    (r"^", "no "),
)


def _negated(sentence: str) -> str | None:
    """The sentence with the opposite polarity by the labeler, or None if no rule makes one."""
    (before,) = label_reports([sentence])
    plain = sentence[:1].lower() + sentence[1:]
    for pattern, new in _FLIPS:
        flipped = capital(re.sub(pattern, new, plain, count=1, flags=re.IGNORECASE))
        (after,) = label_reports([flipped])
        changed = findings(sentence) ^ findings(flipped)
        if changed and all(before[f] is not None and after[f] is not None for f in changed):
            return flipped
    return None


@_edit("must lower")
def negation_flipped(case: Case) -> str | None:
    """One sentence asserts what it denied, or denies what it asserted.

    Not where no sentence can be turned, or where what it says is said elsewhere too.
    """
    parts = sentences(case.report)
    for sentence in case.shuffled(parts):
        i = parts.index(sentence)
        flipped = _negated(sentence)
        if flipped and _spoils(case, text := _text([*parts[:i], flipped, *parts[i + 1 :]])):
            return text
    return None


@_edit("must lower")
def laterality_flipped(case: Case) -> str | None:
    """Left becomes right and right becomes left. Not where neither word stands."""
    return _swap(case.report, {"left": "right", "right": "left"})


_LEVELS = {
    "upper lobe": "lower lobe", "lower lobe": "upper lobe", "upper lung": "lower lung",
    "lower lung": "upper lung", "upper zone": "lower zone", "lower zone": "upper zone",
    "apical": "basal", "apex": "base", "apices": "bases", "biapical": "bibasilar",
    "basal": "apical", "basilar": "apical", "base": "apex", "bases": "apices",
    "bibasal": "biapical", "bibasilar": "biapical",
}  # fmt: skip


@_edit("must lower")
def location_changed(case: Case) -> str | None:
    """Upper lobe becomes lower lobe, base becomes apex, in the sentences that assert a finding.

    Not where none of them has such a word.
    """
    return _in_assertions(case, lambda part: _swap(part, _LEVELS))


_SEVERITY = {
    "mild": "severe", "minimal": "marked", "slight": "marked", "moderate": "minimal",
    "severe": "mild", "marked": "mild",
    "mildly": "severely", "minimally": "markedly", "slightly": "markedly",
    "moderately": "minimally", "severely": "mildly", "markedly": "mildly",
    "tiny": "large", "small": "large", "trace": "large", "large": "small", "massive": "small",
}  # fmt: skip


@_edit("must lower")
def severity_changed(case: Case) -> str | None:
    """Mild becomes severe, large becomes small, in the sentences that assert a finding.

    Not where none of them has such a word.
    """
    return _in_assertions(case, lambda part: _swap(part, _SEVERITY))


# One size with its unit: "8 mm", "2.5-cm", "2 x 3 cm", "2-3 cm".
_BETWEEN = r" ?(?:[x×-]|to|by) ?"
_SIZE = re.compile(
    rf"(?<![\w.,/-])(\d{{1,3}}(?:\.\d{{1,3}})?(?:{_BETWEEN}\d{{1,3}}(?:\.\d{{1,3}})?){{0,3}})"
    r"([ -]?)(cm|mm)\b",
    re.ASCII,
)


def _resized(text: str, factor: Decimal | int) -> str:
    """Numbers, each times a factor, without zeros at their ends."""
    return re.sub(r"[\d.]+", lambda m: f"{(Decimal(m[0]) * factor).normalize():f}", text)


@_edit("must lower")
def measurement_changed(case: Case) -> str | None:
    """Sizes in mm or cm are three times as large, in the sentences that assert a finding.

    Not where none of them has a size.
    """
    return _in_assertions(
        case, lambda part: _SIZE.sub(lambda m: _resized(m[1], 3) + m[2] + m[3], part)
    )


_CERTAINTY = {
    "possible": "definite", "questionable": "definite", "possibly": "definitely",
    "suspected": "confirmed", "suspicious for": "diagnostic of", "concerning for": "diagnostic of",
    "worrisome for": "diagnostic of", "cannot be excluded": "can be seen",
    "can not be excluded": "can be seen",
}  # fmt: skip


def _certain(sentence: str) -> str:
    """The sentence without doubt, or as it was if the labeler would read no less doubt in it."""
    sure = _swap(sentence, _CERTAINTY)
    (before,), (after,) = label_reports([sentence]), label_reports([sure])
    dispelled = any(before[name] == -1 and after[name] == 1 for name in NOUNS)
    return sure if dispelled else sentence


@_edit("must lower")
def certainty_changed(case: Case) -> str | None:
    """What the report calls possible is stated as certain.

    Not where it leaves no finding in doubt.
    """
    return _in_assertions(case, _certain)


_COURSE = {
    "improved": "worsened", "improving": "worsening", "improvement": "worsening",
    "worsened": "improved", "worsening": "improving", "worse": "improved",
    "increased": "decreased", "increasing": "decreasing", "decreased": "increased",
    "decreasing": "increasing", "progressed": "improved", "progression": "improvement",
    "stable": "worsened", "unchanged": "worsened",
}  # fmt: skip


@_edit("must lower")
def course_changed(case: Case) -> str | None:
    """Stable or improved becomes worsened, more becomes less, where a finding is asserted.

    Not where none of them has such a word.
    """
    return _in_assertions(case, lambda part: _swap(part, _COURSE))


_COMPARES = re.compile(
    rf"\b(?:{'|'.join(_COURSE)}|compar\w+|prior|previous\w*|interval|since|new|newly|again|still"
    r"|remains?|persist\w*|change[sd]?|resol\w+|increas\w*|decreas\w*|develop\w*|no longer)\b",
    re.IGNORECASE,
)


@_edit("must lower")
def comparison_invented(case: Case) -> str | None:
    """A finding is called new since a prior study.

    Not where the report asserts none, or where report or reference tell of a change or a prior.
    """
    if _COMPARES.search(case.report) or _COMPARES.search(case.reference):
        return None
    parts = sentences(case.report)
    asserted = [i for i, part in enumerate(parts) if findings(part)]
    if not asserted:
        return None
    i = case.rng.choice(asserted)
    parts[i] = f"{parts[i].rstrip('.!? ')}, new since the prior study."
    return _text(parts)


@_edit("must lower")
def finding_dropped(case: Case) -> str | None:
    """The sentences that assert one finding are left out.

    Not where report and reference share no finding, or where nothing else would be left.
    """
    parts = sentences(case.report)
    for finding in case.shuffled(sorted(findings(case.report) & findings(case.reference))):
        text = _text([part for part in parts if finding not in findings(part)])
        if text and finding not in findings(text):
            return text
    return None


@_edit("must lower")
def unsupported_finding_added(case: Case) -> str | None:
    """A sentence asserts one more finding, which the reference does not assert.

    Not where report and reference assert all of them.
    """
    missing = NOUNS.keys() - findings(case.report) - findings(case.reference)
    if not missing:
        return None
    noun = NOUNS[case.rng.choice(sorted(missing))]
    return _text([*sentences(case.report), f"{capital(noun)} is present."])


@_edit("must lower")
def every_finding_listed(case: Case) -> str | None:
    """Nothing but the 13 findings, all asserted. Not where the reference asserts them all."""
    if findings(case.reference) == NOUNS.keys():
        return None
    return " ".join(f"{capital(noun)} is present." for noun in NOUNS.values())


@_edit("must lower")
def every_finding_negated(case: Case) -> str | None:
    """Nothing but the 13 findings, all denied. Not where the reference asserts none."""
    if not findings(case.reference):
        return None
    return " ".join(f"No {noun}." for noun in NOUNS.values())


@_edit("must lower")
def generic_normal_report(case: Case) -> str | None:
    """The usual report of a healthy chest. Not where the reference asserts no finding."""
    if not findings(case.reference):
        return None
    return (
        "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax. "
        "No acute cardiopulmonary abnormality."
    )


@_edit("must lower")
def report_of_another_patient(case: Case) -> str | None:
    """The reference of a patient with other findings. Not where all have the same ones."""
    other = case.other()
    return other and other.reference


@_edit("must lower")
def first_sentence_only(case: Case) -> str | None:
    """All but the first sentence is cut off. Not where there is only one."""
    return sentences(case.report)[0]


@_edit("must lower")
def report_repeated(case: Case) -> str | None:
    """The whole report three times."""
    return " ".join([_text(sentences(case.report))] * 3)


@_edit("must lower")
def keywords_only(case: Case) -> str | None:
    """The words of the asserted findings, no sentences. Not where none is asserted."""
    found = findings(case.report)
    return ", ".join(noun for name, noun in NOUNS.items() if name in found) or None


@_edit("must lower")
def empty(case: Case) -> str | None:
    """Tags with nothing inside."""
    return ""


@_edit("must lower")
def wrong_image(case: Case) -> ImageRef | None:
    """The report stays, the image is that of a patient with other findings.

    Not where there is no image, or where all patients have the same findings.
    """
    other = case.sample.image and case.other()
    return other and other.image


@_edit("must not matter")
def sentences_shuffled(case: Case) -> str | None:
    """The same sentences in another order. Not where there is only one."""
    parts = sentences(case.report)
    order = case.shuffled(parts)
    return _text(order if order != parts else parts[::-1])


@_edit("must not matter")
def paraphrase(case: Case) -> str | None:
    """Sentences with the same facts in other words. Not where no sentence has a known wording."""
    return _text([reworded(part) for part in sentences(case.report)])


_SHORT = {
    "right upper lobe": "RUL", "right middle lobe": "RML", "right lower lobe": "RLL",
    "left upper lobe": "LUL", "left lower lobe": "LLL", "endotracheal tube": "ETT",
    "nasogastric tube": "NGT", "central venous catheter": "CVC", "pneumothorax": "PTX",
    "pneumonia": "PNA", "congestive heart failure": "CHF", "without": "w/o",
}  # fmt: skip


@_edit("must not matter")
def abbreviations(case: Case) -> str | None:
    """Right lower lobe becomes RLL, endotracheal tube ETT, pneumothorax PTX, without w/o.

    Not where no such word stands.
    """
    return _swap(case.report, _SHORT)


@_edit("must not matter")
def units_converted(case: Case) -> str | None:
    """Sizes in cm become the same in mm, and the other way. Not where there is none."""
    other = {"cm": (10, "mm"), "mm": (Decimal("0.1"), "cm")}
    return _SIZE.sub(lambda m: _resized(m[1], other[m[3]][0]) + m[2] + other[m[3]][1], case.report)


@_edit("must not matter")
def capital_letters(case: Case) -> str | None:
    """The whole report in capital letters."""
    return case.report.upper()


@_edit("must not matter")
def section_heading(case: Case) -> str | None:
    """The heading FINDINGS before the report. Not where it has one."""
    if re.search(r"\b(?:findings|impression)\W*:", case.report, re.IGNORECASE):
        return None
    return f"FINDINGS: {case.report}"


@_edit("must not matter")
def numbered_list(case: Case) -> str | None:
    """Every sentence is a numbered item on a line of its own, without its full stop.

    Not where there is only one, or where the report has a list already.
    """
    parts = sentences(case.report)
    if len(parts) == 1 or re.search(r"(?:^|\s)(?:\d+[.)]|[-*•#])(?:\s|$)", case.report):
        return None
    return "\n".join(f"{i}) {part.removesuffix('.')}" for i, part in enumerate(parts, 1))
