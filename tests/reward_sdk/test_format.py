import pytest

from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample


def score(response: str, **settings: object) -> float | None:
    (result,) = RewardSet.from_config({"format": settings}).score([Sample(response)])
    return result.total


@pytest.mark.parametrize(
    "response", ["<report>No effusion.</report>", " <report> No\neffusion. </report>\n"]
)
def test_one_pair_of_tags_with_text_earns_1(response):
    assert score(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "No effusion.",
        "<report> </report>",
        "<report>No effusion.",
        "Sure! <report>No effusion.</report>",
        "<report>No effusion.</report> Done.",
        "<report>No effusion.</report><report>No edema.</report>",
        "<report><report>No effusion.</report></report>",
    ],
)
def test_anything_else_earns_0(response):
    assert score(response) == 0.0


REPORT = "<report>No effusion.</report>"


@pytest.mark.parametrize(
    "response",
    [f"<think>Clear.</think>{REPORT}", f" <think> Clear\n</think>\n {REPORT}\n",
     f"Clear, I think.</think> {REPORT}"],
)  # fmt: skip
def test_with_think_one_block_before_the_report_earns_1_opened_here_or_by_the_template(response):
    assert score(response, think=True) == 1.0
    assert score(response) == 0.0


@pytest.mark.parametrize(
    "response",
    [
        REPORT,
        f"<think></think>{REPORT}",
        f"<think>Clear.{REPORT}",
        f"<think>a</think><think>b</think>{REPORT}",
        f"<think><think>a</think></think>{REPORT}",
        f"{REPORT}<think>Clear.</think>",
        f"<think>Clear.</think> so: {REPORT}",
        "<report><think>Clear.</think>No effusion.</report>",
        f"<think>{REPORT}</think>{REPORT}",
        "<think>Clear.</think>",
        "<think>Clear.</think><report> </report>",
    ],
)
def test_with_think_anything_else_earns_0(response):
    assert score(response, think=True) == 0.0


def test_other_rewards_read_the_report_after_the_thoughts():
    rewards = RewardSet.from_config({"rouge_l": {}})
    (result,) = rewards.score([Sample(f"<think>Edema?</think>{REPORT}", "No effusion.")])
    assert result.total == 1
