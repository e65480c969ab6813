"""The findings of a report with their attributes, read by rules: what, how certain, on which side
and where, how severe, how large, and how changed.

Finer than the 14 CheXpert observations: more than fifty findings, incidental ones and devices among
them. Only what a report states counts; what it calls normal or absent is no finding. Statements and
polarity are those of the rule labeler (`reward_sdk.models.statements`, `.polarity`).

An attribute belongs to the mention in whose part of the statement it stands; parts end at "and",
"with" and their like, or at a comma. A side or a place also belongs to later mentions of the
statement that have none of their own: "left basilar atelectasis and effusion". A sign that the
statement explains ("opacity, likely atelectasis") is what it is explained by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reward_sdk.models.polarity import find_triggers, polarity
from reward_sdk.models.rule_labeler import SIDE, sides_in
from reward_sdk.models.statements import remembered, statements
from reward_sdk.models.vocabulary import (
    IMPLIED,
    MENTIONS,
    NAMES,
    PLACED,
    SIDELESS,
    SIGNS,
    SILENT,
)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a report says of a finding on one side, or of one without a side.

    Attributes:
        certain: whether it is stated as a fact at least once, and not only as possible.
        zones: where, of "upper", "middle", "lower" and "central"; empty if it does not say.
        severity: from 1 (trace) over 2 (small, mild) and 3 (moderate) to 4 (large, severe); None
            if it does not say.
        size: largest measurement in mm; None if there is none.
        change: "new", "worse", "better" or "same"; None if it does not say.
    """

    certain: bool = True
    zones: frozenset[str] = frozenset()
    severity: float | None = None
    size: float | None = None
    change: str | None = None


Findings = Mapping[str, Mapping[str, Attributes]]
"""What a report finds: finding -> side -> its attributes. The side is "left" or "right", both of
them for a bilateral finding, or "" where none is stated."""


@dataclass(frozen=True, slots=True)
class _Mention:
    """One mention in a statement, with the sides that are stated for it."""

    name: str
    sides: frozenset[str]
    has: Attributes


# Letters -> the findings whose mentions may hold them.
_LETTERS = tuple(
    (letters, tuple(name for name, (some, _) in MENTIONS.items() if letters in some))
    for letters in sorted({letters for some, _ in MENTIONS.values() for letters in some})
)

_ZONE = re.compile(
    r"\b(?:(?P<upper>upper|apical|apex|apices|biapical|suprahilar)"
    r"|(?P<middle>mid|middle|lingul\w+)|(?P<central>(?:peri|para)?hil(?:ar|um|a)|central)"
    r"|(?P<lower>lower|bas(?:e|es|al|ilar)|bibasilar|retrocardiac|infrahilar))\b"
)
_CHANGES = (
    r"chang|increas|decreas|improv|worse|progress|resol|clear|larger|smaller|better|more|less|prior"
)
_SEVERITY = re.compile(
    rf"""\b(?<!changed\ )(?<!creased\ )(?<!more\ )(?<!less\ )
    (?:(?P<one>trace|tiny|minimal(?:ly)?|minute|subtle|slight(?:ly)?|faint|minor)
    | (?P<two>small|mild(?:ly)?|little) | (?P<three>moderate(?:ly)?|medium)
    | (?P<four>large|severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|extensive|huge|gross(?:ly)?|tension
        |significant(?:ly)?|substantial(?:ly)?|considerable))
    \b(?!\ (?:interval\ )?(?:{_CHANGES}))""",
    re.VERBOSE,
)
_LEVEL = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0}
_NUMBER = r"(?<![\d.])(\d{1,3}(?:\.\d+)?|\.\d+)"
_SIZE = re.compile(rf"{_NUMBER}(?: ?(?:x|by) ?{_NUMBER})?[ -]?(mm|cm|milli|centi)")
_FORMER = re.compile(
    rf"\b(?:previously|prior|formerly|compared|from) (?:\w+ ){{0,2}}{_NUMBER}"
    r"[ -]?(?:mm|cm|milli|centi)"
)
_THAN = r"\ than\ (?:on\ )?(?:the\ )?(?:left|right)"  # compares sides, not times
_CHANGE = re.compile(
    rf"""\b(?:(?P<same>(?:no|without|not)\ (?:\w+\ ){{0,3}}(?:chang|increas|decreas|progress|improv
            |worsen|enlarg|resol)\w*
        |stable|unchanged|persist\w*|similar|again|remain\w*|redemonstrat\w*|continu\w+
        |(?<!acute\ on\ )chronic)
    | (?P<better>decreas\w*|improv\w*|resolving|regress\w*|diminish\w*
        |smaller(?!{_THAN})|clearing|reduced|less
        |(?:partial|near|almost|mostly|largely|incomplete)\w*\ (?:\w+\ )?(?:resol|clear)\w+)
    | (?P<worse>increas\w*|worse\w*|progress\w*|enlarging|growing|grown|grew
        |(?:larger|bigger)(?!{_THAN})|more\ (?:extensive|prominent|conspicuous|severe|marked))
    | (?P<new>new(?:ly)?|recurr\w+|interval\ development|develop(?:ed|ing)))\b""",
    re.VERBOSE,
)
# Where the part of one mention ends and that of the next begins: at the first of the words, else
# at the first comma.
_PART_WORD = re.compile(
    r"[;:/]|\b(?:but|with|without|as well as|while|whereas|although|plus|also|including|or|nor|from"
    r"|over|versus|vs)\b"
    r"|(?<!left )(?<!right )(?<!upper )(?<!lower )(?<!middle )(?<!mid )(?<!apical )\band\b"
)
# What follows a finding and speaks of where it is not: "on the left, none on the right".
_ELSEWHERE = re.compile(
    r"(?:,|\bbut\b|\bwhile\b)(?=[^,]*\b(?:none|not|no|clear|normal|unremarkable|negative)\b)[^,]*"
)
_ABOUT = re.compile(
    r"\b(?:normal|unremarkable|clear|intact|stable|unchanged|negative|acute|active|evidence"
    r"|abnormal\w*|lungs?|heart|cardi\w+|mediastin\w+|chest|pleura\w*|bon(?:y|es)|osseous|thora\w+"
    r"|pulmonary|vascul\w+|diaphragm\w*|radiograph\w*|examination|study|findings?)\b"
)
_NEAR = 5  # ours: mentions; an explanation is not farther, which keeps endless texts cheap
_EXPLAINS = re.compile(
    r"\b(?:may|might|could|likely|represent\w*|reflect\w*|consistent|compatible|suggest\w*|suspicious"
    r"|concern\w*|due|from|favor\w*|probabl[ey]|possibl[ey]|presumabl[ey]|worrisome|secondary"
    r"|relat\w+|indicat\w+|which (?:is|are)|compris\w+|question\w*)\b"
)


