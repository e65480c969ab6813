"""What findings weigh for a patient, and which are nearly the same thing: the tables of
`findings_score`.

The classes follow how CRIMSON (github.com/rajpurkarlab/CRIMSON: urgent, actionable, not actionable,
benign) and ReXVal (Yu et al., 2023: clinically significant or not) read errors; the numbers are
ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reward_sdk.models.rule_findings import mentioned
from reward_sdk.models.vocabulary import SILENT

# ours: what a finding weighs: about 1 if somebody must act now, .5 if somebody must act, .25 if it
# should be known, .1 and less if it changes nothing.
SIGNIFICANCE: Mapping[str, float] = {
    "pneumothorax": 1.0,
    "pneumoperitoneum": 1.0,
    "pneumomediastinum": 0.9,
    "mediastinal shift": 0.9,
    "aortic aneurysm": 0.9,
    "malposition": 0.9,
    "mass": 0.8,
    "metastases": 0.8,
    "cavity": 0.8,
    "tuberculosis": 0.8,
    "mediastinal widening": 0.6,
    "pneumonia": 0.6,
    "consolidation": 0.6,
    "edema": 0.6,
    "heart failure": 0.6,
    "nodule": 0.5,
    "bone lesion": 0.5,
    "hilar enlargement": 0.5,
    "pleural effusion": 0.5,
    "fracture": 0.5,
    "subcutaneous emphysema": 0.5,
    "pericardial effusion": 0.5,
    "opacity": 0.5,
    SILENT: 0.5,
    "lucency": 0.4,
    "congestion": 0.4,
    "cardiomegaly": 0.4,
    "foreign body": 0.4,
    "dilated bowel": 0.4,
    "interstitial disease": 0.4,
    "fibrosis": 0.4,
    "vertebral fracture": 0.4,
    "atelectasis": 0.3,
    "volume loss": 0.3,
    "costophrenic blunting": 0.3,
    "bronchial thickening": 0.3,
    "emphysema": 0.3,
    "elevated hemidiaphragm": 0.25,
    "pleural thickening": 0.25,
    "hyperinflation": 0.2,
    "endotracheal tube": 0.25,
    "chest tube": 0.25,
    "enteric tube": 0.2,
    "central line": 0.2,
    "pacemaker": 0.15,
    "other device": 0.15,
    "hiatal hernia": 0.15,
    "scarring": 0.15,
    "borderline heart": 0.15,
    "old fracture": 0.1,
    "granuloma": 0.1,
    "low lung volumes": 0.1,
    "osteopenia": 0.1,
    "scoliosis": 0.1,
    "aortic tortuosity": 0.1,
    "atherosclerosis": 0.1,
    "degenerative change": 0.05,
    "postoperative change": 0.05,
}
# ours: what naming one for the other earns, of 1; the same thing in other words earns all of it.
KIN: dict[frozenset[str], float] = {
    frozenset(pair): credit
    for credit, pairs in {
        1.0: [("consolidation", "pneumonia")],
        0.8: [("emphysema", "hyperinflation"), ("scarring", "fibrosis")],
        0.7: [
            ("opacity", "consolidation"), ("nodule", "mass"), ("edema", "congestion"),
            ("heart failure", "edema"), ("heart failure", "congestion"),
            ("costophrenic blunting", "pleural effusion"), ("metastases", "nodule"),
            ("costophrenic blunting", "pleural thickening"), ("metastases", "mass"),
            ("volume loss", "atelectasis"), ("fracture", "old fracture"),
        ],
        0.6: [
            ("borderline heart", "cardiomegaly"),
            ("opacity", "pneumonia"), ("opacity", "atelectasis"), ("interstitial disease", "edema"),
            ("interstitial disease", "fibrosis"), ("interstitial disease", "opacity"),
            ("cavity", "mass"), ("nodule", "granuloma"), ("hilar enlargement", "mass"),
            ("fracture", "vertebral fracture"), ("aortic tortuosity", "aortic aneurysm"),
            ("metastases", "bone lesion"), ("tuberculosis", "cavity"),
        ],
        0.5: [
            ("atelectasis", "consolidation"), ("atelectasis", "scarring"), ("opacity", "scarring"),
            ("opacity", "nodule"), ("opacity", "mass"), ("opacity", "edema"),
            ("interstitial disease", "congestion"), ("lucency", "pneumothorax"),
            ("mediastinal widening", "aortic aneurysm"), ("cavity", "lucency"),
            ("pleural effusion", "pleural thickening"), ("emphysema", "lucency"),
            ("bronchial thickening", "interstitial disease"), ("opacity", "fibrosis"),
            ("tuberculosis", "pneumonia"), ("tuberculosis", "consolidation"),
            ("tuberculosis", "opacity"),
        ],
        0.4: [
            ("atelectasis", "pneumonia"), ("heart failure", "cardiomegaly"),
            ("cardiomegaly", "mediastinal widening"), ("low lung volumes", "atelectasis"),
            ("central line", "other device"), ("chest tube", "other device"),
            ("enteric tube", "other device"), ("pacemaker", "other device"),
            ("endotracheal tube", "other device"), ("pericardial effusion", "cardiomegaly"),
        ],
    }.items()
    for pair in pairs
}  # fmt: skip

# ours: signs of age, and how much more they weigh up to an age in years.
_OF_AGE = frozenset(
    {"atherosclerosis", "aortic tortuosity", "degenerative change", "osteopenia", "emphysema"}
)
_YOUNG = ((40.0, 5.0), (65.0, 2.0))
_ASKED = 1.5  # ours: how much more a finding weighs that the indication asks about
# ours: what an indication asks about that names a complaint.
_COMPLAINTS = (
    (re.compile(r"\b(?:fever|febrile|cough|leuko|sputum)"), ("pneumonia", "consolidation")),
    (re.compile(r"\b(?:trauma|fall|fell|mva|mvc|injury)"), ("fracture", "pneumothorax")),
    (re.compile(r"\b(?:dyspn|shortness of breath|sob\b|hypox)"), ("edema", "pleural effusion")),
    (
        re.compile(r"\b(?:placement|position|intubat|tube\b|line\b)"),
        ("endotracheal tube", "enteric tube", "central line", "chest tube", "malposition"),
    ),
)


def in_context(
    significance: Mapping[str, float], age: float | None, indication: str | None
) -> Mapping[str, float]:
    """What each finding weighs for a patient.

    Args:
        significance: what each finding weighs for any patient.
        age: the patient's age in years; None if it is not known.
        indication: why the film was made; None if it is not known.
    """
    factors = dict.fromkeys(significance, 1.0)
    if age is not None:
        more = next((factor for limit, factor in _YOUNG if age < limit), 1.0)
        factors |= dict.fromkeys(_OF_AGE, more)
    if indication:
        asked = set(mentioned(indication))
        for words, names in _COMPLAINTS:
            asked |= set(names) if words.search(indication.lower()) else set()
        for name in asked & factors.keys():
            factors[name] *= _ASKED
    return {name: weight * factors[name] for name, weight in significance.items()}
