"""A report labeler made of regular expressions: report -> the 14 CheXpert observations.

Needs no weights and no packages. Each statement (`reward_sdk.models.statements`) is searched for
mentions of the 13 findings; what it says of a mention is told by `reward_sdk.models.polarity`.

Over a report the strongest mention of an observation wins: positive, uncertain, negative, blank.

Choices where labelers differ:

* A normal statement is a negative of what it speaks of: a heart of normal size of Cardiomegaly, a
  normal cardiomediastinal silhouette also of Enlarged Cardiomediastinum, clear or normal lungs of
  Lung Opacity and Consolidation, sharp costophrenic angles of Pleural Effusion, intact bones of
  Fracture. "No acute abnormality" names nothing and labels nothing.
* A heart that is borderline enlarged is an enlarged one. Vague words are uncertain: a nodular
  density is perhaps a Lung Lesion; vascular congestion and heart failure are perhaps Edema.
  Granulomas are no Lung Lesion.
* Findings are not propagated to broader ones: a consolidation is not also a Lung Opacity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward_sdk.models.polarity import Triggers, find_triggers, polarity
from reward_sdk.models.statements import remembered, statements
from reward_sdk.observations import OBSERVATIONS, RANK, no_finding


def _words(*alternatives: str) -> re.Pattern[str]:
    """Compiles alternatives so that they match whole words only; "@" stands for a gap."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b".replace("@", _GAP))


# A few words inside of a mention ("heart size is mildly enlarged") that keep to its subject.
_GAP = r"(?:(?!(?:and|or|but|with|aorta|aortic|normal|lungs?|heart)\b)[\w-]+ ){0,6}"
_HEART = r"(?:heart|cardiac)(?: (?:and mediastin\w+|size|silhouette|shadow|contours?))*"
_WIDE = r"(?:widen(?:ed|ing)|enlarge(?:d|ment)|prominen(?:t|ce))"
_BIG = r"(?:enlarge(?:d|ment)|prominen(?:t|ce)|increased|large|big|globular)"
_BIG_AT_END = (  # not "large effusion"
    rf"{_BIG}(?! (?!in|and|or|but|with|for|compared|since|is|was|seen|noted|at|on)\w)"
)

WIDE_MEDIASTINUM = _words(
    rf"{_WIDE} (?:of )?(?:the )?(?:\w+ )?(?:cardio-?)?mediastin(?:um|al)",
    rf"(?:cardio-?)?mediastin(?:um|al):? @{_WIDE}",
)
BIG_HEART = _words(
    r"cardiomegaly",
    rf"{_BIG} (?:of )?(?:the )?(?:heart|cardiac|cardio-?mediastinal)",
    rf"(?:{_HEART}|cardio-?mediastinal silhouette):? @{_BIG_AT_END}",
)
_MENTIONS = {
    "Enlarged Cardiomediastinum": WIDE_MEDIASTINUM,
    "Cardiomegaly": BIG_HEART,
    "Lung Opacity": _words(
        r"opaci\w+",
        r"infiltrat\w+",
        r"air ?-?space (?:disease|process)",
        r"(?:patchy|hazy|streaky|increased) densit(?:y|ies)",
        r"(?:increased|prominent|coarse(?:ned)?|thickened) (?:\w+ )?interstiti\w+",
        r"interstitial (?:lung )?(?:disease|process|changes?|prominence|thickening|pattern)",
        r"interstitial markings @(?:increased|prominent|coarse(?:ned)?)",
        r"reticul\w+",
        r"ground[ -]glass",
        r"(?<!pleural )scar(?:s|ring)?",
        r"(?:pulmonary )?fibrosis",
    ),
    "Lung Lesion": _words(
        r"(?P<vague>(?:nodular|mass-?like) (?:opaci\w+|densit(?:y|ies)))",
        r"nodul(?:es?|arity)",
        r"mass(?:es)?(?!-?like| effect)",
        r"(?:lung|pulmonary|cavitary|parenchymal) lesions?",
        r"tumou?rs?",
        r"neoplas\w+",
        r"malignan\w+",
        r"metasta\w+",
        r"carcinoma|cancer",
    ),
    "Edema": _words(
        r"(?<!tissue )edema",
        r"(?P<vague>(?:vascular|venous|pulmonary) (?:congestion|engorgement)|chf"
        r"|(?:heart|congestive) failure|(?:fluid|volume) overload)",
    ),
    "Consolidation": _words(r"consolidat\w+"),
    "Pneumonia": _words(
        r"(?:broncho)?pneumonias?", r"pneumonitis", r"(?<!granulomatous )infectio\w+"
    ),
    "Atelectasis": _words(
        r"atelecta\w+",
        r"(?:lobe|lobar|lung|segmental|basilar) collapse",
        r"(?:lobe|lung) is collapsed|collapsed (?:\w+ ){0,3}(?:lungs?|lobes?)",
        r"collapse of (?:the )?(?:\w+ ){0,4}(?:lungs?|lobes?)",
    ),
    "Pneumothorax": _words(r"(?:hydro|hemo|pyo)?pneumothora(?:x|ces)"),
    "Pleural Effusion": _words(
        r"(?<!pericardial )effusions?",
        r"(?:pleural|fissural) fluid",
        r"fluid (?:in|along|within) (?:the )?(?:\w+ )?fissures?",
        r"(?:hydro|hemo|pyo)pneumothora(?:x|ces)",
        r"h(?:ydro|emo)thora(?:x|ces)|empyema",
    ),
    "Pleural Other": _words(
        r"pleural(?:[ -]parenchymal)? (?:\w+ )?(?:thickening|plaques?|scar(?:s|ring)?)",
        r"pleural (?:\w+ )?calcifications?",
        r"fissural thickening",
        r"thickening (?:of|in|along) (?:the )?(?:\w+ ){0,2}(?:pleura|fissures?)",
        r"apical cap(?:s|ping)?",
        r"pleuro-?parenchymal",
        r"fibrothorax",
    ),
    "Fracture": _words(r"fractur\w+", r"(?:compression|wedge) deformit\w+"),
    "Support Devices": _words(
        r"(?:micro)?catheters?|cannulas?|tubes?|drains?|stents?|swan-?ganz",
        r"(?:picc|central|venous|subclavian|jugular|ij) (?:venous )?lines?|picc",
        r"port-?a-?cath\w*|mediports?",
        r"pace-?makers?|pacers?|a?icd|defibrillators?|leads?(?! to)|loop recorder|balloon pump",
        r"(?:sternal|sternotomy) wires",
        r"(?:prosthetic|artificial|mechanical) (?:\w+ )?valves?|valve (?:replacement|prosthesis)",
        r"hardware|devices?",
    ),
}


