"""What a sample holds is the same, whichever way it came: by hand, from a row of a file, from a
trainer's columns, over the wire."""

import asyncio
import json

import pytest

from reward_sdk.adapters.columns import to_samples
from reward_sdk.adapters.rows import row_sample
from reward_sdk.commands.score import score_file
from reward_sdk.config import Entry
from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import BadRow, read_rows
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.service import RewardServer
from reward_sdk.types import Sample
from reward_sdk.wire import ScoreRequest, chunks


class Seen:
    """Keeps the samples that it is shown."""

    name, bounds, needs = "seen", (0.0, 1.0), frozenset()

    def __init__(self):
        self.samples = []

    def __call__(self, samples):
        self.samples += samples
        return [1.0] * len(samples)


def by_hand(row, tmp_path):
    return Sample("x", **row)


def of_a_file(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "s1", "response": "x"} | row))
    [read] = read_rows(path)
    return read


def of_columns(row, tmp_path):
    [sample] = to_samples(["x"], {key: [value] for key, value in row.items()}, {"report"})
    return sample


def over_the_wire(row, tmp_path):
    """As a client of another making sends it, which takes no tags off."""
    reward = Seen()
    server = RewardServer(RewardSet([(reward, Entry())]))
    body = ScoreRequest.model_validate({"samples": [{"response": "x"} | row]})
    asyncio.run(server.score_request(body, b""))
    return reward.samples[0]


WAYS = [by_hand, of_a_file, of_columns, over_the_wire]
ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("Clear.\n", "Clear.\n"),
        ("<report> Clear. </report>", "Clear."),
        ("<think> Hm. </think>\n<report>Clear.</report>", "Clear."),
        ("<think> Hm. </think> Clear.", "Clear."),
        (" \n", None),
        ("<report> </report>", None),
        ("<think> Hm. </think> <report>\n</report>", None),
        (None, None),
    ],
)
def test_a_reference_is_the_report_without_its_tags_and_a_blank_one_is_none(
    way, given, reference, tmp_path
):
    assert way({"reference": given}, tmp_path).reference == reference


BROKEN = [
    "<report> Clear.", "Clear. </report>", "<report> a </report> <report> b </report>",
    "Findings: <report> Clear. </report>", "<think> Hm. <report> Clear. </report>",
]  # fmt: skip


@pytest.mark.parametrize("reference", BROKEN)
def test_a_reference_with_broken_tags_is_an_error_in_a_file_and_elsewhere_none(reference, tmp_path):
    row = of_a_file({"reference": reference}, tmp_path)
    assert isinstance(row, BadRow)
    assert row.problem.startswith("'reference': its tags are not one <report> pair")
    for way in (by_hand, of_columns, over_the_wire):
        assert way({"reference": reference}, tmp_path).reference is None


@pytest.mark.parametrize("reference", ["", " \n", "<report> </report>"])
def test_denying_everything_earns_nothing_against_a_blank_reference(reference):
    rewards = RewardSet.from_config({"findings_f1": {}})
    [score] = rewards.score([Sample("<report> No effusion. </report>", reference)])
    assert (score.total, score.not_applicable) == (None, ("findings_f1",))


@ways
def test_the_patient_s_age_and_the_indication_come_along(way, tmp_path):
    read = way({"age": 82.5, "indication": "Cough."}, tmp_path)
    assert (read.age, read.indication) == (82.5, "Cough.")
    bare = way({"age": None, "indication": " "}, tmp_path)
    assert (bare.age, bare.indication) == (None, None)


@pytest.mark.parametrize("way", [by_hand, of_a_file, of_columns])
@pytest.mark.parametrize(
    ("given", "years"),
    [
        (82, 82), ("82", 82), (" 82.0 ", 82), ("082Y", 82), ("006M", 0.5), ("64 years", 64),
        ("64-year-old", 64), ("64 years old", 64), ("64yo", 64), ("18 months", 1.5), ("000D", 0),
        ("026W", pytest.approx(0.5, abs=0.01)), ("", None), (float("nan"), None),
    ],
)  # fmt: skip
def test_an_age_is_a_number_of_years_or_a_text_that_gives_its_unit(way, given, years, tmp_path):
    assert way({"age": given}, tmp_path).age == years


@pytest.mark.parametrize("age", ["old", "82 kg", "-3", -3, 151, "1820", "Y", True, [64], "6 M 2"])
def test_what_is_no_age_is_an_error_that_says_what_to_write(age, tmp_path):
    row = of_a_file({"age": age}, tmp_path)
    assert isinstance(row, BadRow)
    assert row.problem.startswith("'age': no age: ")
    with pytest.raises(ConfigError, match=r"no age: .*; write years \(82\) or as DICOM does"):
        row_sample("x", {"age": age}, ())
    with pytest.raises(ValueError, match="no age"):
        Sample("x", age=age)


def test_a_client_sends_what_a_sample_holds():
    info = RewardServer(RewardSet.from_config(["format"])).info
    sample = Sample("x", "<report> Clear. </report>", None, "s1", "required", "006M", "Cough.")
    [[wire]] = chunks([sample], info)
    assert (wire.reference, wire.age, wire.indication) == ("Clear.", 0.5, "Cough.")


def test_a_file_s_context_reaches_the_rewards(tmp_path, monkeypatch):
    reward = Seen()
    built = RewardSet([(reward, Entry())])
    monkeypatch.setattr(RewardSet, "from_config", lambda *_: built)
    row = {"id": "s1", "response": "x", "age": "082Y", "indication": "Cough."}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    score_file(["seen"], tmp_path / "data.jsonl", tmp_path / "out.jsonl")
    assert [(s.age, s.indication) for s in reward.samples] == [(82.0, "Cough.")]
