"""The words by which `reward_sdk.models.rule_findings` knows findings, incidental ones and devices
among them."""

from __future__ import annotations

import re

from reward_sdk.models.rule_labeler import BIG_HEART, WIDE_MEDIASTINUM


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


_THE = r"(?:of |in |along |within )?(?:the |both |either )?(?:\w+ )?"
# Finding -> (letters one of which a statement must hold, so that others are passed over quickly,
# its mentions). One that lies within a mention of an earlier finding is none.
MENTIONS: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
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
            r"pneumoperitoneum",
            r"free (?:intra-?peritoneal |intra-?abdominal |sub\w+ )?(?:air|gas)",
            r"air (?:under|beneath|below) (?:the )?(?:\w+ )?(?:hemi)?diaphragm\w*",
        ),
    ),
    "pneumothorax": (
        ("pneumothora", "pleural"),
        _any(
            r"(?:hydro|hemo|pyo)?pneumothora(?:x|ces)", r"(?:visceral )?pleural (?:air|line)",
            r"air (?:\w+ ){0,3}(?:in|within) (?:the )?(?:\w+ )?(?:\w+ )?pleural (?:spaces?|cavity)",
        ),
    ),
    "pericardial effusion": (("pericardial",), _any(r"pericardial (?:effusions?|fluid)")),
    "pleural effusion": (
        ("effusion", "pleural", "thora", "empyema", "fissur"),
        _any(
            r"(?:pleural )?effusions?", r"(?:pleural|fissural) fluid(?: collections?)?",
            rf"fluid (?:collections? )?{_THE}(?:pleural|fissur)\w*(?: spaces?| cavity)?",
            r"h(?:ydro|emo)thora(?:x|ces)", r"empyema",
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
    "borderline heart": (
        ("borderline", "top normal", "top-normal", "upper limit"),
        _any(
            r"(?:borderline|top[ -]normal) (?:\w+ )?(?:heart|cardiac|cardiomegaly)(?: size"
            r"| silhouette)?",
            r"(?:heart|cardiac)(?: \w+){0,3} (?:borderline|top[ -]normal|upper limits?)"
            r"(?: enlarged| in size| prominent)?",
        ),
    ),
    "cardiomegaly": (
        ("cardio", "heart", "cardiac", "ventric", "atri"),
        _any(
            BIG_HEART.pattern,
            r"(?:ventric\w+|atri\w+) (?:is |are )?(?:\w+ )?(?:enlarge\w+|prominen\w+)",
        ),
    ),
    "mediastinal widening": (("mediastin",), WIDE_MEDIASTINUM),
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
    "cavity": (("cavit", "abscess"), _any(r"cavit(?:y|ies|ation|ary)(?: lesions?)?",
    r"abscess\w*")),
    "hilar enlargement": (
        ("hil", "adenopathy", "pulmonary"),
        _any(
            r"(?:hilar|hilum|hila) (?:\w+ ){0,3}(?:enlarge\w*|prominen\w+|fullness"
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
            r"mass-?like (?:opaci\w+|densit(?:y|ies)|consolidation)",
            r"mass(?:es)?(?!-?like| effect)",
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
        ("fibro", "honeycomb"), _any(r"(?:pulmonary |interstitial )?fibro(?:sis|tic)",
        r"honeycomb\w*")
    ),
    "scarring": (("scar", "band"), _any(r"scar(?:s|ring)?", r"(?:parenchymal|fibrotic) bands?")),
    "interstitial disease": (
        ("interstiti", "reticul", "marking"),
        _any(
            r"(?:increased|prominent|coarse(?:ned)?|thickened) (?:\w+ )?interstiti\w+"
            r"(?: markings)?",
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
            r"(?:ground[ -]glass )?opaci\w+", r"infiltrat\w+", r"ground[ -]glass",
            r"haz(?:e|iness)",
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
            r"(?:low(?:er)?|small|reduced|decreased|diminished|shallow) (?:\w+ )?"
            r"(?:volumes?|inspirat\w+)",
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
            r"fracture deformit\w+", r"ribs? deformit\w+",
            r"deformit\w+ of (?:the )?(?:\w+ ){0,3}ribs?",
        ),
    ),
    "fracture": (
        ("fractur", "dislocat", "broken"),
        _any(r"(?:rib )?fractur\w+", r"dislocat\w+", r"broken"),
    ),
    "osteopenia": (("osteop", "deminerali"), _any(r"osteopen\w+", r"osteopor\w+",
    r"deminerali\w+")),
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
            r"(?:aort\w+|arch|knob|coronar\w+) (?:\w+ ){0,4}calcifi\w+",
            r"calcified (?:\w+ )?aorta",
        ),
    ),
    "foreign body": (
        ("foreign", "bullet", "shrapnel", "metallic"),
        _any(r"foreign (?:body|bodies|object)", r"bullets?|shrapnel",
        r"metallic (?:\w+ )?fragments?"),
    ),
    "dilated bowel": (
        ("bowel", "ileus", "gastric"),
        _any(r"(?:dilat|disten)\w+ (?:\w+ ){0,3}bowel", r"ileus", r"bowel (?:obstruction|dilat\w+)",
             r"gastric (?:distention|distension)"),
    ),
    "malposition": (
        ("malposition", "main", "advanc", "reposition", "withdraw", "pulled", "coiled", "kink",
         "loop", "too ", "carina", "low", "high", "bronch", "airway", "jugular", "esophag"),
        _any(
            r"malposition\w*", r"(?:in|into|within) (?:the )?(?:\w+ )?main ?-?(?:stem|bronchus)",
            r"main ?-?stem intubation",
            r"(?:be|recommend\w*|suggest\w*|needs?|requires?) (?:to be )?"
            r"(?:advanc|reposition|withdraw|retract|pulled)\w*",
            r"(?:advancement|withdrawal|repositioning|retraction) is (?:recommended|suggested)",
            r"coiled|kinked|looped", r"too (?:low|high|proximal|distal|deep)",
            r"(?:tubes?|tip|position(?:ed)?) (?:is |lies )?(?:low|high)(?! and stable)",
            r"(?:at|abut\w*|touch\w*) (?:the level of )?the carina",
            r"(?:tubes?|tip) (?:\w+ ){0,6}(?:bronchus|airways?|jugular(?: vein)?|esophagus)",
        ),
    ),
    "endotracheal tube": (
        ("endotracheal", "tracheostomy", "et tube", "intubat"),
        _any(
            r"(?:endotracheal|et|tracheostomy)(?: tubes?)", r"tracheostomy", r"intubation",
        ),
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
            r"pace-?makers?|pacers?|a?icd|defibrillators?",
            r"(?:pacing |pacer )?(?:leads?(?! to)|wires)",
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
        ("sternotomy", "sternal", "cabg", "bypass", "clip", "sutur", "ectomy", "operative",
         "surgical"),
        _any(
            r"(?:median )?sternotomy(?: wires)?|sternal wires", r"cabg|bypass(?: graft\w*)?",
            r"(?:surgical )?clips?", r"sutures?", r"\w+ectomy",
            r"post-?(?:operative|surgical)\b(?: changes?)?",
        ),
    ),
}  # fmt: skip
SILENT = "nothing said"
"""What a report has in place of findings that says nothing about a film at all."""
NAMES = (*MENTIONS, SILENT)
"""The findings that are known, in the order of the rules."""
IMPLIED = {"hyperinflation": "emphysema", "volume loss": "atelectasis"}
"""Sign -> what a report that states both means by it."""

