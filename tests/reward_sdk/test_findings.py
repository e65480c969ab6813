import pytest

from reward_sdk.errors import ConfigError
from reward_sdk.observations import OBSERVATIONS, asserted
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.findings import labels_f1
from reward_sdk.types import Evidence, Sample


def score(report: str, reference: str, **settings: object) -> float | None:
    rewards = RewardSet.from_config({"findings_f1": settings})
    (result,) = rewards.score([Sample(f"<report>{report}</report>", reference)])
    return result.total


def test_another_wording_of_the_same_findings_earns_1():
    assert score("The heart is enlarged.", "Cardiomegaly, no effusion.") == 1


def test_two_reports_without_findings_agree():
    assert score("Lungs are clear.", "No acute abnormality.") == 1


def test_an_overlooked_finding_and_a_false_one_cost_the_same():
    overlooked = score("Edema.", "Edema and pneumonia.")
    false = score("Edema and pneumonia.", "Edema.")
    assert overlooked == false == pytest.approx(2 / 3)


def test_a_finding_turned_into_its_denial_earns_0():
    assert score("No pleural effusion.", "Small pleural effusion.") == 0


def test_an_uncertain_finding_counts_as_asserted():
    assert score("Possible pneumonia.", "Right lower lobe pneumonia.") == 1


def test_observations_outside_of_the_list_do_not_count():
    assert score("Edema. Fracture.", "Edema.", observations=["Edema", "Pneumonia"]) == 1


def test_an_unknown_observation_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'Edema'"):
        score("", "", observations=["Edemas"])


def test_an_empty_list_of_observations_is_refused():
    with pytest.raises(ConfigError, match="name at least one"):
        score("", "", observations=[])


def labels(**given: int) -> dict[str, int | None]:
    named = {name.replace("_", " "): value for name, value in given.items()}
    return dict.fromkeys(OBSERVATIONS) | named


def test_uncertain_observations_count_as_told():
    both = labels(Edema=-1), labels(Edema=1)
    assert labels_f1(*both, OBSERVATIONS, "positive") == 1
    assert labels_f1(*both, OBSERVATIONS, "negative") == 0


def test_a_report_asserts_what_is_present_in_the_order_of_the_observations_that_count():
    report = labels(Fracture=1, Edema=-1, Pneumonia=0, No_Finding=1)
    assert asserted(report) == ("Edema", "Fracture")
    assert asserted(report, "negative", OBSERVATIONS) == ("Fracture", "No Finding")


def explained(report: str, reference: str, **settings: object) -> dict[str, Evidence]:
    (member,) = RewardSet.from_config({"findings_f1": settings}).members
    sample = Sample(f"<report>{report}</report>", reference)
    return {evidence.finding: evidence for evidence in member.reward.explain(sample)}


def test_the_explanation_names_what_either_text_mentions():
    found = explained("Left effusion. No edema.", "Possible pneumonia. Small left effusion.")
    assert found == {
        "Edema": Evidence("Edema", "absent", "not mentioned"),
        "Pneumonia": Evidence("Pneumonia", "not mentioned", "uncertain", agrees=False),
        "Pleural Effusion": Evidence(
            "Pleural Effusion", "present, left", "present, left", agrees=True
        ),
    }


def test_the_explanation_agrees_with_the_score():
    found = explained("Edema.", "Possible edema.", uncertain="negative")
    assert found["Edema"].agrees is False
    assert explained("Edema.", "Possible edema.")["Edema"].agrees is True


def test_the_explanation_says_that_a_wrong_side_is_not_seen():
    assert "wrong side" in explained("Right effusion.", "Left effusion.")["Pleural Effusion"].note
