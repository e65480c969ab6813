import pytest

from reward_sdk.engine import RewardSet
from reward_sdk.types import Sample


def score(response: str) -> float | None:
    (result,) = RewardSet.from_config({"format": {}}).score([Sample(response)])
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
