"""Findings with their attributes, and how reports are compared by them."""

import csv
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import GOLD, iu_sections
from support.shared import DATA

from reward_sdk.audit.audit import audit
from reward_sdk.audit.cases import read_cases
from reward_sdk.errors import ConfigError
from reward_sdk.models.rule_findings import Attributes, read_findings
from reward_sdk.models.vocabulary import NAMES, SILENT
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.findings_score import compare
from reward_sdk.rewards.significance import KIN, SIGNIFICANCE
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

CASES = DATA / "radjudge/cases.json"
REPORT = (
    "Moderate right pleural effusion. 12 mm nodule in the left upper lobe. The heart is mildly "
    "enlarged. Possible left basilar pneumonia. No pneumothorax."
)


def score(report: str, reference: str, **context) -> float:
    return cached_set().score([Sample(wrap_report(report), reference, **context)])[0].total


@cache
def cached_set() -> RewardSet:
    return RewardSet.from_config({"findings_score": {}})


def found(text: str) -> dict[str, dict[str, Attributes]]:
    return {name: dict(sides) for name, sides in read_findings([text])[0].items()}


LOWER = frozenset({"lower"})
BASES = {"left": Attributes(zones=LOWER), "right": Attributes(zones=LOWER)}
LEFT, SMALL_LEFT = {"left": Attributes()}, {"left": Attributes(severity=2.0)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Left effusion.", {"pleural effusion": LEFT}),
        (
            "Small left and moderate right effusions.",
            {
                "pleural effusion": {
                    "left": Attributes(severity=2.0),
                    "right": Attributes(severity=3.0),
                }
            },
        ),
        ("Mild to moderate edema.", {"edema": {"": Attributes(severity=2.5)}}),
        ("1.2 x 0.8 cm nodule.", {"nodule": {"": Attributes(size=12.0)}}),
        ("Left nodule. It measures 9 mm.", {"nodule": {"left": Attributes(size=9.0)}}),
        ("New edema.", {"edema": {"": Attributes(change="new")}}),
        ("Edema has improved.", {"edema": {"": Attributes(change="better")}}),
        ("Worsening edema.", {"edema": {"": Attributes(change="worse")}}),
        ("No change in edema.", {"edema": {"": Attributes(change="same")}}),
        ("Possible edema.", {"edema": {"": Attributes(certain=False)}}),
        ("Edema. Possible edema.", {"edema": {"": Attributes()}}),
        ("Bibasilar scarring.", {"scarring": BASES}),
        (
            "Left effusion and atelectasis.",
            {"pleural effusion": LEFT, "atelectasis": LEFT},
        ),
        (
            "Cardiomegaly, small left effusion.",
            {"cardiomegaly": {"": Attributes()}, "pleural effusion": SMALL_LEFT},
        ),
        (
            "Right basilar opacity, likely atelectasis.",
            {"atelectasis": {"right": Attributes(certain=False, zones=LOWER)}},
        ),
        ("Effusion. Left effusion.", {"pleural effusion": LEFT}),
        ("Left hydropneumothorax.", {"pneumothorax": LEFT, "pleural effusion": LEFT}),
        ("Subcutaneous emphysema.", {"subcutaneous emphysema": {"": Attributes()}}),
        ("No effusion. The heart is normal. Lungs are clear.", {}),
        ("The effusion has resolved.", {}),
        ("Left effusion, none on the right.", {"pleural effusion": LEFT}),
        ("Left pneumonia, right lung clear.", {"pneumonia": LEFT}),
        (
            "Opacities in the right upper and left lower lobes.",
            {
                "opacity": {
                    "right": Attributes(zones=frozenset({"upper"})),
                    "left": Attributes(zones=LOWER),
                }
            },
        ),
        (
            "Small right basal and large left apical effusions.",
            {
                "pleural effusion": {
                    "right": Attributes(severity=2.0),
                    "left": Attributes(severity=4.0),
                }
            },
        ),
        ("2 cm nodule, previously 3 cm.", {"nodule": {"": Attributes(size=20.0)}}),
        ("Nodule of 4.1 by 3.2 cm.", {"nodule": {"": Attributes(size=41.0)}}),
        ("Edema has not changed significantly.", {"edema": {"": Attributes(change="same")}}),
        ("Borderline cardiomegaly.", {"borderline heart": {"": Attributes()}}),
        ("The heart remains enlarged.", {"cardiomegaly": {"": Attributes(change="same")}}),
        ("COPD with hyperinflation.", {"emphysema": {"": Attributes()}}),
        (
            "ETT in right mainstem bronchus.",
            {"endotracheal tube": {"": Attributes()}, "malposition": {"": Attributes()}},
        ),
        ("asdf.", {SILENT: {"": Attributes()}}),
    ],
)  # fmt: skip
def test_a_finding_is_read_with_its_attributes(text, expected):
    assert found(text) == expected