def read_findings(texts: Sequence[str]) -> list[Findings]:
    """The findings that each report states, present or possible.

    Args:
        texts: reports without tags.

    >>> read_findings(["Small left effusion, unchanged. No edema."])
    [{'pleural effusion': {'left': Attributes(certain=True, zones=frozenset(), severity=2.0, \
size=None, change='same')}}]
    """
    return [_read(text) for text in texts]


def mentioned(text: str) -> frozenset[str]:
    """The findings that a text names, whatever it says of them: what an indication asks about."""
    parts = statements(text.replace(":", " "))  # a heading, such as its own, would leave it out
    return frozenset(name for part in parts for _, _, name in _mentions(part))


def _read(text: str) -> Findings:
    found: dict[str, dict[str, Attributes]] = {}
    last = ""
    parts = list(statements(text))
    for statement in parts:
        stated = _stated(statement)
        if last and not stated and (size := _size_of_it(statement)):
            found[last] = {s: replace(has, size=size) for s, has in found[last].items()}
        for mention in stated:
            last = mention.name
            sides = found.setdefault(mention.name, {})
            for side in mention.sides or ("",):
                sides[side] = _merged(sides[side], mention.has) if side in sides else mention.has
    for sign, meaning in IMPLIED.items():
        if meaning in found:
            found.pop(sign, None)
    if not found and not any(map(_speaks, parts)):
        found[SILENT] = {"": Attributes()}
    for sides in found.values():
        if len(sides) > 1 and "" in sides:  # the same one, said again without its side
            loose = sides.pop("")
            for side, has in sides.items():
                sides[side] = _merged(has, loose)
    return found


def _speaks(statement: str) -> bool:
    """Whether a statement says something about a film, be it that all is normal."""
    return bool(_ABOUT.search(statement) or _mentions(statement))


def _merged(a: Attributes, b: Attributes) -> Attributes:
    """Two mentions of one finding: the stronger claim, all places, the first word on its change."""
    return Attributes(
        certain=a.certain or b.certain,
        zones=a.zones | b.zones,
        severity=_larger(a.severity, b.severity),
        size=_larger(a.size, b.size),
        change=a.change or b.change,
    )


