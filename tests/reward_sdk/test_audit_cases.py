"""Ranking cases: files of them, what passes, and what the command makes of it."""

import json
import re

import pytest
from click.testing import CliRunner
from support.shared import DATA

from reward_sdk.audit.audit import TOTAL, audit
from reward_sdk.audit.cases import Expectation, rank, read_cases
from reward_sdk.cli import main
from reward_sdk.errors import ConfigError
from reward_sdk.registry import reward
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Outcome, Sample

RADJUDGE = DATA / "radjudge/cases.json"


def case(**changes):
    """A case as the file has it: an omitted effusion costs, and a repeated word does not."""
    return {
        "id": "1a",
        "category": "Omission",
        "description": "A missing finding costs.",
        "reference": "Left effusion. Edema.",
        "candidates": {"C1": {"text": "Left effusion. Edema."}, "C2": {"text": "Edema."}},
        "expected": ["C1 > C2"],
    } | changes


WORDING = case(
    id="2a",
    category="Wording",
    candidates={"C1": {"text": "Left effusion. Edema."}, "C2": {"text": "Edema; left effusion."}},
    expected=["C1 = C2"],
)


@pytest.fixture
def file(tmp_path):
    """Writes cases, or a text, and gives the file."""

    def write(*content):
        path = tmp_path / "cases.json"
        text = isinstance(content[0], str)
        path.write_text(content[0] if text else json.dumps(content), encoding="utf-8")
        return path

    return write


def audited(path, **rewards):
    return audit(RewardSet.from_config(rewards), [], cases=read_cases(path))


@pytest.mark.parametrize(
    ("expected", "gap", "holds"),
    [
        (">", 0.001, True),
        (">", 1e-10, False),
        (">", -0.5, False),
        ("=", 0.019, True),
        ("=", -0.019, True),
        ("=", 0.021, False),
        ("=", -0.021, False),
    ],
)
def test_higher_is_above_one_tolerance_and_the_same_is_within_the_other(expected, gap, holds):
    assert Expectation("A", expected, "B").holds({"A": 1 + gap, "B": 1.0}) is holds


def test_a_case_passes_if_all_holds_that_is_expected(file):
    three = {"A": {"text": "Edema."}, "B": {"text": "Clear."}, "the third": {"text": "Effusion."}}
    [ranked] = read_cases(file(case(candidates=three, expected=["A > B", "B = the third"])))

    def passed(*values):
        return rank(ranked, dict(zip(three, map(Outcome, values), strict=True))).passed

    assert passed(1.0, 0.5, 0.5)
    assert not passed(1.0, 0.5, 0.9)
    assert not passed(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "outcome", [Outcome(None, "skipped", "no image"), Outcome(0.0, "failed", "no image")]
)
def test_a_case_with_a_candidate_without_a_score_is_unscored(file, outcome):
    [ranked] = read_cases(file(case()))
    ranking = rank(ranked, {"C1": Outcome(1.0), "C2": outcome})
    assert (ranking.passed, ranking.reason) == (None, f"{outcome.status}: no image")
    assert ranking.scores == {"C1": 1.0, "C2": None}


def test_every_reward_and_the_total_rank_the_candidates(file):
    result = audited(file(case(), WORDING), rouge_l={}, findings_f1={})
    passed = [
        {column: ranking.passed for column, ranking in r.rankings.items()} for r in result.cases
    ]
    assert passed == [
        {TOTAL: True, "rouge_l": True, "findings_f1": True},
        {TOTAL: False, "rouge_l": False, "findings_f1": True},
    ]
    assert {name: len(its) for name, its in result.categories.items()} == {
        "Omission": 1,
        "Wording": 1,
    }
    assert result.summary == {"cases passed": ["1 of 2", "1 of 2", "2 of 2"]}


def test_cases_change_nothing_of_an_audit_of_reports(file):
    samples = [Sample("<report> Edema. </report>", "Edema.", id="a")]
    rewards = RewardSet.from_config({"findings_f1": {}})
    both = audit(rewards, samples, cases=read_cases(file(case())))
    assert both.rows == audit(rewards, samples).rows
    assert both.discrimination(TOTAL) is not None
    assert both.cases == audited(file(case()), findings_f1={}).cases


def test_the_table_names_the_cases_that_failed_with_their_scores(file):
    table = audited(file(case(), WORDING), rouge_l={}, findings_f1={}).table()
    assert "2a failed: C1 = C2" in table
    assert "1a failed" not in table
    [line] = [line for line in table.splitlines() if "rouge_l  C1" in line]
    assert line.split()[:3] == ["rouge_l", "C1", "1.0000"]


@reward("blind")
class Blind:
    """Looks at images, of which ranking cases have none."""

    name, bounds, needs = "blind", (0.0, 1.0), frozenset({"report", "image"})

    def __call__(self, samples):
        return [Outcome(1.0) for _ in samples]


def test_what_a_reward_cannot_score_is_counted_apart_with_its_cause(file):
    result = audited(file(case(), WORDING), rouge_l={}, blind={})
    assert result.summary["cases passed"] == ["1 of 2", "1 of 2", "-"]
    numbers = result.to_dict()["summary"]["blind"]
    assert (numbers["cases"], numbers["cases_passed"], numbers["cases_unscored"]) == (2, 0, 2)
    assert "blind: 1 unscored" in result.table()
    assert re.search("blind: the first cause of unscored cases: .*: no image", result.table())