@pytest.mark.parametrize("reference", [REPORT, "No effusion.", "Normal chest."])
def test_a_report_that_says_what_the_reference_says_earns_one(reference):
    assert score(reference, reference) == 1


@pytest.mark.parametrize(
    "report",
    [
        REPORT + " The lungs are otherwise clear. No fracture.",
        "".join(f"{sentence}. " for sentence in reversed(REPORT[:-1].split(". "))),
        REPORT + " " + REPORT,
        "Heart size: mildly enlarged\n- Left upper lobe pulmonary nodule measuring 1.2 cm\n"
        "- Moderate amount of fluid in the right pleural space\n- ?PNA at the left base\n- no PTX",
    ],
    ids=["normal statements", "order", "repeated", "other words and form"],
)
def test_what_changes_no_fact_changes_no_score(report):
    assert score(report, REPORT) == 1


ERRORS = [
    ("moderate right", "moderate left", "wrong side"),
    ("moderate right", "moderate", "side left out"),
    ("moderate right", "large right", "severity"),
    ("moderate right", "right", "severity left out"),
    ("12 mm", "4 mm", "size"),
    ("12 mm ", "", "size left out"),
    ("left upper lobe", "left lower lobe", "wrong place"),
    ("left upper lobe", "left lung", "place left out"),
    ("possible left", "left", "certainty"),
    ("moderate right", "new moderate right", "a change that the reference does not state"),
]


@pytest.mark.parametrize(("right", "wrong", "note"), ERRORS, ids=[e[2] for e in ERRORS])
def test_every_wrong_attribute_costs_and_is_named(right, wrong, note):
    report = REPORT.lower().replace(right, wrong)
    assert report != REPORT.lower()
    sample = Sample(wrap_report(report), REPORT)
    value = cached_set().score([sample])[0].total
    notes = "; ".join(e.note for e in cached_set().members[0].reward.explain(sample))
    assert 0.6 < value < 1
    assert note in notes


def test_a_detail_that_the_reference_lacks_costs_nothing():
    assert score("Small left effusion. 4 mm nodule at the right apex.", "Effusion. Nodule.") == 1


def test_a_complete_miss_costs_more_than_every_attribute():
    reference = "Large right pneumothorax, new."
    wrong = score("Small left pneumothorax, possible and improved.", reference)
    assert score("Normal.", reference) < wrong < 1


def test_a_false_finding_costs_by_its_significance_and_each_one_more():
    reports = ["Normal.", "Scoliosis.", "Effusion.", "Pneumothorax.", "Pneumothorax. Effusion."]
    values = [score(report, "Normal.") for report in reports]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


def test_a_denied_finding_costs_as_much_as_a_silent_one():
    assert score("No effusion.", "Effusion.") == score("Clear lungs.", "Effusion.")


def test_a_related_finding_earns_less_than_the_right_one_and_more_than_none():
    reference = "Right lower lobe pneumonia."
    values = [score(f"Right lower lobe {x}.", reference) for x in ("pneumonia", "opacity", "mass")]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3


def test_signs_of_age_weigh_more_in_the_young():
    reference, report = "Edema. Atherosclerosis of the aorta.", "Edema."
    old, unknown, young = (score(report, reference, age=age) for age in (82, None, 25))
    assert old == unknown > young