_SAYS = r"(?:is|are|was|were|has|have|appears?|remains?|seems?|looks?|shows?|demonstrates?)"
# Not in a list of subjects that one statement speaks of: what says something of one alone.
_SAID_ALONE = (
    r"not|no|without|but|with|stable|unchanged|enlarged|prominent|increased|large|mild\w*"
    r"|moderate\w*|borderline|tortuous|calcified"
)


def _said(what: str, subject: str) -> str:
    """A pattern of something said of a subject, which may stand in a list of several, by one verb
    and without "not": "heart size, mediastinum and hila are normal".

    From its last mention on: a search from each of a thousand mentions takes too long.
    """
    between = rf"(?:(?!\b(?:{_SAID_ALONE}|{_SAYS}|{subject})\b)[^;])*"
    said = rf"(?:(?!\b(?:not|{_SAYS}|{subject})\b)[^;,])*"
    return rf"(?:{subject})\b{between}(?:\b{_SAYS}\b{said})?\b(?:{what})"


_NORMAL = "normal|unremarkable|within normal limits"
_NORMAL_STATEMENTS = (
    (
        ("Cardiomegaly",),
        _words(_said(_NORMAL, "heart|cardiac"), r"(?:normal|unremarkable) (?:heart|cardiac)"),
    ),
    (
        ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        _words(_said(_NORMAL, r"cardio-?mediastin\w+"), r"normal cardio-?mediastin\w+"),
    ),
    (
        ("Enlarged Cardiomediastinum",),
        _words(_said(_NORMAL, r"mediastin\w+"), r"normal (?:heart and )?mediastin\w+"),
    ),
    (
        ("Lung Opacity", "Consolidation"),
        _words(
            _said(rf"clear(?! of)|{_NORMAL}", "lungs?(?! volume)|lung fields"),
            r"(?:clear|normal) lungs?",
        ),
    ),
    (("Pleural Effusion",), _words(r"costophrenic \w+ (?:are|is) (?:\w+ )?(?:clear|sharp)")),
    (
        ("Fracture",),
        _words(_said("intact|normal|unremarkable", r"bon(?:y|es)|osseous|skelet\w+")),
    ),
)


