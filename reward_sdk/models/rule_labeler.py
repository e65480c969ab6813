"""A report labeler made of regular expressions: report -> the 14 CheXpert observations.

Needs no weights and no packages. Each sentence is searched for mentions of the 13 findings; a
mention is positive unless a trigger reaches it: negation and uncertainty before it ("no", "may
represent") or after it ("is not seen", "cannot be excluded"), in the manner of ConText (Harkema
et al., 2009). A trigger's scope ends at words that open a new statement ("but", "with").

Over a report the strongest mention of an observation wins: positive, uncertain, negative, blank.

Choices where labelers differ:

* A normal statement is a negative of what it speaks of: a heart of normal size of Cardiomegaly, a
  normal cardiomediastinal silhouette also of Enlarged Cardiomediastinum, clear lungs of Lung
  Opacity and Consolidation, sharp costophrenic angles of Pleural Effusion, intact bones of
  Fracture. "No acute abnormality" names nothing and labels nothing.
* "Likely" and "probably" are uncertain, "unlikely" is negative. In "atelectasis versus scarring"
  the first is positive and the second uncertain. A borderline heart is an enlarged one.
* Vague words are uncertain: a nodular density is perhaps a Lung Lesion; vascular congestion and
  heart failure are perhaps Edema. Granulomas are no Lung Lesion.
* Findings are not propagated to broader ones: a consolidation is not also a Lung Opacity.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from reward_sdk.observations import OBSERVATIONS

# Reports come with capitals and, in the R2Gen convention, without: full stops alone must do.
_SENTENCE_END = re.compile(
    r"(?<!\bvs)[.!?](?=\s|$)|(?<=[a-z]{2})\.(?=[a-z]{2})|\n\s*(?=\n|[-*]|\d+[.)])"
)


def _words(*alternatives: str) -> re.Pattern[str]:
    """Compiles alternatives so that they match whole words only; "@" stands for a gap."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b".replace("@", _GAP))


# A few words inside of a mention ("heart size is mildly enlarged") that keep to its subject.
_GAP = r"(?:(?!(?:and|or|but|with|aorta|aortic|normal|lungs?)\b)[\w-]+ ){0,5}"
_HEART = r"(?:heart|cardiac)(?: (?:and mediastin\w+|size|silhouette|shadow|contours?))*"
_WIDE = r"(?:widen(?:ed|ing)|enlarge(?:d|ment)|prominen(?:t|ce))"
_BIG = r"(?:enlarge(?:d|ment)|prominen(?:t|ce)|increased|large|big|globular)"
_BIG_AT_END = rf"{_BIG}(?! (?!in|and|or|but|with|for|compared|since)\w)"  # not "large effusion"

_MENTIONS = {
    "Enlarged Cardiomediastinum": _words(
        rf"{_WIDE} (?:of )?(?:the )?(?:\w+ )?(?:cardio-?)?mediastin(?:um|al)",
        rf"(?:cardio-?)?mediastin(?:um|al) @{_WIDE}",
    ),
    "Cardiomegaly": _words(
        r"cardiomegaly",
        rf"{_BIG} (?:of )?(?:the )?(?:heart|cardiac|cardio-?mediastinal)",
        rf"(?:{_HEART}|cardio-?mediastinal silhouette) @{_BIG_AT_END}",
    ),
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
        r"carcinoma",
    ),
    "Edema": _words(
        r"(?<!tissue )edema",
        r"(?P<vague>(?:vascular|venous|pulmonary) congestion|heart failure|chf)",
    ),
    "Consolidation": _words(r"consolidat\w+"),
    "Pneumonia": _words(
        r"(?:broncho)?pneumonias?", r"pneumonitis", r"(?<!granulomatous )infectio\w+"
    ),
    "Atelectasis": _words(
        r"atelecta\w+",
        r"(?:lobe|lobar|lung|segmental) collapse",
        r"collapse of (?:the )?(?:\w+ ){0,4}(?:lungs?|lobes?)",
    ),
    "Pneumothorax": _words(r"(?:hydro)?pneumothora(?:x|ces)"),
    "Pleural Effusion": _words(
        r"(?<!pericardial )effusions?",
        r"(?:pleural|fissural) fluid",
        r"hydropneumothora(?:x|ces)",
        r"h(?:ydro|emo)thorax",
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
    "Fracture": _words(r"fractur\w+"),
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


def _said(what: str, subject: str) -> str:
    """A pattern of something said of a subject, without "not" and in the same clause.

    From its last mention on: a search from each of a thousand mentions takes too long.
    """
    return rf"(?:{subject})\b(?:(?!\b(?:not|{subject})\b)[^;,])*\b(?:{what})"


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
        _words(_said("clear(?! of)", "lungs?|lung fields"), r"clear lungs?"),
    ),
    (("Pleural Effusion",), _words(r"costophrenic \w+ (?:are|is) (?:\w+ )?(?:clear|sharp)")),
    (
        ("Fracture",),
        _words(_said("intact|normal|unremarkable", r"bon(?:y|es)|osseous|skelet\w+")),
    ),
)