@pytest.mark.parametrize(
    "indication", ["Rule out pneumothorax.", "s/p fall", "PTX?", "INDICATION: PTX?"]
)
def test_what_the_indication_asks_about_weighs_more(indication):
    reference, report = "Pneumothorax. Effusion.", "Effusion."
    assert score(report, reference, indication=indication) < score(report, reference)


def test_a_text_that_says_nothing_is_no_normal_report():
    assert score("asdf.", "Normal chest.") < score("Normal.", "Normal chest.")


def test_naming_every_side_and_place_does_not_pay():
    reference = "Left lower lobe consolidation."
    everywhere = "Consolidation of the upper, middle and lower lobes on both sides."
    assert score(everywhere, reference) < score(reference, reference)


def test_a_significance_can_be_changed():
    rewards = RewardSet.from_config({"findings_score": {"significance": {"pneumothorax": 0}}})
    sample = Sample("<report> Pneumothorax. </report>", "Normal.")
    assert rewards.score([sample])[0].total == 1


@pytest.mark.parametrize(
    ("significance", "message"),
    [
        ({"pneumothorx": 1}, "no finding 'pneumothorx'.*'pneumothorax'"),
        ({"edema": -1}, "'edema' weighs -1.0: write 0 to 100"),
        ({"edema": float("nan")}, "'edema' weighs nan"),
        ({"edema": 1e308}, "write 0 to 100"),
    ],
)
def test_a_wrong_significance_is_refused(significance, message):
    with pytest.raises(ConfigError, match=message):
        RewardSet.from_config({"findings_score": {"significance": significance}})


def test_every_finding_has_a_significance_and_only_findings_are_kin():
    assert set(SIGNIFICANCE) == set(NAMES)
    assert frozenset().union(*KIN) <= set(NAMES)


def test_explanations_say_what_is_matched_missing_and_false():
    sample = Sample(
        "<report> Small left effusion. Edema. </report>", "Left effusion. Pneumothorax."
    )
    lines = {e.finding: e for e in cached_set().members[0].reward.explain(sample)}
    assert {name: e.note.split(";")[0] for name, e in lines.items()} == {
        "pleural effusion": "matched", "pneumothorax": "missing", "edema": "false",
    }  # fmt: skip
    assert lines["pleural effusion"].response == "present, left, small or mild"
    assert lines["edema"].reference == "not mentioned"


PARTS = st.lists(
    st.sampled_from([
        "Large left effusion.", "No effusion.", "Possible edema.", "3 cm right mass.", "New edema.",
        "Right effusion, improved.", "Heart is enlarged.", "Opacity may be pneumonia.", "Clear.",
    ]), max_size=5,
)  # fmt: skip


@given(PARTS, PARTS)
def test_scores_are_in_range_and_one_for_equals(a, b):
    ours, theirs = read_findings([" ".join(a), " ".join(b)])
    value, _ = compare(ours, theirs)
    assert 0 < value <= 1
    assert compare(theirs, theirs)[0] == 1


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    assert set(found(text)) <= set(NAMES)


@pytest.mark.skipif(not CASES.exists(), reason="shared data absent")
def test_candidates_rank_as_radiologists_rank_them():
    result = audit(cached_set(), [], cases=read_cases(CASES))
    assert [one.case.id for one in result.cases if not one.rankings["findings_score"].passed] == []


@pytest.mark.skipif(not GOLD.exists(), reason="shared data absent")
def test_few_normal_reports_of_iu_xray_are_said_to_have_a_finding():
    if not iu_sections():
        pytest.skip("the IU-XRay reports come with torchxrayvision")
    with GOLD.open() as file:
        normal = {row["filename"] for row in csv.DictReader(file) if row["normal"] == "1"}
    texts = ["\n\n".join(s) for uid, s in iu_sections().items() if uid in normal and any(s)]
    wrong = sum(any(SIGNIFICANCE[n] >= 0.2 for n in found) for found in read_findings(texts))
    assert wrong / len(texts) < 0.015  # measured: 0.008