# Findings that can be on one side, and those that have a place within it.
SIDELESS = frozenset(
    {
        "pericardial effusion", "heart failure", "edema", "congestion", "cardiomegaly",
        "mediastinal widening", "mediastinal shift", "aortic aneurysm", "pneumomediastinum",
        "pneumoperitoneum", "hiatal hernia", "vertebral fracture", "osteopenia", "scoliosis",
        "degenerative change", "aortic tortuosity", "atherosclerosis", "endotracheal tube",
        "enteric tube", "hyperinflation", "emphysema", "low lung volumes", "postoperative change",
        "malposition", "other device", "borderline heart", "dilated bowel",
    }
)  # fmt: skip
PLACED = frozenset(
    {
        "pneumonia", "atelectasis", "nodule", "mass", "cavity", "consolidation", "fibrosis",
        "scarring", "interstitial disease", "opacity", "granuloma", "pneumothorax", "lucency",
        "bronchial thickening", "pleural thickening", "volume loss", "tuberculosis", "emphysema",
    }
)  # fmt: skip

# Signs, and what they are often explained by.
SIGNS: dict[str, frozenset[str]] = {
    "opacity": frozenset(NAMES) - SIDELESS | {"edema", "heart failure"},
    "lucency": frozenset(NAMES) - SIDELESS | {"emphysema", "hiatal hernia", "pneumoperitoneum"},
    "costophrenic blunting": frozenset({"pleural effusion", "pleural thickening", "scarring"}),
    "consolidation": frozenset({"pneumonia", "atelectasis"}),
    "interstitial disease": frozenset({"edema", "fibrosis", "pneumonia", "heart failure"}),
    "hyperinflation": frozenset({"emphysema"}),
    "volume loss": frozenset({"atelectasis", "scarring", "fibrosis"}),
    "nodule": frozenset({"granuloma", "metastases"}),
}
