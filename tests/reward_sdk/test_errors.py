import errno
import os
import time

import pytest
from pydantic import BaseModel, ValidationError

from reward_sdk.errors import ConfigError, ExhaustedError, exhausted, explain, nearest


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


def test_what_was_given_is_shown_no_further_than_helps():
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"report": "x" * 1_000_000, "rows": {str(i): "y" for i in range(9999)}})
    assert len(explain(caught.value)) < 2000


def test_a_number_that_python_cannot_write_is_shown_as_such():
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"report": [10**5000]})
    assert "too long to show" in explain(caught.value)


def test_a_message_is_cut():
    text = str(ConfigError("x" * 25_000_000))
    assert len(text) < 5000
    assert text.endswith("... (25,000,000 characters)")


def test_the_nearest_name_of_a_very_long_one_is_soon_told():
    began = time.process_time()
    assert nearest("rouge_" * 1_000_000, ["rouge_l"]).startswith("known: ")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC])
def test_a_machine_that_is_out_of_something_is_named_also_behind_other_errors(number):
    error = ConfigError("outer")
    error.__cause__ = OSError(number, "inner")
    found = exhausted(error)
    assert isinstance(found, ExhaustedError)
    assert str(found) == os.strerror(number)


def test_a_missing_file_exhausts_nothing():
    assert exhausted(FileNotFoundError(errno.ENOENT, "x")) is None