_SEEN = r"(?:seen|identified|noted|present|visuali[sz]ed|demonstrated|evident|appreciated|detected)"
_IS = r"(?:is|are|was|were|has|have|has\ been|have\ been)"
# One alternative per kind of trigger; where two fit, the first one wins: "no change in" is no
# negation and "cannot exclude" no denial.
_TRIGGER = re.compile(
    rf"""\b(?:
    (?P<no_trigger>
        (?:no|without|not)\ (?:(?:significant|substantial|interval|definite|appreciable)(?:ly)?\ )*
            (?:change|increase|decrease|progression|improvement)d?
      | not\ only)
  | (?P<maybe_before>
        (?:cannot|can\ not|not|to)\ (?:\w+\ )?(?:exclude|rule\ out) | rule\ out | evaluat\w+\ for
      | may|might|could|possibl[ey]|possibility|potential(?:ly)?|perhaps|probabl[ey]
      | (?:less\ )?likely|suspect(?:ed|s)?|suspicious|suspicion|suggest\w*
      | concern(?:ing)?\ for|worrisome|question(?:able|ed)?|equivocal|versus|vs|rather\ than
      | differential|consider|maybe|favor\w*|correlat\w+\ (?:\w+\ )?for)
  | (?P<no_before>
        ^(?:absent|resolved)
      | no(?!\ longer\ {_SEEN})|without|non|nor|neither|nothing|den(?:y|ies)
      | negative\ for|(?:absence|lack|free|clear|resolution|removal)\ of
      | (?:do|does|did)\ not\ (?:show|demonstrate|reveal|suggest|see))
  | (?P<maybe_after>
        (?:{_IS}\ )?(?:cannot|can\ not|not)\ (?:\w+\ ){{0,3}}(?:excluded|ruled\ out)
      | (?:difficult|hard)\ to\ (?:\w+\ )?exclude
      | {_IS}\ (?:\w+\ )?(?:possible|suspected|question(?:ed|able)|likely)
            (?=\W*$|[,;]|\ (?:and|in|at|on)\b)
      | (?:may|might|could)\ be\ present)
  | (?P<no_after>
        (?:{_IS}\ )?(?:not|no\ longer)\ (?:well-|\w+\ )?{_SEEN}
      | (?:{_IS}\ )?(?:(?!not\b)\w+\ )?(?:resolved|cleared|removed|absent
            |excluded|ruled\ out|unlikely)
      | \ ?[:-]\ (?:none|absent|negative|no)(?=\W*$))
  | (?P<not_before> not|never)
    )\b""",
    re.VERBOSE,
)
_STATEMENT = (
    r";|\b(?:but|however|although|though|yet|except|despite|which|aside from|apart from|other than"
    r"|there (?:is|are|has|was|were)|(?<!consistent )(?<!compatible )with)\b"
)
_VERB = rf"\b(?:is|are|was|were|has|have|{_SEEN})\b"
_SAID_AND = rf"{_VERB}(?:(?!{_VERB}).)*(?:,|\band\b)"  # from its last verb on, as in `_said`
_REACH = 300  # ours: characters; long enough for any list, keeps endless sentences cheap
# What ends the scope of each kind between the trigger and a mention.
_SCOPE_ENDS = {
    "no_before": re.compile(rf"{_STATEMENT}|\b(?:due|secondary) to\b|{_SAID_AND}"),
    "not_before": re.compile(rf"{_STATEMENT}|,|\band\b"),
    "maybe_before": re.compile(rf"{_STATEMENT}|\bwithout\b"),
    "no_after": re.compile(rf"{_STATEMENT}|{_VERB}"),
    "maybe_after": re.compile(rf"{_STATEMENT}|{_VERB}"),
}
# A list of denials goes over into a finding: "no pneumothorax, small effusion", but not in
# "no pneumothorax, small effusion, or edema".
_LIST_ENDS = re.compile(
    r"(?:,|\band\b)(?: and)?(?= (?:an? |the )?(?:small|tiny|trace|minimal|mild|mildly|moderate"
    r"|moderately|marked|stable|unchanged|persistent|possible|probable|likely|questionable)\b"
    r"(?!.*\bor\b)| the heart\b| heart\b| (?:\w+ ){1,4}(?:stable|unchanged|persists?)\b)"
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


# ours: words, and characters, that are read together. No sentence has so many, but a policy that
# repeats itself writes thousands, and the time grows with their square.
_LONGEST, _WIDEST = 200, 2000
_RANK = {None: 0, 0: 1, -1: 2, 1: 3}


def _label_report(text: str) -> dict[str, int | None]:
    labels: dict[str, int | None] = dict.fromkeys(OBSERVATIONS)
    for sentence in _sentences(text):
        for observation, label in _label_sentence(sentence):
            if _RANK[label] > _RANK[labels[observation]]:
                labels[observation] = label
    found = (o for o in OBSERVATIONS if o not in ("Support Devices", "No Finding"))
    labels["No Finding"] = None if any(labels[o] in (1, -1) for o in found) else 1
    return labels


def _sentences(text: str) -> Iterator[str]:
    """The sentences in lower case, those that are too long in pieces."""
    for sentence in _SENTENCE_END.split(text.lower()):
        words = sentence.split()
        for i in range(0, len(words), _LONGEST):
            piece = " ".join(words[i : i + _LONGEST])
            for j in range(0, len(piece), _WIDEST):
                yield piece[j : j + _WIDEST]


_SIDE = re.compile(
    r"\b(?:(?P<both>bilateral\w*|both|bibasilar|biapical|left and right|right and left)"
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
    for sentence in _sentences(text):
        stated = {name for name, label in _label_sentence(sentence) if label != 0}
        sides = _sides(sentence)
        if not stated or not sides:
            continue
        near: dict[str, frozenset[str]] = dict.fromkeys(stated, frozenset())
        for clause in _CLAUSE_END.split(sentence):
            for name, _ in _label_sentence(clause.strip()):
                if name in stated:
                    near[name] |= _sides(clause)
        for name, its in near.items():
            if its := its or (sides if len(sides) == 1 else its):
                found[name] = found.get(name, frozenset()) | its
    return found


def _sides(text: str) -> frozenset[str]:
    found = {"both" if side["both"] else side[0] for side in _SIDE.finditer(text)}
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


@lru_cache(maxsize=1 << 16)  # ours: reports are made of sentences that recur
def _label_sentence(sentence: str) -> tuple[tuple[str, int], ...]:
    """(observation, label) of every mention in one lower-case sentence."""
    mentions = [(name, m) for name, words in _MENTIONS.items() for m in words.finditer(sentence)]
    triggers: dict[str, list[re.Match[str]]] = {}
    for trigger in _TRIGGER.finditer(sentence) if mentions else ():
        triggers.setdefault(str(trigger.lastgroup), []).append(trigger)
    triggers.pop("no_trigger", None)
    labels = [(name, _polarity(sentence, mention, triggers)) for name, mention in mentions]
    for observations, pattern in _NORMAL_STATEMENTS:
        if pattern.search(sentence):
            labels += [(name, 0) for name in observations]
    return tuple(labels)


def _polarity(
    sentence: str, mention: re.Match[str], triggers: Mapping[str, Sequence[re.Match[str]]]
) -> int:
    """0 if a negation reaches the mention, else -1 if an uncertainty does, else 1."""
    reached = {kind for kind, found in triggers.items() if _reaches(sentence, kind, found, mention)}
    if reached & {"no_before", "not_before", "no_after"}:
        return 0
    return -1 if reached or mention.lastgroup == "vague" else 1


def _reaches(
    sentence: str, kind: str, triggers: Sequence[re.Match[str]], mention: re.Match[str]
) -> bool:
    """Whether the mention lies in the scope of a trigger of this kind; one inside the mention does
    reach it. The nearest one tells: what ends its scope ends those of all farther ones."""
    i = bisect_left(triggers, mention.end(), key=re.Match.start)
    after = kind.endswith("after")
    if i == (len(triggers) if after else 0):
        return False
    start, end = (
        (mention.end(), triggers[i].start()) if after else (triggers[i - 1].end(), mention.start())
    )
    if end - start > _REACH or _SCOPE_ENDS[kind].search(sentence, start, max(start, end)):
        return False
    turn = None if after else _LIST_ENDS.search(sentence, start, end + _REACH)
    return turn is None or turn.end() > end
