import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import GOLD, gold_agreement, iu_sections

from reward_sdk.models.rule_labeler import (
    in_words,
    label_reports,
    stated_sides,
    wrong_sides,
)
from reward_sdk.observations import OBSERVATIONS

# A phrase that names each finding, for the tests that put it into sentences.
PHRASES = {
    "Enlarged Cardiomediastinum": "widened mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "airspace opacity",
    "Lung Lesion": "pulmonary nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "endotracheal tube",
}


def stated(text: str) -> dict[str, int]:
    """The labels that are not blank, without No Finding."""
    (labels,) = label_reports([text])
    return {k: v for k, v in labels.items() if v is not None and k != "No Finding"}


@pytest.mark.parametrize(
    ("frame", "label"),
    [
        ("{}.", 1),
        ("There is {}.", 1),
        ("Stable {} on the left.", 1),
        ("No change in the {}.", 1),
        ("The {} is unchanged.", 1),
        ("The {} has not resolved.", 1),
        ("Findings consistent with {}.", 1),
        ("No {}.", 0),
        ("No evidence of {}.", 0),
        ("Negative for {}.", 0),
        ("There is no evidence to suggest {}.", 0),
        ("{} is not seen.", 0),
        ("The {} has resolved.", 0),
        ("{}: none.", 0),
        ("{} is unlikely.", 0),
        ("Possible {}.", -1),
        ("May represent {}.", -1),
        ("There is likely {}.", -1),
        ("Cannot exclude {}.", -1),
        ("{} is not entirely excluded.", -1),
        ("{} is possible.", -1),
    ],
)
def test_every_finding_takes_the_polarity_of_its_sentence(frame, label):
    for observation, phrase in PHRASES.items():
        assert stated(frame.format(phrase)) == {observation: label}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pneumothorax or edema.", {"Pneumothorax": 0, "Edema": 0}),
        ("No pneumothorax, edema, fracture.", {"Pneumothorax": 0, "Edema": 0, "Fracture": 0}),
        ("Edema and pneumothorax are not seen.", {"Pneumothorax": 0, "Edema": 0}),
        ("No edema but there is a pneumothorax.", {"Edema": 0, "Pneumothorax": 1}),
        ("No edema; pneumothorax.", {"Edema": 0, "Pneumothorax": 1}),
        ("No edema, small pneumothorax.", {"Edema": 0, "Pneumothorax": 1}),
        ("No edema, and the heart is enlarged.", {"Edema": 0, "Cardiomegaly": 1}),
        ("No edema is seen and pneumothorax persists.", {"Edema": 0, "Pneumothorax": 1}),
        ("Cardiomegaly without edema.", {"Cardiomegaly": 1, "Edema": 0}),
        ("Small effusion, no pneumothorax.", {"Pleural Effusion": 1, "Pneumothorax": 0}),
        ("No edema, possible pneumonia.", {"Edema": 0, "Pneumonia": -1}),
        ("No abnormality other than mild cardiomegaly.", {"Cardiomegaly": 1}),
        ("no edema . small pneumothorax .", {"Edema": 0, "Pneumothorax": 1}),
        ("Opacity may reflect atelectasis.", {"Lung Opacity": 1, "Atelectasis": -1}),
        ("Atelectasis versus pneumonia.", {"Atelectasis": 1, "Pneumonia": -1}),
    ],
)
def test_a_scope_ends_where_a_new_statement_begins(text, expected):
    assert stated(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart size is normal.", {"Cardiomegaly": 0}),
        ("The heart is not enlarged.", {"Cardiomegaly": 0}),
        ("Heart is not normal.", {}),
        (
            "Heart is enlarged, clear lungs.",
            {"Cardiomegaly": 1, "Lung Opacity": 0, "Consolidation": 0},
        ),
        (
            "Cardiomediastinal silhouette is within normal limits.",
            {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0},
        ),
        ("The lungs are clear.", {"Lung Opacity": 0, "Consolidation": 0}),
        ("The lungs are not clear.", {}),
        ("Bony structures are intact.", {"Fracture": 0}),
        ("No acute cardiopulmonary abnormality.", {}),
    ],
)
def test_a_normal_statement_denies_what_it_speaks_of(text, expected):
    assert stated(text) == expected


