import pytest

from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError
from reward_sdk.types import Sample


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
