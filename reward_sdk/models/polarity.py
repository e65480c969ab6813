"""Whether a statement says that something is there, is not there, or may be, by rules.

In the manner of ConText (Harkema et al., 2009), a trigger before a mention ("no", "may represent")
or after it ("is not seen", "cannot be excluded") reaches it, unless its scope ends in between, at
words that open a new statement ("but", "with").

Choices where readers differ:

* "Likely" and "probably" are uncertain, "unlikely" is a denial. In "atelectasis versus scarring"
  the first is present and the second uncertain.
* "No change" denies nothing, nor does "has nearly resolved", nor "has cleared, but a small amount
  remains". What is "to be excluded" is uncertain, what "has been excluded" is not there.
* "History of" says nothing about the film, so that what follows is no mention. What is "status post
  removal" is not there; "old" and "healed" things are.
* A list of denials goes over into a finding where an item has a size, a certainty, a change or a
  verb of its own and no "or" follows: "no pneumothorax, small effusion". A side alone does not turn
  it: in "no pneumothorax, left effusion" both are denied.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence

_SEEN = (
    r"(?:seen|identified|noted|present|visuali[sz]ed|visible|demonstrated|evident|appreciated"
    r"|apparent|detected|found|observed|shown)"
)
_IS = r"(?:is|are|was|were|has|have|had|has\ been|have\ been|had\ been)"
# How much of a change, which a denied change has before it.
_MUCH = (
    r"(?:\w+ly|significant|substantial|interval|definite|appreciable|relevant|obvious|major|marked"
    r"|other|further|overall|large|great|gross|important|considerable|notable|noticeable|clear"
    r"|discernible|perceptible|meaningful|radiographic|serial|recent|new|any|short-term)"
)
# What is called increased where it is there at all.
_DENSE = r"(?:interstiti|opaci|densit|marking|reticul|lucen|vascul|bronch)"
_CHANGE = (
    rf"(?:changed?|increas(?:ed?|ing)(?!\ (?:\w+\ )?{_DENSE})|decreas(?:ed?|ing)"
    r"|progress(?:ion|ed|ive)|improve(?:ment|d)"
    r"|worsen(?:ing|ed)|resolution|resolved|regression|clearing|cleared|reduction|difference"
    r"|deteriorat(?:ion|ed)|evolution|growth|enlargement(?!\ of\ (?:the\ )?(?:heart|card|mediast)))"
)
_PARTLY = (
    r"(?:partial(?:ly)?|partly|near(?:ly)?|almost|virtually|mostly|largely|incomplete(?:ly)?"
    r"|substantial(?:ly)?|significant(?:ly)?|marked(?:ly)?"
    r"|(?:not|never)\ (?:yet|completely|fully|entirely|totally|wholly))"
)
_GONE = r"(?:resolved|cleared|disappeared|vanished|gone)"
_GOING = r"(?:resolution|clearing|clearance|disappearance|evacuation)"
# What gives the reason or the place of a judgement, and not its object.
_GIVEN = r"(?:given|because|since|considering|based|due|and|but|as|in|at|on|by|with)\b"
_UNLIKELY = r"unlikely(?!\ (?:due|that|represent|reflect|to\ (?!be\ (?:present|seen))))"
# One alternative per kind of trigger; where two fit, the first one wins: "no change in" is no
# negation and "cannot exclude" no denial.
_TRIGGER = re.compile(
    rf"""\b(?:
    (?P<nothing>
        (?:no|without|not|never)\ (?:evidence\ of\ )?(?:{_MUCH}\ ){{0,3}}{_CHANGE}
      | (?:no|without)\ (?:evidence\ of\ )?(?:\w+\ ){{1,2}}(?:progression|worsening|growth)
      | (?:not\ only|no\ more\ than)
      | (?:ensure|document|confirm|until|to|for)\ (?:\w+\ )?{_GOING}\ of
      | (?:{_IS}\ (?:\w+\ )?)?{_GONE}\ {_PARTLY}
      | (?:{_IS}\ (?:\w+\ )?)?{_PARTLY}[ -](?:\w+\ )?(?:{_GONE}|{_GOING}|removed))
  | (?P<but_some> (?:{_IS}\ (?:\w+\ )?)?(?:{_GONE}|drained|evacuated)
        (?=[^.]{{0,40}}\b(?:but|although|though|however|except|with|leaving|yet)\b
            (?P<rest>[^.]{{0,60}}?)\b(?:remain|persist|residu|remnant|still|left\b)))
  | (?P<maybe_after_too>
        (?:possible|probable|suspected|questionable|equivocal|uncertain|(?:less\ )?likely)
            (?=\W*$|,)
      | (?:cannot|can\ not|could\ not)\ (?:\w+\ )?(?:exclude|rule\ out)(?=\W*$|,)
      | (?:should|must|may|could|can)\ be\ (?:\w+\ )?considered
      | (?:{_IS}\ )?(?:in\ the\ differential|a\ (?:possibility|consideration|concern)))
  | (?P<maybe_around> if\ (?:any|present))
  | (?P<past_before> (?:history|histories)\ of)
  | (?P<maybe_before>
        (?:cannot|can\ not|could\ not|not|to|unable\ to|(?:im|not\ )possible\ to)\ (?:\w+\ )?
            (?:exclude|rule\ out)
      | (?:difficult|hard)\ to\ (?:\w+\ )?(?:exclude|rule\ out)(?=\ (?!{_GIVEN})\w)
      | ^(?:please\ )?exclude | doubt(?:ful)? | either(?=\ [\w\ ]{{1,60}}\bor\b)
      | (?:likelihood|probability)\ (?:of|for) | (?:little|minimal)\ or\ no
      | rule\ out | (?:evaluat|assess)\w*\ for
      | may|might|could|possibl[ey]|possibility|potential(?:ly)?|perhaps|probabl[ey]|presum\w+
      | (?:less\ |more\ |most\ |very\ )?(?<!not\ )likely(?:\ to)?|suspect(?:ed|s)?|suspicious
      | suspicion|suggest\w*|concern(?:ing)?\ for|worrisome|question(?:able|ed)?|query|equivocal
      | versus|vs|rather\ than|differential|consider|maybe|favor\w*|correlat\w+\ (?:\w+\ )?for)
  | (?P<no_before>
        ^(?:absent|resolved|nil)
      | no(?!\ longer\b)|without|non|nor|neither|nothing|den(?:y|ies)
      | none(?=\ of\b) | simulat\w+|mimic\w*
      | negative\ for|(?:absence|lack|free|clear|removal|non-?visuali[sz]ation|{_GOING})\ of
      | exclu(?:des?|ding) | fail(?:s|ed)?\ to\ (?:show|demonstrate|reveal)
      | (?:cannot|can\ not|unable\ to)\ (?:see|identify|appreciate|detect)
      | (?:do|does|did)\ not\ (?:show|demonstrate|reveal|suggest|see|have|contain|indicate)
      | unlikely\ due\ to | unlikely(?=\ (?!{_GIVEN}|to\ be\ (?:present|seen))\w)
      | not\ (?:likely|suspected|thought|felt|believed|considered|typical|suggestive|indicative))
  | (?P<maybe_after>
        (?:{_IS}\ )?(?:cannot|can\ not|could\ not|not|must|should|needs?\ to|has\ to|have\ to|to
            |yet\ to)\ (?:\w+\ ){{0,3}}(?:excluded|ruled\ out)
      | (?:{_IS}\ )?(?:difficult|hard|not\ possible|impossible)\ to\ (?:\w+\ )?
            (?:exclude|rule\ out)(?!\ (?!{_GIVEN})\w)
      | {_IS}\ (?:(?!not\b)\w+\ )?
            (?:possible|suspected|question(?:ed|able)|likely|probable|considered)
            (?=\W*$|[,;)]|\ (?:and|in|at|on)\b)
      | (?:may|might|could)\ be\ present)
  | (?P<no_after>
        (?:{_IS}\ )?(?:not|no\ (?:longer|more)|cannot\ be|not\ be)\ (?:well-|\w+\ )?{_SEEN}
      | (?:{_IS}\ (?:(?!not\b)\w+\ ){{0,2}})?
            (?:{_GONE}|removed|withdrawn|drained|evacuated|absent|excluded|ruled\ out)
      | {_IS}\ (?:(?!not\b)\w+\ ){{0,3}}{_UNLIKELY} | {_IS}\ not\ (?:suspected|likely|favored)
      | \ ?[:-]\ (?:none|absent|negative|no|nil)(?:\ (?:{_SEEN}|evidence|bilaterally))?(?=\W*$|,))
  | (?P<one_after>
        {_UNLIKELY}
      | (?:{_IS}|appears?|remains?)\ (?:\w+\ )?
            (?:within\ (?:normal\ limits|limits\ of\ normal)|normal))
  | (?P<not_before> not|never|no\ longer)
    )\b | (?P<no_after_too> \((?:none|absent|negative|no|nil)\) | \bnone(?=\W*$|,)
      | \ ?:(?=\ no\ (?:evidence|sign|definite|significant|acute|large|focal|pleural|pneumo)))""",
    re.VERBOSE,
)
_STATEMENT = (
    r";|\b(?:but|however|although|though|yet|except|despite|while|whereas|where|which"
    r"|aside from|apart from|other than"
    r"|there (?:is|are|has|was|were)|(?<!consistent )(?<!compatible )with)\b"
)
_VERB = (
    r"\b(?:is|are|was|were|has|have|seen|identified|noted|present|visuali[sz]ed|demonstrated|evident"
    r"|appreciated|detected)\b"
)
_SAID_AND = rf"{_VERB}(?:(?!{_VERB}).)*(?:,|\band\b)"  # from its last verb on, not from each
_REACH = 300  # ours: characters; long enough for any list, keeps endless sentences cheap
# What ends the scope of each kind between the trigger and a mention.
_SCOPE_ENDS = {
    "no_before": re.compile(
        rf"{_STATEMENT}|\b(?:due|secondary) to\b|\b(?:changes?|increase|decrease) in\b|{_SAID_AND}"
        r"|\b(?:after|following|status post|and (?:placement|insertion|exchange))\b"
    ),
    "not_before": re.compile(rf"{_STATEMENT}|,|\band\b"),
    "maybe_before": re.compile(rf"{_STATEMENT}|\bwithout\b"),
    "past_before": re.compile(rf"{_STATEMENT}|,"),
    "no_after": re.compile(rf"{_STATEMENT}|{_VERB}"),
    "one_after": re.compile(rf"{_STATEMENT}|{_VERB}|,"),
    "maybe_after": re.compile(rf"{_STATEMENT}|{_VERB}"),
}
# A list of denials goes over into a finding: "no pneumothorax, small effusion", also "no
# pneumothorax, and the effusion has increased", but not in "no pneumothorax, small effusion, or
# edema". Where a word may well be denied, as a large effusion, its item must be the last one.
_SAYS_OF_IT = (
    r"(?:has|have|had) (?:\w+ )?(?:increased|decreased|improved|worsened|progressed|enlarged)"
    r"|(?:is|are|was|were|remains?|appears?) (?:\w+ )?(?:small|moderate|large|larger|smaller|mild"
    r"|enlarged|increased|decreased|improved|worse|stable|unchanged)"
    r"|stable|unchanged|persists?"
)
_LIST_ENDS = re.compile(
    r"(?:,|\band\b)(?: and)?(?= (?:an? |the )?(?:small|tiny|trace|minimal|mild|mildly|moderate"
    r"|moderately|marked|stable|unchanged|persistent|possible|probable|likely|questionable)\b"
    r"(?!.*\bor\b)"
    r"| (?:an? |the )?(?:new|large|severe|extensive|increas(?:ed|ing)|decreas(?:ed|ing)|worsening"
    rf"|improv(?:ed|ing))\b(?!.*(?:,|\b(?:or|is|are)\b))| the heart\b| heart\b"
    rf"| (?:\w+ ){{1,5}}?(?:{_SAYS_OF_IT})\b)"
)

Span = tuple[int, int]
Triggers = Mapping[str, Sequence[re.Match[str]]]


def find_triggers(statement: str, mentions: Sequence[Span]) -> Triggers:
    """The triggers of a statement, by kind, in order.

    Args:
        statement: the statement, as `reward_sdk.models.statements` gives it.
        mentions: (start, end) of every mention in it, in any order.
    """
    found: dict[str, list[re.Match[str]]] = {}
    for trigger in _TRIGGER.finditer(statement) if mentions else ():
        kind = str(trigger.lastgroup).removesuffix("_too")
        if kind == "but_some":  # "cleared, but edema persists" tells of something else
            start, end = trigger.span("rest")
            other = any(start <= first < end for first, _ in mentions)
            kind = "no_after" if other else "nothing"
        for one in ("maybe_before", "maybe_after") if kind == "maybe_around" else (kind,):
            found.setdefault(one, []).append(trigger)
    found.pop("nothing", None)
    return found


def polarity(statement: str, mention: Span, triggers: Triggers) -> int | None:
    """What a statement says of a mention.

    Args:
        statement: the statement.
        mention: (start, end) of the mention in it.
        triggers: the statement's triggers, by `find_triggers`.

    Returns:
        None if it is only of the past, else 0 if a denial reaches it, else -1 if an uncertainty
        does, else 1.
    """
    reached = {
        kind for kind, found in triggers.items() if _reaches(statement, kind, found, mention)
    }
    if "past_before" in reached:
        return None
    if reached & {"no_before", "not_before", "no_after", "one_after"}:
        return 0
    return -1 if reached else 1


def _reaches(statement: str, kind: str, triggers: Sequence[re.Match[str]], mention: Span) -> bool:
    """Whether the mention lies in the scope of a trigger of this kind; one inside the mention does
    reach it. The nearest one tells: what ends its scope ends those of all farther ones."""
    begin, finish = mention
    i = bisect_left(triggers, finish, key=re.Match.start)
    after = kind.endswith("after")
    if i == (len(triggers) if after else 0):
        return False
    start, end = (finish, triggers[i].start()) if after else (triggers[i - 1].end(), begin)
    if end - start > _REACH or _SCOPE_ENDS[kind].search(statement, start, max(start, end)):
        return False
    turn = None if after else _LIST_ENDS.search(statement, start, end + _REACH)
    return turn is None or turn.end() > end