def label_reports(texts: Sequence[str]) -> list[dict[str, int | None]]:
    """Labels reports with the 14 CheXpert observations, by rules.

    Args:
        texts: reports without tags.

    Returns:
        One dict per text, keys in the order of `OBSERVATIONS`: 1 positive, 0 negative,
        -1 uncertain, None blank. "No Finding" is 1 if nothing but Support Devices is positive or
        uncertain, else None.
    """
    return [_label_report(text) for text in texts]


def _label_report(text: str) -> dict[str, int | None]:
    labels: dict[str, int | None] = dict.fromkeys(OBSERVATIONS)
    for sentence in statements(text):
        for observation, label in _label_sentence(sentence):
            if RANK[label] > RANK[labels[observation]]:
                labels[observation] = label
    labels["No Finding"] = no_finding(labels)
    return labels


SIDE = re.compile(
    r"\b(?:(?P<both>bilateral\w*|both|bibasilar|biapical|left and right|right and left"
    r"|left greater than right|right greater than left)"
    r"|left|right)\b(?! (?:atri|ventric|heart|main))"  # where a lead or a tube ends is no side
)
_CLAUSE_END = re.compile(r"[,;:]|(?<!left )(?<!right )\band\b|\b(?:but|with)\b")


def stated_sides(text: str) -> dict[str, frozenset[str]]:
    """The sides on which a report states observations, positive or uncertain.

    A side belongs to the observations of its clause, and to those of its sentence whose clauses
    name none if the sentence names no other: "left effusion and atelectasis".

    Returns:
        Observation -> "left", "right" or both of them; without those that have no side.

    >>> stated_sides("Small left effusion, no right pneumothorax.")
    {'Pleural Effusion': frozenset({'left'})}
    """
    found: dict[str, frozenset[str]] = {}
    for sentence in statements(text):
        stated = {name for name, label in _label_sentence(sentence) if label != 0}
        sides = sides_in(sentence)
        if not stated or not sides:
            continue
        near: dict[str, frozenset[str]] = dict.fromkeys(stated, frozenset())
        for clause in _CLAUSE_END.split(sentence):
            for name, _ in _label_sentence(clause.strip()):
                if name in stated:
                    near[name] |= sides_in(clause)
        for name, its in near.items():
            if its := its or (sides if len(sides) == 1 else its):
                found[name] = found.get(name, frozenset()) | its
    return found


def sides_in(statement: str) -> frozenset[str]:
    """The sides that a statement, or a part of it, names: "left", "right" or both of them."""
    found = {"both" if side["both"] else side[0] for side in SIDE.finditer(statement)}
    return frozenset({"left", "right"} if "both" in found else found)


def wrong_sides(report: str, reference: str) -> tuple[str, ...]:
    """The observations, in the order of `OBSERVATIONS`, that both texts state with a side, the
    report on one that the reference does not name. No labeler's F1 tells these from right ones.

    >>> wrong_sides("Right effusion.", "Left pleural effusion.")
    ('Pleural Effusion',)
    """
    ours, theirs = stated_sides(report), stated_sides(reference)
    return tuple(n for n in OBSERVATIONS if n in ours and n in theirs and ours[n] - theirs[n])


NOT_MENTIONED = "not mentioned"
_WORDS = {1: "present", 0: "absent", -1: "uncertain", None: NOT_MENTIONED}


def in_words(text: str) -> dict[str, str]:
    """What a report says of each observation, for people: "present", "absent", "uncertain", "not
    mentioned", with the side if it states one.

    >>> in_words("Small left effusion.")["Pleural Effusion"]
    'present, left'
    """
    sides = stated_sides(text)
    return {
        name: ", ".join(
            [_WORDS[label], *([" and ".join(sorted(sides[name]))] if name in sides else [])]
        )
        for name, label in _label_report(text).items()
    }


@remembered
def _label_sentence(sentence: str) -> tuple[tuple[str, int], ...]:
    """(observation, label) of every mention in one statement."""
    mentions = [(name, m) for name, words in _MENTIONS.items() for m in words.finditer(sentence)]
    triggers = find_triggers(sentence, [mention.span() for _, mention in mentions])
    labels = [(name, _label(sentence, mention, triggers)) for name, mention in mentions]
    for observations, pattern in _NORMAL_STATEMENTS:
        if pattern.search(sentence):
            labels += [(name, 0) for name in observations]
    return tuple((name, label) for name, label in labels if label is not None)


def _label(sentence: str, mention: re.Match[str], triggers: Triggers) -> int | None:
    label = polarity(sentence, mention.span(), triggers)
    return -1 if label == 1 and mention.lastgroup == "vague" else label