def _larger(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def merged(sides: Mapping[str, Attributes]) -> Attributes:
    """A finding as a whole, whatever its sides."""
    first, *others = sides.values()
    for other in others:
        first = _merged(first, other)
    return first


def _mentions(statement: str) -> list[tuple[int, int, str]]:
    """(start, end, finding) of every mention, in order."""
    here = {name for letters, names in _LETTERS if letters in statement for name in names}
    found: list[tuple[int, int, str]] = []
    for name in sorted(here, key=NAMES.index):
        for m in MENTIONS[name][1].finditer(statement):
            start, end = m.span()
            if not any(s <= start and end <= e for s, e, _ in found):
                found.append((start, end, name))
    found.sort()
    return found


@remembered
def _stated(statement: str) -> tuple[_Mention, ...]:
    """What a statement says is there, or may be."""
    mentions = _mentions(statement)
    if not mentions:
        return ()
    spans = [(start, end) for start, end, _ in mentions]
    triggers = find_triggers(statement, spans)
    found: list[_Mention] = []
    kept: list[int] = []  # where each of them ends
    sides: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    for (start, end, name), (begin, finish) in zip(mentions, _parts(statement, spans), strict=True):
        label = polarity(statement, (start, end), triggers)
        part = statement[begin:finish]
        where = statement[begin:end] + _ELSEWHERE.sub("", statement[end:finish])
        sides, zones = sides_in(where) or sides, _zones(where) or zones
        if not label:
            continue
        has = Attributes(
            certain=label == 1,
            zones=zones if name in PLACED else frozenset(),
            severity=_severity(part),
            size=_size(part) if name != "malposition" else None,  # how far to move it
            change=_change(statement[begin:start], statement[start:end], statement[end:finish]),
        )
        sided = frozenset() if name in SIDELESS else sides
        each = _by_side(where) if len(sided) > 1 else {}
        for side, own in each.items():
            its = own if name in PLACED else replace(own, zones=frozenset())
            found.append(_Mention(name, frozenset({side}), _filled(its, has)))
        if not each:
            found.append(_Mention(name, sided, has))
        kept += [end] * (len(each) or 1)
        if statement.startswith(("hydropneumo", "hemopneumo", "pyopneumo"), start):
            found.append(replace(found[-1], name="pleural effusion"))
            kept.append(end)
    # A side behind the last mention is also that of those before it: "effusion and edema, left".
    if found and not any(m.sides for m in found[:-1]) and SIDE.search(statement, kept[-1]):
        found = [replace(m, sides=sides) if m.name not in SIDELESS else m for m in found]
    return tuple(_explained(statement, found, kept))


def _parts(statement: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(start, end) of the part of the statement that belongs to each mention."""
    begin = 0
    for i, (_, end) in enumerate(spans):
        if i + 1 == len(spans):
            yield begin, len(statement)
            return
        until = spans[i + 1][0]
        word = _PART_WORD.search(statement, end, until)
        comma = statement.find(",", end, until)
        finish = word.start() if word else comma if comma >= 0 else end
        yield begin, max(finish, end)
        begin = max(finish, end)


def _explained(
    statement: str, found: Sequence[_Mention], ends: Sequence[int]
) -> Iterator[_Mention]:
    """The mentions without signs that a later mention explains; it takes over their attributes."""
    signs: list[_Mention] = []
    for i, mention in enumerate(found):
        explained = any(
            later.name in SIGNS.get(mention.name, ()) and _EXPLAINS.search(statement, ends[i], end)
            for later, end in zip(found[i + 1 : i + _NEAR], ends[i + 1 : i + _NEAR], strict=True)
        )
        if explained:
            signs.append(mention)
            continue
        for sign in signs:
            if mention.name in SIGNS[sign.name]:
                sides = frozenset() if mention.name in SIDELESS else mention.sides or sign.sides
                mention = _Mention(mention.name, sides, _filled(mention.has, sign.has))
        yield mention


def _filled(has: Attributes, other: Attributes) -> Attributes:
    """The attributes, where there are none those of the other; certain if both are."""
    return Attributes(
        has.certain and other.certain,
        has.zones or other.zones,
        has.severity or other.severity,
        has.size or other.size,
        has.change or other.change,
    )


def _zones(part: str) -> frozenset[str]:
    return frozenset(str(zone.lastgroup) for zone in _ZONE.finditer(part))


def _severity(part: str) -> float | None:
    """The first degree; the mean of two in "small to moderate"."""
    found = list(_SEVERITY.finditer(part))
    if not found:
        return None
    first = _LEVEL[str(found[0].lastgroup)]
    if len(found) > 1 and part[found[0].end() : found[1].start()].strip(" -") in ("to", "or"):
        return (first + _LEVEL[str(found[1].lastgroup)]) / 2
    return first


def _by_side(part: str) -> dict[str, Attributes]:
    """Side -> its own attributes, where both sides have some: "small left and moderate right"."""
    sides = list(SIDE.finditer(part))
    if [side[0] for side in sides] not in (["left", "right"], ["right", "left"]):
        return {}
    cut = max(part.rfind(" and ", 0, sides[1].start()), part.rfind(",", 0, sides[1].start()))
    halves = (part[:cut], part[cut:]) if cut >= 0 else (part, "")
    own = [
        Attributes(True, _zones(half), _severity(half), _size(half), _change(half))
        for half in halves
    ]
    if Attributes() in own:
        return {}
    return {side[0]: has for side, has in zip(sides, own, strict=True)}


@remembered
def _size_of_it(statement: str) -> float | None:
    """The size in mm that a statement gives to what the one before names: "It measures 3 cm"."""
    return _size(statement) if statement.startswith(("it ", "this ")) else None


def _size(part: str) -> float | None:
    """The largest measurement in mm, of the present film."""
    sizes = [
        max(float(a), float(b or 0)) * (10 if unit[0] == "c" else 1)
        for a, b, unit in _SIZE.findall(_FORMER.sub("", part))
    ]
    return max(sizes, default=None)


def _change(before: str, mention: str = "", after: str = "") -> str | None:
    """What is said around a mention of its change; within one, as in "the heart remains enlarged",
    only that there is none, since "increased markings" are no change."""
    found = _CHANGE.search(f"{before}, {after}")
    if found is None:
        within = _CHANGE.search(mention)
        found = within if within and within.lastgroup == "same" else None
    return found and found.lastgroup
