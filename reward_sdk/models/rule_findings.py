"""The findings of a report with their attributes, read by rules: what, how certain, on which side
and where, how severe, how large, and how changed.

Finer than the 14 CheXpert observations: some fifty findings, incidental ones and devices among
them. Only what a report states counts; what it calls normal or absent is no finding. Statements and
polarity are those of the rule labeler (`reward_sdk.models.statements`, `.polarity`).

An attribute belongs to the mention in whose part of the statement it stands; parts end at "and",
"with" and their like, or at a comma. A side or a place also belongs to later mentions of the
statement that have none of their own: "left basilar atelectasis and effusion". A vague opacity that
the statement explains ("opacity, likely atelectasis") is what it is explained by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from reward_sdk.models.polarity import find_triggers, polarity
from reward_sdk.models.rule_labeler import BIG_HEART, WIDE_MEDIASTINUM
from reward_sdk.models.statements import statements


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


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


_THE = r"(?:of |in |along |within )?(?:the |both |either )?(?:\w+ )?"
# Finding -> (letters one of which a statement must hold, so that others are passed over quickly,
# its mentions). Where two overlap, the earlier one counts.
_FINDINGS: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "subcutaneous emphysema": (
        ("subcutaneous", "soft tissue"),
        _any(r"(?:subcutaneous|soft tissue) (?:emphysema|air|gas)"),
    ),
    "pneumomediastinum": (
        ("pneumomediast", "mediastinal air"),
        _any(r"pneumomediastinum|mediastinal air"),
    ),
    "pneumoperitoneum": (
        ("peritone", "free", "air "),
        _any(
            r"pneumoperitoneum", r"free (?:intra-?peritoneal |intra-?abdominal |sub\w+ )?(?:air|gas)",
            r"air (?:under|beneath|below) (?:the )?(?:\w+ )?(?:hemi)?diaphragm\w*",
        ),
    ),
    "pneumothorax": (
        ("pneumothora", "pleural"),
        _any(
            r"(?:hydro|hemo)?pneumothora(?:x|ces)", r"(?:visceral )?pleural (?:air|line)",
            r"air in (?:the )?(?:\w+ )?pleural spaces?",
        ),
    ),
    "pericardial effusion": (("pericardial",), _any(r"pericardial (?:effusions?|fluid)")),
    "pleural effusion": (
        ("effusion", "pleural", "thorax", "empyema", "fissur"),
        _any(
            r"(?:pleural )?effusions?", r"(?:pleural|fissural) fluid(?: collections?)?",
            rf"fluid (?:collections? )?{_THE}(?:pleural|fissur)\w*(?: spaces?)?",
            r"h(?:ydro|emo)thorax", r"empyema",
        ),
    ),
    "costophrenic blunting": (
        ("blunt", "obscur"),
        _any(
            rf"blunt\w* {_THE}{_THE}(?:angles?|sulc\w+)",
            r"(?:angles?|sulc\w+) (?:\w+ ){0,3}(?:blunt\w*|obscur\w*)", r"blunting",
        ),
    ),
    "pleural thickening": (
        ("pleura", "fissur", "cap", "fibrothorax"),
        _any(
            r"pleural(?:[ -]parenchymal)? (?:\w+ )?(?:thickening|plaques?|scar(?:s|ring)?"
            r"|calcifications?|disease)",
            r"fissural thickening", rf"thickening {_THE}(?:pleura|fissures?)",
            r"(?:apical|pleural) cap(?:s|ping)?", r"pleuro-?parenchymal", r"fibrothorax",
        ),
    ),
    "mediastinal shift": (
        ("shift", "deviat"),
        _any(
            r"(?:mediastin\w+|trache\w+) (?:\w+ ){0,3}(?:shift\w*|deviat\w+)",
            rf"(?:shift|deviation) {_THE}(?:mediastin\w+|trachea)",
        ),
    ),
    "aortic aneurysm": (
        ("aneurysm", "dissect", "ectas", "ectat", "dilat", "enlarge"),
        _any(
            r"(?:\w+ )?aneurysm\w*", r"(?:aortic )?dissection",
            r"(?:dilat|ecta[st]|enlarge)\w+ (?:of the )?(?:\w+ ){0,2}aort\w+",
            r"aort\w+ (?:\w+ ){0,3}(?:dilat|ecta[st]|enlarge)\w+",
        ),
    ),
    "heart failure": (("failure", "chf", "decompens"), _any(r"heart failure|chf|decompensation")),
    "congestion": (
        ("congest", "engorge", "cephali", "vascul", "redistribut", "plethora"),
        _any(
            r"(?:vascular|venous|pulmonary|hilar|central) (?:\w+ )?"
            r"(?:congestion|engorgement|redistribution|plethora)",
            r"congestion|cephali[sz]ation",
            r"(?:prominen(?:t|ce)|engorge(?:d|ment)|congested|indistinct\w*|increased)"
            r" (?:of )?(?:the )?(?:central )?(?:pulmonary )?(?:vascul\w+|vessels)(?: markings)?",
            r"(?:vasculature|vessels|vascularity) (?:\w+ ){0,2}"
            r"(?:prominent|engorged|congested|indistinct|increased|plump)",
        ),
    ),
    "edema": (
        ("edema", "kerley", "overload", "septal"),
        _any(
            r"(?<!tissue )(?:(?:pulmonary|interstitial|alveolar) )?edema", r"kerley b? ?lines?",
            r"(?:fluid|volume) overload", r"septal (?:thickening|lines)",
        ),
    ),
    "mediastinal widening": (("mediastin",), WIDE_MEDIASTINUM),
    "cardiomegaly": (("cardio", "heart", "cardiac"), BIG_HEART),
    "borderline heart": (
        ("borderline", "top normal", "upper limit"),
        _any(
            r"borderline (?:\w+ )?(?:heart|cardiac)(?: size| silhouette)?",
            r"(?:heart|cardiac)(?: \w+){0,3} (?:borderline|top[ -]normal|(?:at )?(?:the )?upper limits?)",
        ),
    ),
    "pneumonia": (
        ("pneumoni", "infect", "aspirat"),
        _any(
            r"(?:broncho)?pneumonias?", r"pneumonitis", r"(?<!granulomatous )infectio\w+",
            r"aspiration",
        ),
    ),
    "atelectasis": (
        ("atelect", "collaps", "subsegmental"),
        _any(
            r"atelecta\w+",
            r"(?:lobes?|lobar|lungs?|bases?|segmental|basilar|bibasilar) collapse",
            r"collapsed? (?:of )?(?:the )?(?:\w+ ){0,3}(?:lungs?|lobes?|bases?)",
        ),
    ),
    "volume loss": (("volume",), _any(r"volume loss|loss of (?:lung )?volume")),
    "granuloma": (
        ("granulom", "calcified"),
        _any(
            r"granulomas?", r"(?:old |prior )?granulomatous (?:disease|changes?|process|infection)",
            r"calcified (?:\w+ ){0,2}(?:nodules?|nodes?|lymph)(?: nodes?)?",
        ),
    ),
    "tuberculosis": (("tubercul",), _any(r"tubercul\w+")),
    "metastases": (("metasta",), _any(r"metasta\w+")),
    "cavity": (("cavit", "abscess"), _any(r"cavit(?:y|ies|ation|ary)(?: lesions?)?", r"abscess\w*")),
    "hilar enlargement": (
        ("hil", "adenopathy", "pulmonary"),
        _any(
            r"(?:hilar|hilum|hila) (?:\w+ ){0,3}(?:enlarge\w*|prominen\w+|fullness|mass"
            r"|(?:lymph)?adenopathy)",
            rf"(?:enlarge\w*|prominen\w+|fullness) {_THE}hil(?:ar|a|um)", r"(?:lymph)?adenopathy",
            r"(?:enlarge\w*|prominen\w+|dilat\w+) (?:of )?(?:the )?(?:\w+ )?pulmonary arter\w+",
            r"pulmonary arter(?:y|ies|ial) (?:\w+ ){0,2}(?:enlarge\w*|prominen\w+|hypertension)",
            r"pulmonary hypertension",
        ),
    ),
    "bone lesion": (
        ("lesion",),
        _any(r"(?:lytic|sclerotic|blastic|osseous|bony|bone|destructive) (?:\w+ )?lesions?"),
    ),
    "nodule": (
        ("nodul",),
        _any(r"nodular (?:opaci\w+|densit(?:y|ies))", r"nodul(?:es?|arity)", r"micronodules?"),
    ),
    "mass": (
        ("mass", "tumo", "neoplas", "malignan", "carcinoma", "lesion", "cancer"),
        _any(
            r"mass-?like (?:opaci\w+|densit(?:y|ies)|consolidation)", r"mass(?:es)?(?!-?like| effect)",
            r"tumou?rs?", r"neoplas\w+", r"malignan\w+", r"carcinoma|cancer",
            r"(?:lung|pulmonary|parenchymal) lesions?",
        ),
    ),
    "consolidation": (
        ("consolid", "space", "bronchogram"),
        _any(
            r"consolidat\w+", r"air ?-?space (?:disease|process|opaci\w+)", r"air bronchograms?",
        ),
    ),
    "fibrosis": (
        ("fibro", "honeycomb"), _any(r"(?:pulmonary |interstitial )?fibro(?:sis|tic)", r"honeycomb\w*")
    ),
    "scarring": (("scar", "band"), _any(r"scar(?:s|ring)?", r"(?:parenchymal|fibrotic) bands?")),
    "interstitial disease": (
        ("interstiti", "reticul", "marking"),
        _any(
            r"(?:increased|prominent|coarse(?:ned)?|thickened) (?:\w+ )?interstiti\w+(?: markings)?",
            r"interstitial (?:lung )?(?:disease|process|changes?|prominence|thickening|pattern"
            r"|opaci\w+|abnormalit\w+)",
            r"interstitial markings? (?:\w+ ){0,2}(?:increased|prominent|coarse(?:ned)?)",
            r"(?:prominence|coarsening|thickening|accentuation) of (?:the )?(?:\w+ )?interstiti\w+"
            r"(?: markings)?",
            r"(?:chronic|diffuse|accentuated) (?:\w+ )?interstitial markings?",
            r"(?:increased|prominent|coarse\w*) (?:bronchovascular|lung|pulmonary) markings",
            r"reticul\w+(?: opaci\w+)?",
        ),
    ),
    "bronchial thickening": (
        ("bronch", "airway"),
        _any(
            r"bronchiectas[ie]s|bronchiectatic|bronchitis",
            r"(?:peri)?bronchial (?:wall )?(?:thickening|cuffing|inflammation)", r"peribronchial",
            r"airways? (?:disease|inflammation|thickening)",
        ),
    ),
    "opacity": (
        ("opaci", "infiltrat", "densit", "glass", "haz", "shadow", "streak", "opaque"),
        _any(
            r"(?:ground[ -]glass )?opaci\w+", r"infiltrat\w+", r"ground[ -]glass", r"haz(?:e|iness)",
            r"(?<!bone )(?<!mineral )densit(?:y|ies)", r"streak(?:iness|y)|opaque",
            r"(?:patchy|hazy|ill-defined|abnormal) shadow\w*",
        ),
    ),
    "lucency": (("lucen",), _any(r"(?:hyper|radio)?lucen(?:cy|cies|t)")),
    "hyperinflation": (
        ("inflat", "expan", "aerat", "flatten"),
        _any(
            r"(?:hyper|over)-?(?:inflat|expan|aerat)\w+",
            rf"flatten\w* {_THE}(?:hemi)?diaphragm\w*", r"diaphragms? (?:\w+ ){0,2}flattened",
        ),
    ),
    "emphysema": (
        ("emphysem", "copd", "obstructive", "bull", "bleb"),
        _any(r"emphysema\w*", r"copd|chronic obstructive", r"bull(?:a|ae|ous)", r"blebs?"),
    ),
    "low lung volumes": (
        ("volume", "inflat", "expan", "aerat", "inspirat", "ventilat"),
        _any(
            r"(?:lower?|small|reduced|decreased|diminished|shallow) (?:\w+ )?(?:volumes?|inspirat\w+)",
            r"hypo-?(?:inflat|expan|aerat|ventilat)\w+", r"(?:poor|limited|suboptimal) inspirat\w+",
            r"volumes (?:are |remain )?(?:\w+ )?low",
        ),
    ),
    "elevated hemidiaphragm": (
        ("diaphragm", "eventrat"),
        _any(
            rf"elevat\w+ {_THE}(?:hemi)?diaphragm\w*",
            r"(?:hemi)?diaphragm\w* (?:\w+ ){0,3}elevat\w+", r"eventration",
        ),
    ),
    "hiatal hernia": (("hernia",), _any(r"(?:hiat(?:al|us)|diaphragmatic|\w+) hernia")),
    "vertebral fracture": (
        ("compress", "vertebra", "wedg", "height"),
        _any(
            r"(?:compression|vertebral|wedge)(?: body)? (?:\w+ )?(?:fractures?|deformit\w+)",
            r"(?:loss of|decreased) (?:\w+ )?(?:vertebral )?(?:body )?height", r"wedging",
        ),
    ),
    "old fracture": (
        ("fracture", "deformit"),
        _any(
            r"(?:old|healed|healing|chronic|remote|prior) (?:\w+ ){0,4}fractur\w+",
            r"fracture deformit\w+", r"ribs? deformit\w+", r"deformit\w+ of (?:the )?(?:\w+ ){0,3}ribs?",
        ),
    ),
    "fracture": (("fractur", "dislocat"), _any(r"(?:rib )?fractur\w+", r"dislocat\w+")),
    "osteopenia": (("osteop", "deminerali"), _any(r"osteopen\w+", r"osteopor\w+", r"deminerali\w+")),
    "scoliosis": (
        ("scolio", "kypho", "curvature", "pectus"),
        _any(r"(?:dextro|levo)?(?:scolio\w+|curvature)", r"kypho\w+", r"pectus \w+"),
    ),
    "degenerative change": (
        ("degenerat", "spondyl", "osteophyt", "arthr", "spur"),
        _any(
            r"degenerat\w+(?: (?:joint |disc )?(?:changes?|disease))?", r"spondylo\w+",
            r"osteophyt\w+", r"(?:osteo)?arthr(?:itis|itic|osis)\w*", r"spurring",
        ),
    ),
    "aortic tortuosity": (
        ("tortuo", "unfold", "uncoil", "elongat"),
        _any(r"(?:tortuo|unfold|uncoil|elongat)\w+(?: (?:of )?(?:the )?(?:\w+ )?aorta)?"),
    ),
    "atherosclerosis": (
        ("athero", "calcif"),
        _any(
            r"atherosclero\w+(?: (?:calcification|disease|changes?))?", r"vascular calcifi\w+",
            r"calcifi\w+ (?:of |in )?(?:the )?(?:\w+ ){0,2}(?:aort\w+|arch|knob|coronar\w+)",
            r"(?:aort\w+|arch|knob|coronar\w+) (?:\w+ ){0,2}calcifi\w+", r"calcified (?:\w+ )?aorta",
        ),
    ),
    "foreign body": (
        ("foreign", "bullet", "shrapnel", "metallic"),
        _any(r"foreign (?:body|bodies|object)", r"bullets?|shrapnel", r"metallic (?:\w+ )?fragments?"),
    ),
    "dilated bowel": (
        ("bowel", "ileus", "gastric"),
        _any(r"dilat\w+ (?:\w+ ){0,2}bowel", r"ileus", r"bowel (?:obstruction|dilat\w+)",
             r"gastric (?:distention|distension)"),
    ),
    "malposition": (
        ("malposition", "mainstem", "main stem", "main bronch", "advanc", "reposition", "withdraw",
         "pulled", "coiled", "kink", "too "),
        _any(
            r"malposition\w*", r"(?:in|into|within) the (?:\w+ )?main ?-?(?:stem|bronchus)",
            r"(?:be|recommend\w*|suggest\w*) (?:advanc|reposition|withdraw|retract|pulled)\w*",
            r"coiled|kinked", r"too (?:low|high|proximal|distal|deep)",
        ),
    ),
    "endotracheal tube": (
        ("endotracheal", "tracheostomy", "et tube", "intubat"),
        _any(r"(?:endotracheal|et|tracheostomy)(?: tubes?)", r"tracheostomy"),
    ),
    "enteric tube": (
        ("tube", "hoff", "gastr"),
        _any(
            r"(?:enteric|feeding|nasogastric|orogastric|ng|og|gastric|dobb?-?hoff|nasoenteric)"
            r" (?:feeding )?(?:tubes?|catheters?)",
            r"dobb?-?hoff",
        ),
    ),
    "chest tube": (
        ("tube", "drain", "pigtail", "chest", "pleur"),
        _any(
            r"(?:chest|thoracostomy|pleural|pigtail) (?:\w+ )?(?:tubes?|drains?|catheters?)",
            r"pigtail|pleurx",
        ),
    ),
    "pacemaker": (
        ("pace", "pacing", "icd", "defibrill", "lead", "pulse"),
        _any(
            r"pace-?makers?|pacers?|a?icd|defibrillators?", r"(?:pacing |pacer )?(?:leads?(?! to)|wires)",
            r"pulse generator",
        ),
    ),
    "central line": (
        ("line", "picc", "cath", "port", "swan"),
        _any(
            r"(?:picc|central|venous|subclavian|jugular|ij) (?:venous |vein )?"
            r"(?:access )?(?:lines?|catheters?|ports?)",
            r"picc|port-?a-?cath\w*|mediports?|swan-?ganz(?: catheter)?",
            r"(?:chest|infusion|access) ports?|(?:micro)?catheters?",
        ),
    ),
    "other device": (
        ("stent", "balloon", "valve", "hardware", "device", "cannula", "tube", "drain", "impella",
         "recorder", "lvad"),
        _any(
            r"stents?|balloon pump|impella|lvad|loop recorder|hardware|devices?|cannulas?|tubes?",
            r"drains?", r"(?:prosthetic|artificial|mechanical) (?:\w+ )?valves?",
            r"valve (?:replacement|prosthesis)",
        ),
    ),
    "postoperative change": (
        ("sternotomy", "sternal", "cabg", "bypass", "clip", "sutur", "ectomy", "operative", "surgical"),
        _any(
            r"(?:median )?sternotomy(?: wires)?|sternal wires", r"cabg|bypass(?: graft\w*)?",
            r"(?:surgical )?clips?", r"sutures?", r"\w+ectomy", r"post-?(?:operative|surgical)\b(?: changes?)?",
        ),
    ),
}  # fmt: skip
NAMES = tuple(_FINDINGS)
"""The findings that are known, in the order of the rules."""

_ORDER = {name: i for i, name in enumerate(NAMES)}
# Letters -> the findings whose mentions may hold them.
_LETTERS = tuple(
    (letters, tuple(name for name, (some, _) in _FINDINGS.items() if letters in some))
    for letters in sorted({letters for some, _ in _FINDINGS.values() for letters in some})
)

# Findings that can be on one side, and those that have a place within it.
_SIDELESS = frozenset(
    {
        "pericardial effusion", "heart failure", "edema", "congestion", "cardiomegaly",
        "mediastinal widening", "mediastinal shift", "aortic aneurysm", "pneumomediastinum",
        "pneumoperitoneum", "hiatal hernia", "vertebral fracture", "osteopenia", "scoliosis",
        "degenerative change", "aortic tortuosity", "atherosclerosis", "endotracheal tube",
        "enteric tube", "hyperinflation", "emphysema", "low lung volumes", "postoperative change",
        "malposition", "other device", "borderline heart", "dilated bowel",
    }
)  # fmt: skip
_PLACED = frozenset(
    {
        "pneumonia", "atelectasis", "nodule", "mass", "cavity", "consolidation", "fibrosis",
        "scarring", "interstitial disease", "opacity", "granuloma", "pneumothorax", "lucency",
        "bronchial thickening", "pleural thickening", "volume loss", "tuberculosis",
    }
)  # fmt: skip

_SIDE = re.compile(
    r"\b(?:(?P<both>bilateral\w*|both|bibasilar|biapical|left and right|right and left"
    r"|left greater than right|right greater than left)|left|right)\b"
    r"(?! (?:atri|ventric|heart|main))"
)
_ZONE = re.compile(
    r"\b(?:(?P<upper>upper|apical|apex|apices|biapical|suprahilar)"
    r"|(?P<middle>mid|middle|lingul\w+)|(?P<central>(?:peri|para)?hilar|central|perihilum)"
    r"|(?P<lower>lower|bas(?:e|es|al|ilar)|bibasilar|retrocardiac|infrahilar))\b"
)
_CHANGES = (
    r"chang|increas|decreas|improv|worse|progress|resol|clear|larger|smaller|better|more|less|prior"
)
_SEVERITY = re.compile(
    rf"""\b(?:(?P<one>trace|tiny|minimal(?:ly)?|minute|subtle|slight(?:ly)?|faint|minor|minimally)
    | (?P<two>small|mild(?:ly)?|little) | (?P<three>moderate(?:ly)?|medium)
    | (?P<four>large|severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|extensive|huge|gross(?:ly)?|tension
        |significant(?:ly)?|substantial(?:ly)?|considerable|diffuse\ severe))
    \b(?!\ (?:interval\ )?(?:{_CHANGES}))""",
    re.VERBOSE,
)
_LEVEL = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0}
_SIZE = re.compile(r"(\d{1,3}(?:\.\d+)?)(?: ?x ?(\d{1,3}(?:\.\d+)?))?[ -]?(mm|cm|milli|centi)")
_CHANGE = re.compile(
    r"""\b(?:(?P<same>(?:no|without|not)\ (?:\w+\ ){0,3}(?:chang|increas|decreas|progress|improv
            |worsen|enlarg|resol)\w*
        |stable|unchanged|persist\w*|similar|again|remain\w*|redemonstrat\w*|continu\w+|chronic)
    | (?P<better>decreas\w*|improv\w*|resolving|regress\w*|diminish\w*|smaller|clearing|reduced|less
        |(?:partial|near|almost|mostly|largely|incomplete)\w*\ (?:\w+\ )?(?:resol|clear)\w+)
    | (?P<worse>increas\w*|worse\w*|progress\w*|enlarging|growing|larger|bigger
        |more\ (?:extensive|prominent|conspicuous))
    | (?P<new>new(?:ly)?|interval\ development|develop(?:ed|ing)))\b""",
    re.VERBOSE,
)
# Where the part of one mention ends and that of the next begins: at the first of the words, else
# at the first comma.
_PART_WORD = re.compile(
    r"[;:/]|\b(?:but|with|without|as well as|while|whereas|although|plus|also|including|or|nor|from"
    r"|over|versus|vs)\b"
    r"|(?<!left )(?<!right )(?<!upper )(?<!lower )(?<!middle )(?<!mid )(?<!apical )\band\b"
)
_VAGUE = frozenset({"opacity", "costophrenic blunting", "lucency"})
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
    return frozenset(name for part in statements(text) for _, _, name in _mentions(part))


def _read(text: str) -> Findings:
    found: dict[str, dict[str, Attributes]] = {}
    last = ""
    for statement in statements(text):
        stated = _stated(statement)
        if last and not stated and (size := _size_of_it(statement)):
            found[last] = {s: replace(has, size=size) for s, has in found[last].items()}
        for mention in stated:
            last = mention.name
            sides = found.setdefault(mention.name, {})
            for side in mention.sides or ("",):
                sides[side] = _merged(sides[side], mention.has) if side in sides else mention.has
    for sides in found.values():
        if len(sides) > 1 and "" in sides:  # the same one, said again without its side
            loose = sides.pop("")
            for side, has in sides.items():
                sides[side] = _merged(has, loose)
    return found


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
    for name in sorted(here, key=_ORDER.__getitem__):
        for m in _FINDINGS[name][1].finditer(statement):
            start, end = m.span()
            if not any(start < e and s < end for s, e, _ in found):
                found.append((start, end, name))
    found.sort()
    return found


@lru_cache(maxsize=1 << 16)  # ours: reports are made of sentences that recur
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
        sides, zones = _sides(part) or sides, _zones(part) or zones
        if not label:
            continue
        has = Attributes(
            certain=label == 1,
            zones=zones if name in _PLACED else frozenset(),
            severity=_severity(part),
            size=_size(part),
            change=_change(f"{statement[begin:start]}, {statement[end:finish]}"),
        )
        sided = frozenset() if name in _SIDELESS else sides
        each = _severities(part) if len(sided) > 1 else {}
        for side, severity in each.items():
            found.append(_Mention(name, frozenset({side}), replace(has, severity=severity)))
        if not each:
            found.append(_Mention(name, sided, has))
        kept += [end] * (len(each) or 1)
        if statement.startswith(("hydropneumo", "hemopneumo"), start):
            found.append(replace(found[-1], name="pleural effusion"))
            kept.append(end)
    # A side behind the last mention is also that of those before it: "effusion and edema, left".
    if found and not any(m.sides for m in found[:-1]) and _SIDE.search(statement, kept[-1]):
        found = [replace(m, sides=sides) if m.name not in _SIDELESS else m for m in found]
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
    """The mentions without vague ones that a later mention explains, which takes their place."""
    from_vague: _Mention | None = None
    for i, mention in enumerate(found):
        later = next((j for j in range(i + 1, len(found)) if found[j].name not in _VAGUE), None)
        if (
            mention.name in _VAGUE
            and later is not None
            and _EXPLAINS.search(statement, ends[i], ends[later])
        ):
            from_vague = mention
            continue
        if from_vague is not None and mention.name not in _SIDELESS:
            has = mention.has
            mention = _Mention(
                mention.name,
                mention.sides or from_vague.sides,
                replace(
                    has,
                    zones=has.zones or from_vague.has.zones,
                    severity=has.severity or from_vague.has.severity,
                    size=has.size or from_vague.has.size,
                    change=has.change or from_vague.has.change,
                ),
            )
        yield mention


def _sides(part: str) -> frozenset[str]:
    found = {"both" if side["both"] else side[0] for side in _SIDE.finditer(part)}
    return frozenset({"left", "right"} if "both" in found else found)


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


def _severities(part: str) -> dict[str, float]:
    """Side -> its own degree: "small left and moderate right"; empty where that is not said."""
    sides = list(_SIDE.finditer(part))
    if [side[0] for side in sides] not in (["left", "right"], ["right", "left"]):
        return {}
    halves = part[: sides[0].end()], part[sides[0].end() :]
    degrees = [_severity(half) for half in halves]
    found = zip(sides, degrees, strict=True)
    return {s[0]: d for s, d in found if d is not None} if None not in degrees else {}


@lru_cache(maxsize=1 << 16)  # ours, as above
def _size_of_it(statement: str) -> float | None:
    """The size in mm that a statement gives to what the one before names: "It measures 3 cm"."""
    return _size(statement) if statement.startswith(("it ", "this ")) else None


def _size(part: str) -> float | None:
    """The largest measurement in mm."""
    sizes = [
        max(float(a), float(b or 0)) * (10 if unit[0] == "c" else 1)
        for a, b, unit in _SIZE.findall(part)
    ]
    return max(sizes, default=None)


def _change(around: str) -> str | None:
    found = _CHANGE.search(around)
    return found and found.lastgroup