@pytest.mark.parametrize(
    "text",
    ["Pericardial effusion.", "Soft tissue edema.", "Calcified granuloma.", "Mass effect."],
)
def test_words_of_other_places_are_no_finding(text):
    assert label_reports([text])[0]["No Finding"] == 1


def test_vague_words_are_uncertain_findings():
    assert stated("Nodular opacity.")["Lung Lesion"] == -1
    assert stated("Vascular congestion.") == {"Edema": -1}


def test_positive_beats_uncertain_beats_negative_whatever_the_order():
    assert stated("Edema. Possible edema. No edema.") == {"Edema": 1}
    assert stated("No edema. Possible edema.") == {"Edema": -1}


def test_no_finding_allows_support_devices_only():
    texts = ["Endotracheal tube. No edema.", "Edema.", "Possible edema.", ""]
    assert [labels["No Finding"] for labels in label_reports(texts)] == [1, None, None, 1]


LEFT, RIGHT = frozenset({"left"}), frozenset({"right"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left effusion, no right edema.", {"Pleural Effusion": LEFT}),
        ("Left effusion and right nodule.", {"Pleural Effusion": LEFT, "Lung Lesion": RIGHT}),
        ("Left effusion and atelectasis.", {"Pleural Effusion": LEFT, "Atelectasis": LEFT}),
        ("Effusions on the left and right.", {"Pleural Effusion": LEFT | RIGHT}),
        ("Bilateral effusions.", {"Pleural Effusion": LEFT | RIGHT}),
        ("Possible LEFT-sided effusion.", {"Pleural Effusion": LEFT}),
        ("Left effusion. Right effusion.", {"Pleural Effusion": LEFT | RIGHT}),
        ("Left pacemaker, lead in the right ventricle.", {"Support Devices": LEFT}),
        ("No left effusion. Effusion.", {}),
    ],
)
def test_a_side_belongs_to_what_its_clause_states(text, expected):
    assert stated_sides(text) == expected


@pytest.mark.parametrize(
    ("report", "reference", "expected"),
    [
        ("Right effusion.", "Left effusion.", ("Pleural Effusion",)),
        ("Bilateral effusions.", "Left effusion.", ("Pleural Effusion",)),
        ("Left effusion.", "Bilateral effusions.", ()),
        ("Effusion.", "Left effusion.", ()),
        ("Right effusion.", "Effusion.", ()),
        ("Right effusion.", "No left effusion.", ()),
    ],
)
def test_a_wrong_side_is_one_that_the_reference_does_not_name(report, reference, expected):
    assert wrong_sides(report, reference) == expected


def test_words_say_polarity_and_side():
    words = in_words("Bilateral effusions. No edema. Possible right pneumonia.")
    assert words["Pleural Effusion"] == "present, left and right"
    assert words["Edema"] == "absent"
    assert words["Pneumonia"] == "uncertain, right"
    assert words["Fracture"] == "not mentioned"


@given(st.lists(st.text(), max_size=3))
def test_any_text_gets_one_label_per_observation(texts):
    labels = label_reports(texts)
    assert [tuple(row) for row in labels] == [OBSERVATIONS] * len(texts)
    assert {value for row in labels for value in row.values()} <= {1, 0, -1, None}


@pytest.mark.parametrize("loop", ["no effusion ", "effusion, ", "heart ", "no "])
def test_a_response_caught_in_a_loop_is_labelled_in_time(loop):
    begin = time.process_time()
    label_reports([loop * 500])
    assert time.process_time() - begin < 2


@pytest.mark.skipif(not GOLD.exists(), reason="shared data absent")
def test_positives_agree_with_the_human_coded_gold_of_iu_xray():
    if not iu_sections():
        pytest.skip("the IU-XRay reports come with torchxrayvision")
    assert gold_agreement(label_reports)["micro-9"].f1 > 0.915  # measured: 0.924


def test_a_policy_that_repeats_itself_is_read_in_a_time_that_grows_with_its_length():
    def seconds(times):
        text = "no pleural effusion, possible edema, " * times
        began = time.process_time()
        label_reports([text])
        return time.process_time() - began

    seconds(10)
    assert seconds(4000) < 40 * max(seconds(400), 0.01)
