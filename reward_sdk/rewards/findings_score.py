"""A clinical reward without a network that also reads side, place, severity, size, certainty and
change: `findings_score`.

Report and reference are read by `reward_sdk.models.rule_findings`. Every finding weighs what it
means for the patient (`reward_sdk.rewards.significance`), more if it is large, less if it is small
or only possible. Of what both state the larger weight counts, and of that the part that is right by
its attributes, its credit. With C the sum of what is right, L the sum of what is not (missing,
false, and what the matches lack to their full weight) and n the weight of all that is normal in a
film, the score is

    (n + 2 C) / (n + 2 C + L)

the weighted Dice coefficient with a prior, in (0, 1]. Normal and absent findings neither earn nor
cost: a report that states no finding against a reference without any earns 1, and so does any
report that states the reference's findings as the reference does, in whatever words. It is not
symmetric: what the report says beyond the reference about a finding that both state (a side, a
place, a size) cannot be judged and costs nothing, what it leaves out costs a little, and what it
says otherwise more.

Where a sample says the patient's age or why the film was made, signs of age weigh more in the
young, and what the indication asks about weighs more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache, partial

from reward_sdk.errors import ConfigError, nearest
from reward_sdk.models.annotator import Annotator
from reward_sdk.models.rule_findings import Attributes, Findings, merged, read_findings
from reward_sdk.models.rule_labeler import NOT_MENTIONED
from reward_sdk.models.vocabulary import NAMES
from reward_sdk.registry import reward
from reward_sdk.rewards.significance import KIN, SIGNIFICANCE, in_context
from reward_sdk.types import Evidence, Outcome, Sample

_NORMAL = 0.5  # ours: n; a false pneumothorax in a normal film leaves a third

# ours: what is left of a finding's credit by attribute, where the report says otherwise, and where
# it does not say what the reference says.
_WRONG_SIDE, _NO_SIDE = 0.35, 0.85
_WRONG_PLACE, _NO_PLACE = 0.7, 0.92
_PER_DEGREE, _NO_DEGREE = 0.12, 0.95  # the first for each degree that lies between the two
_NO_SIZE = 0.93
_UNCERTAIN = 0.7
_OPPOSITE_CHANGE, _OTHER_CHANGE, _NO_CHANGE = 0.7, 0.85, 0.95
# ours: how much more a finding weighs by its degree, and how much less if it is only possible.
_BY_DEGREE = {1: 0.6, 2: 0.8, 3: 1.0, 4: 1.25}
_POSSIBLE = 0.6
_MOST = 100  # ours: the largest significance; a pneumothorax has 1


@dataclass(frozen=True)
class Match:
    """What became of one finding.

    Attributes:
        finding: name of the finding, as the reference has it, or the report if the reference has
            none.
        weight: what it weighs; of what both state, the larger of the two weights.
        credit: how much of it is right, 0 to 1; 0 for one that is missing or false.
        kind: "matched", "missing" (the reference alone states it) or "false" (the report alone).
        notes: what of its attributes is wrong or left out, for people.
        other: the finding that the report names instead; "" if it names the same.
    """

    finding: str
    weight: float
    credit: float
    kind: str
    notes: tuple[str, ...] = ()
    other: str = ""


def compare(
    report: Findings,
    reference: Findings,
    significance: Mapping[str, float] = SIGNIFICANCE,
) -> tuple[float, list[Match]]:
    """The score of a report's findings, in (0, 1], and what became of each finding.

    Args:
        report: findings of the judged report, by `read_findings`.
        reference: findings of the reference report.
        significance: what each finding weighs, at least 0; one that is not there weighs 0.
    """
    pairs = []
    for theirs in reference:
        for ours in report:
            kin = 1.0 if ours == theirs else KIN.get(frozenset((ours, theirs)), 0.0)
            if kin:
                credit, notes = _credit(report[ours], reference[theirs])
                pairs.append((kin * credit, ours == theirs, theirs, ours, notes))
    pairs.sort(key=lambda pair: pair[:2], reverse=True)
    matches: dict[str, Match] = {}
    used: set[str] = set()
    for credit, same, theirs, ours, notes in pairs:
        if theirs not in matches and ours not in used:
            weight = max(
                _weight(theirs, reference[theirs], significance),
                _weight(ours, report[ours], significance),
            )
            matches[theirs] = Match(theirs, weight, credit, "matched", notes, "" if same else ours)
            used.add(ours)
    found = [
        matches.get(name) or Match(name, _weight(name, has, significance), 0.0, "missing")
        for name, has in reference.items()
    ]
    found += [
        Match(name, _weight(name, has, significance), 0.0, "false")
        for name, has in report.items()
        if name not in used
    ]
    right = _NORMAL + 2 * sum(match.weight * match.credit for match in found)
    return right / (right + sum(match.weight * (1 - match.credit) for match in found)), found


def _weight(name: str, sides: Mapping[str, Attributes], significance: Mapping[str, float]) -> float:
    degree = max((has.severity or 3 for has in sides.values()), default=3)
    certain = any(has.certain for has in sides.values())
    by_degree = _BY_DEGREE[int(degree)]
    return significance.get(name, 0.0) * by_degree * (1 if certain else _POSSIBLE)


def _credit(
    ours: Mapping[str, Attributes], theirs: Mapping[str, Attributes]
) -> tuple[float, tuple[str, ...]]:
    """How much of a finding is right by its attributes, above 0 and up to 1, and what is not."""
    our_sides, their_sides = ours.keys() - {""}, theirs.keys() - {""}
    common = our_sides & their_sides
    credit, notes = 1.0, []
    if their_sides and not our_sides:
        credit, notes = _NO_SIDE, ["side left out"]
    elif our_sides and their_sides and our_sides != their_sides:
        credit, notes = _shared(_WRONG_SIDE, our_sides, their_sides), ["wrong side"]
    pairs = [(ours[side], theirs[side]) for side in sorted(common)] or [
        (merged(ours), merged(theirs))
    ]
    factors = []
    for our, their in pairs:
        factor = 1.0
        for left, note in _differences(our, their):
            factor *= left
            notes += [note] if note not in notes else []
        factors.append(factor)
    return credit * sum(factors) / len(factors), tuple(notes)


def _shared(least: float, ours: AbstractSet[str], theirs: AbstractSet[str]) -> float:
    """From `least`, if the two share nothing, to 1, if they are equal: naming all of them does not
    pay."""
    return least + (1 - least) * len(ours & theirs) / len(ours | theirs)


def _differences(ours: Attributes, theirs: Attributes) -> Iterable[tuple[float, str]]:
    """(what is left of the credit, what is wrong) by attribute."""
    if ours.certain != theirs.certain:
        yield _UNCERTAIN, "certainty"
    if theirs.zones and not ours.zones:
        yield _NO_PLACE, "place left out"
    elif theirs.zones and ours.zones != theirs.zones:
        yield _shared(_WRONG_PLACE, ours.zones, theirs.zones), "wrong place"
    if theirs.size is not None and ours.size is not None:
        ratio = min(ours.size, theirs.size) / max(ours.size, theirs.size, 1e-9)
        if ratio < 0.9:
            yield 0.5 + 0.5 * ratio, "size"
    elif theirs.severity is not None and ours.severity is not None:
        if apart := abs(ours.severity - theirs.severity):
            yield 1 - _PER_DEGREE * apart, "severity"
    elif theirs.size is not None:
        yield _NO_SIZE, "size left out"
    elif theirs.severity is not None:
        yield _NO_DEGREE, "severity left out"
    if theirs.change != ours.change:
        if theirs.change is None:
            if ours.change != "same":
                yield _NO_CHANGE, "a change that the reference does not state"
        elif ours.change is None:
            yield _NO_CHANGE, "change left out"
        elif {ours.change, theirs.change} in ({"better", "worse"}, {"better", "new"}):
            yield _OPPOSITE_CHANGE, "change"
        else:
            yield _OTHER_CHANGE, "change"


class FindingsScore:
    """The reward `findings_score`.

    Args:
        significance: what each of `NAMES` weighs, at least 0.
    """

    name, light = "findings_score", True
    bounds = (0.0, 1.0)
    needs = frozenset({"report", "reference"})

    def __init__(self, significance: Mapping[str, float]) -> None:
        self._annotator = Annotator(read_findings)
        self._for = lru_cache(maxsize=1 << 12)(  # ours: a group shares its context
            partial(in_context, significance)
        )

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        found = self._annotator.pairs(samples)
        return [
            Outcome(compare(*pair, self._for(sample.age, sample.indication))[0])
            for sample, pair in zip(samples, found, strict=True)
        ]

    def explain(self, sample: Sample) -> list[Evidence]:
        """What became of each finding that report or reference states."""
        [(ours, theirs)] = self._annotator.pairs([sample])
        _, matches = compare(ours, theirs, self._for(sample.age, sample.indication))
        return [
            Evidence(
                match.finding,
                NOT_MENTIONED if match.kind == "missing" else _in_words(match, ours),
                NOT_MENTIONED if match.kind == "false" else _words(theirs[match.finding]),
                agrees=match.credit == 1,
                note="; ".join(
                    [
                        match.kind,
                        *(["a related finding"] if match.other else []),
                        *match.notes,
                        f"credit {match.credit:.2f}, weight {match.weight:.2f}",
                    ]
                ),
            )
            for match in matches
        ]


def _in_words(match: Match, ours: Findings) -> str:
    words = _words(ours[match.other or match.finding])
    return f"{match.other}: {words}" if match.other else words


_DEGREES = {1: "trace", 2: "small or mild", 3: "moderate", 4: "large or severe"}


def _words(sides: Mapping[str, Attributes]) -> str:
    """A finding's attributes for people: "present, left, lower, small, 12 mm, new"."""
    has = merged(sides)
    return ", ".join(
        [
            "present" if has.certain else "possible",
            *sorted(sides.keys() - {""}),
            *sorted(has.zones),
            *([_DEGREES[int(has.severity)]] if has.severity else []),
            *([f"{has.size:g} mm"] if has.size is not None else []),
            *(["unchanged" if has.change == "same" else has.change] if has.change else []),
        ]
    )


@reward("findings_score")
def findings_score(significance: dict[str, float] | None = None) -> FindingsScore:
    """Agreement of the findings with their attributes, weighted by significance, in (0, 1].

    Args:
        significance: what findings weigh that shall not weigh what `SIGNIFICANCE` says, by name, 0
            to 100.
    """
    for name, weight in (significance or {}).items():
        if name not in NAMES:
            raise ConfigError(f"significance: no finding {name!r}: {nearest(name, NAMES)}")
        if not 0 <= weight <= _MOST:
            raise ConfigError(f"significance: {name!r} weighs {weight}: write 0 to {_MOST}")
    return FindingsScore({**SIGNIFICANCE, **(significance or {})})
