import pytest
from pydantic import BaseModel, ValidationError

from reward_sdk.errors import explain


class Pair(BaseModel):
    report: int
    rows: list[int] = []


@pytest.fixture
def error():
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"report": "No effusion.", "rows": [1, "x"]})
    return caught.value


def test_a_validation_error_is_one_line_of_places_problems_and_values(error):
    report, row = explain(error).split("; ")
    assert report.startswith("report: Input should be a valid integer")
    assert report.endswith("(got 'No effusion.')")
    assert row.startswith("rows.1: ")


def test_what_was_sent_is_not_repeated_where_it_may_be_a_report(error):
    assert "effusion" not in explain(error, values=False)


def test_of_many_places_ten_are_named():
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"report": 1, "rows": ["x"] * 100})
    assert explain(caught.value).count("; ") == 9