@pytest.mark.parametrize("age", [82, "82"])
def test_the_context_of_a_candidate_is_its_samples(file, age):
    context = {"age": age, "indication": "Cough."}
    candidates = {"C1": {"text": "Edema.", "context": context}, "C2": {"text": "Edema."}}
    [ranked] = read_cases(file(case(candidates=candidates)))
    found = [(sample.age, sample.indication) for sample in ranked.candidates.values()]
    assert found == [(82.0, "Cough."), (None, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON: "),
        ("[]", "a JSON array of at least one case"),
        ('{"id": "1a"}', "a JSON array of at least one case"),
        ("[3]", "case 1: a case is a JSON object, not 3"),
        pytest.param("[" * 100_000, "no JSON: ", id="nested too deep"),
    ],
)
def test_a_file_that_holds_no_cases_says_so(file, content, message):
    with pytest.raises(ConfigError, match=r"cases .*cases\.json: ") as error:
        read_cases(file(content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "case 2: 'id' is a text that is not blank, not None"),
        ({"id": "2a"}, "case 2 ('2a'): an earlier case has the same id"),
        ({"reference": " "}, "'reference' is a text that is not blank"),
        ({"category": 7}, "'category' is a text that is not blank, not 7"),
        ({"candidates": []}, "'candidates' is a JSON object, not []"),
        ({"candidates": {"C1": "Edema."}}, "candidate 'C1' is a JSON object, not 'Edema.'"),
        ({"candidates": {"C1": {"text": ""}}}, "candidate 'C1': 'text' is a text"),
        ({"candidates": {"C1": {"text": "<report> A. </report>"}}}, "a plain report, without tags"),
        ({"candidates": {"C1": {"text": "A.", "context": "Cough."}}}, "'context' is a JSON object"),
        ({"expected": []}, "'expected' is a list of at least one text such as 'C1 > C2'"),
        ({"expected": ["C1 > C9"]}, "'C1 > C9' names no candidate: 'C9' is none of C1, C2"),
        ({"expected": ["C1 >= C2"]}, "reads 'C1 > C2' or 'C1 = C2', not 'C1 >= C2'"),
        ({"expected": ["C1 < C2"]}, "reads 'C1 > C2' or 'C1 = C2', not 'C1 < C2'"),
        ({"expected": [3]}, "reads 'C1 > C2' or 'C1 = C2', not 3"),
    ],
)
def test_a_wrong_case_is_named_with_what_is_wrong(file, changes, message):
    with pytest.raises(ConfigError, match=r"cases\.json: case 2") as error:
        read_cases(file(WORDING, case(**changes)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"age": "old"}, "candidate 'C1': no age: 'old'"),
        ({"age": -1}, "candidate 'C1': no age: '-1'"),
        ({"indication": 3}, "candidate 'C1': Sample: indication is a text or None, not int"),
    ],
)
def test_a_wrong_context_is_named_with_its_candidate(file, context, message):
    candidates = {"C1": {"text": "Edema.", "context": context}}
    with pytest.raises(ConfigError, match=message):
        read_cases(file(case(candidates=candidates, expected=["C1 = C1"])))


def test_cases_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read cases .*none\.json: No such file"):
        read_cases(tmp_path / "none.json")


@pytest.fixture
def command(tmp_path, file):
    """Runs the command on two cases."""
    pytest.importorskip("matplotlib")

    def run(*arguments):
        cases = str(file(case(), WORDING))
        options = ["--set", "rouge_l,findings_f1", "--out", str(tmp_path / "out"), *arguments]
        return CliRunner().invoke(main, ["audit", *(o.replace("CASES", cases) for o in options)])

    return run


def test_the_command_audits_cases_without_reports(command, tmp_path):
    result = command("--cases", "CASES")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert (content["reports"], content["rows"], len(content["cases"])) == (0, [], 2)
    assert content["summary"]["findings_f1"]["cases_passed"] == 2
    assert content["cases"][1]["rankings"]["rouge_l"]["passed"] is False
    page = (tmp_path / "out/audit.html").read_text()
    assert "2 ranking cases of cases.json" in page
    assert "2a: C1 = C2" in page
    assert "Must lower" not in page
    assert (tmp_path / "out/audit.png").exists()


def test_the_command_audits_reports_and_cases_together(command, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "a", "report": "Edema. No effusion."}\n')
    result = command("--cases", "CASES", "--data", str(data))
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out/audit.html").read_text()
    assert "1 report and 2 ranking cases of data.jsonl and cases.json" in page
    assert "Must lower" in page
    for name in ("discrimination", "robustness", "cases passed"):
        assert name in result.output
        assert name.capitalize() in page


def test_the_command_wants_reports_or_cases(command):
    result = command()
    assert result.exit_code == 2
    assert "name reports with --data, ranking cases with --cases" in result.stderr


@pytest.mark.skipif(not RADJUDGE.exists(), reason="needs RadJudge's cases")
def test_radjudge_is_read_and_scored_as_it_is_published():
    result = audited(RADJUDGE, bleu={}, findings_f1={})
    assert result.summary["cases passed"][0].endswith(" of 15")
    assert all(r.rankings[TOTAL].passed is not None for r in result.cases)
