"""The edits on concrete reports, what rewards must notice of them, and the command end to end."""

import json
import sys
import time
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reward_sdk.audit.audit import TOTAL, Audit, Cell, EditResult, audit, read_samples
from reward_sdk.audit.edits import EDITS, NOUNS, findings
from reward_sdk.audit.paraphrases import reworded
from reward_sdk.cli import main
from reward_sdk.config import Entry
from reward_sdk.errors import ConfigError
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.registry import reward
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import sentences, wrap_report
from reward_sdk.types import ImageRef, Outcome, Sample

REPORTS = {
    "effusion": "Heart size is normal. There is a small left pleural effusion. No pneumothorax.",
    "heart": "The heart is mildly enlarged. The lungs are clear. No pleural effusion.",
    "normal": "The heart is normal in size. The lungs are clear. No acute disease.",
    "nodule": "Possible 9 mm nodule in the right upper lobe is stable. No pleural effusion.",
    "tube": "Endotracheal tube in good position. Severe pulmonary edema. Heart size is normal.",
}
SAMPLES = [
    Sample(wrap_report(text), text, ImageRef(f"{name}.png"), name) for name, text in REPORTS.items()
]
BY_ID = {sample.id: sample for sample in SAMPLES}
TEXT_SET = {"rouge_l": {}, "bleu": {}, "findings_f1": {}, "format": {}}


def edited(name, study, seed=0):
    """The edited report; None where the edit does not apply."""
    new = EDITS[name](BY_ID[study], SAMPLES, seed)
    return new and new.report


def changed(name, report, reference=None):
    """The same for a report of its own."""
    new = EDITS[name](Sample(wrap_report(report), reference or report), SAMPLES)
    return new and new.report


def labels(text):
    return label_reports([text])[0]


def test_a_flipped_negation_turns_one_statement():
    assert edited("negation flipped", "heart") in (
        "The heart is not mildly enlarged. The lungs are clear. No pleural effusion.",
        "The heart is mildly enlarged. The lungs are clear. Pleural effusion.",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("No effusion.", "Effusion."),
        ("There is no evidence of effusion.", "There is effusion."),
        ("Effusion is not seen.", "Effusion is seen."),
        ("Lungs free of consolidation.", None),
        ("The lungs are free of consolidation.", "The lungs show consolidation."),
        ("Negative for fracture.", "Positive for fracture."),
        ("There is a rib fracture.", "There is no rib fracture."),
        ("Stable cardiomegaly.", "No stable cardiomegaly."),
        ("Thoracic spondylosis.", None),
    ],
)
def test_sentences_of_many_kinds_are_negated_and_asserted(before, after):
    assert changed("negation flipped", before) == after


def test_a_statement_that_another_sentence_repeats_is_not_flipped():
    assert changed("negation flipped", "There is edema. Again, edema is seen.") is None


def test_a_wrong_statement_of_a_response_is_not_flipped_into_a_right_one():
    assert changed("negation flipped", "There is edema.", reference="No edema.") is None


def test_flipped_laterality_changes_left_and_right_at_once_and_keeps_capitals():
    new = changed("laterality flipped", "Left effusion, right nodule. Right-sided port.")
    assert new == "Right effusion, left nodule. Left-sided port."


def test_laterality_needs_a_side():
    assert edited("laterality flipped", "heart") is None


def test_severity_changes_in_sentences_that_assert_a_finding_only():
    new = changed("severity changed", "Mild edema. No large effusion. Mild scoliosis.")
    assert new == "Severe edema. No large effusion. Mild scoliosis."
    assert edited("severity changed", "normal") is None


@pytest.mark.parametrize("name", EDITS)
def test_a_full_stop_alone_is_no_edit(name):
    new = changed(name, "Edema")
    assert new is None or new.rstrip(".") != "Edema"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("location changed", "Right upper lobe mass.", "Right lower lobe mass."),
        ("location changed", "Bibasilar atelectasis.", "Biapical atelectasis."),
        ("location changed", "Opacity at the left base.", "Opacity at the left apex."),
        ("location changed", "No upper lobe mass. Upper lobe bullae.", None),
        (
            "measurement changed",
            "A 1.5 cm nodule. Clips of 2 mm.",
            "A 4.5 cm nodule. Clips of 2 mm.",
        ),
        ("measurement changed", "Mass of 2 x 3-cm.", "Mass of 6 x 9-cm."),
        ("measurement changed", "No nodule above 5 mm.", None),
        ("measurement changed", "Nodule at T1-2. Mass on image 3.", None),
        ("certainty changed", "Possible pneumonia.", "Definite pneumonia."),
        ("certainty changed", "Effusion cannot be excluded.", "Effusion can be seen."),
        (
            "certainty changed",
            "Opacity suspicious for pneumonia.",
            "Opacity diagnostic of pneumonia.",
        ),
        ("certainty changed", "Questionable nodular density.", None),
        ("certainty changed", "Edema. Possible scoliosis.", None),
        (
            "course changed",
            "Improved edema, stable effusion.",
            "Worsened edema, worsened effusion.",
        ),
        ("course changed", "Edema has increased.", "Edema has decreased."),
        ("course changed", "Stable scoliosis.", None),
        (
            "comparison invented",
            "Edema. Clear bones.",
            "Edema, new since the prior study. Clear bones.",
        ),
        ("comparison invented", "Unchanged edema.", None),
        ("comparison invented", "The lungs are clear.", None),
    ],
)
def test_an_error_that_radiologists_count_stands_in_what_is_asserted(name, before, after):
    assert changed(name, before) == after


def test_no_comparison_is_invented_where_the_reference_has_one():
    assert changed("comparison invented", "Edema.", reference="Edema as on the prior film.") is None


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("abbreviations", "Pneumothorax in the right upper lobe.", "PTX in the RUL."),
        ("abbreviations", "Clear lungs without edema.", "Clear lungs w/o edema."),
        ("abbreviations", "Edema.", None),
        ("units converted", "A 1.5 cm nodule, a 4 mm one.", "A 15 mm nodule, a 0.4 cm one."),
        (
            "units converted",
            "Mass of 2.0 x 13 mm, 3-4 cm long.",
            "Mass of 0.2 x 1.3 cm, 30-40 mm long.",
        ),
        ("units converted", "Tip at T4-5. Seen since 2014 to 3 days ago.", None),
        ("capital letters", "Mild edema.", "MILD EDEMA."),
        ("capital letters", "MILD EDEMA.", None),
        ("section heading", "Edema.", "FINDINGS: Edema."),
        ("section heading", "Findings: Edema.", None),
        ("numbered list", "No edema. Nodule of 1.5 cm", "1) No edema\n2) Nodule of 1.5 cm"),
        ("numbered list", "Edema.", None),
        ("numbered list", "1. Edema. 2. Effusion.", None),
        ("numbered list", "- Edema.\n\n- Effusion.", None),
    ],
)
def test_what_must_not_matter_changes_the_form_alone(name, before, after):
    assert changed(name, before) == after


@pytest.mark.parametrize("study", REPORTS)
@pytest.mark.parametrize(
    "name", ["sentences shuffled", "units converted", "capital letters", "numbered list"]
)
def test_another_form_leaves_the_labels(name, study):
    new = edited(name, study)
    assert new is None or labels(new) == labels(REPORTS[study])


def test_a_dropped_finding_is_gone_and_the_rest_stays():
    assert edited("finding dropped", "effusion") == "Heart size is normal. No pneumothorax."
    assert edited("finding dropped", "normal") is None


def test_a_finding_said_twice_is_dropped_twice():
    new = changed("finding dropped", "There is edema. Heart size is normal. Edema.")
    assert new == "Heart size is normal."


@pytest.mark.parametrize("study", REPORTS)
def test_an_added_finding_is_one_that_the_reference_does_not_assert(study):
    new = edited("unsupported finding added", study)
    assert new.startswith(REPORTS[study])
    assert len(findings(new) - findings(REPORTS[study])) == 1


@pytest.mark.parametrize(("finding", "noun"), NOUNS.items())
def test_every_noun_is_read_as_its_finding_alone(finding, noun):
    assert findings(f"{noun} is present.") == {finding}
    assert findings(noun) == {finding}
    stated = labels(f"No {noun}.")
    assert {k: v for k, v in stated.items() if v is not None} == {finding: 0, "No Finding": 1}


def test_listing_asserts_all_thirteen_and_negating_denies_them():
    assert findings(edited("every finding listed", "heart")) == NOUNS.keys()
    denied = labels(edited("every finding negated", "heart"))
    assert all(denied[name] == 0 for name in NOUNS)


@pytest.mark.parametrize("name", ["every finding negated", "generic normal report"])
def test_to_call_a_normal_film_normal_is_no_edit(name):
    assert edited(name, "normal") is None
    assert findings(edited(name, "heart")) == set()


@pytest.mark.parametrize("study", REPORTS)
def test_another_patient_has_other_findings(study):
    assert findings(edited("report of another patient", study)) != findings(REPORTS[study])
    sample = EDITS["wrong image"](BY_ID[study], SAMPLES)
    other = sample.image.path.removesuffix(".png")
    assert findings(REPORTS[other]) != findings(REPORTS[study])
    assert sample.report == REPORTS[study]


def test_there_is_no_other_patient_among_equals():
    twins = [Sample(wrap_report("No edema."), "No edema.", None, name) for name in "ab"]
    assert EDITS["report of another patient"](twins[0], twins) is None


def test_the_wrong_image_needs_images():
    assert changed("wrong image", "Edema.") is None


def test_first_sentence_repetition_keywords_and_emptiness():
    assert edited("first sentence only", "heart") == "The heart is mildly enlarged."
    assert edited("report repeated", "heart") == " ".join([REPORTS["heart"]] * 3)
    assert edited("keywords only", "tube") == "pulmonary edema, central venous catheter"
    assert edited("keywords only", "normal") is None
    empty = EDITS["empty"](BY_ID["heart"], SAMPLES)
    assert empty.response.split() == ["<report>", "</report>"]


@pytest.mark.parametrize("study", REPORTS)
def test_shuffling_keeps_the_sentences_and_changes_their_order(study):
    new = sentences(edited("sentences shuffled", study))
    assert sorted(new) == sorted(sentences(REPORTS[study]))
    assert new != sentences(REPORTS[study])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("No pleural effusion.", "Pleural effusion is absent."),
        ("There are no pleural effusions.", "Pleural effusions are absent."),
        ("No effusion or pneumothorax is seen.", "Effusion and pneumothorax are absent."),
        ("The heart is mildly enlarged.", "Mild cardiomegaly."),
        ("Moderate cardiomegaly.", "The heart is moderately enlarged."),
        ("Heart size normal.", "The heart is not enlarged."),
        ("The lungs are clear.", "There is no pulmonary opacity or consolidation."),
        ("Cardiomediastinal silhouette is unremarkable.", "Normal cardiomediastinal silhouette."),
        ("There is a small left effusion.", "A small left effusion is seen."),
        ("There are nodules in the left lung.", "Nodules in the left lung are seen."),
        ("No definite pneumothorax.", "No definite pneumothorax."),
        ("No acute disease.", "Nothing acute is seen in the chest."),
        ("Thoracic spondylosis.", "Thoracic spondylosis."),
    ],
)
def test_a_paraphrase_says_the_same_in_other_words(before, after):
    assert reworded(before) == after
    assert labels(after) == labels(before)


@given(st.text(), st.text(), st.integers(0, 9))
def test_any_text_is_edited_or_left_alone_but_never_returned_unchanged(report, reference, seed):
    sample = Sample(wrap_report(report), reference, ImageRef("x.png"), report)
    if sample.report is None:
        return
    for name, edit in EDITS.items():
        new = edit(sample, [*SAMPLES, sample], seed)
        assert new is None or (new.response, new.image) != (sample.response, sample.image), name
        if new and name != "empty":
            assert new.report, name


@given(st.text())
def test_a_paraphrase_of_any_text_keeps_its_labels(text):
    assert label_reports([reworded(text)]) == label_reports([text])


@pytest.mark.parametrize("text", ["There is " + "a" * 5000, "no " + "effusion " * 5000])
def test_a_response_caught_in_a_loop_is_reworded_in_time(text):
    begin = time.process_time()
    reworded(text)
    assert time.process_time() - begin < 2


def test_the_order_of_the_file_does_not_matter():
    rewards = RewardSet.from_config(TEXT_SET)
    shuffled = Random(1).sample(SAMPLES, len(SAMPLES))
    a, b = audit(rewards, SAMPLES), audit(rewards, shuffled)
    for one, other in zip(a.rows, b.rows, strict=True):
        assert one.applied == other.applied
        for column in a.columns:
            assert one.cells[column].mean_gap == pytest.approx(other.cells[column].mean_gap)


def test_equal_seeds_give_equal_audits_and_another_seed_another_one():
    rewards = RewardSet.from_config(TEXT_SET)
    assert audit(rewards, SAMPLES).rows == audit(rewards, SAMPLES).rows
    assert audit(rewards, SAMPLES).rows != audit(rewards, SAMPLES, seed=1).rows


@pytest.mark.parametrize(
    ("column", "edit"),
    [
        ("findings_f1", "negation flipped"),
        ("findings_f1", "finding dropped"),
        ("findings_f1", "unsupported finding added"),
        ("findings_f1", "every finding listed"),
        ("findings_f1", "every finding negated"),
        ("findings_f1", "generic normal report"),
        ("findings_f1", "report of another patient"),
        ("findings_f1", "sentences shuffled"),
        ("findings_f1", "paraphrase"),
        ("rouge_l", "report of another patient"),
        ("rouge_l", "report repeated"),
        ("rouge_l", "laterality flipped"),
        ("bleu", "keywords only"),
        ("format", "empty"),
        *(
            (TOTAL, e.name)
            for e in EDITS.values()
            if e.kind == "must lower" and e.name != "wrong image"
        ),
    ],
)
def test_what_must_be_noticed_is_always_noticed(column, edit):
    result = audit(RewardSet.from_config(TEXT_SET), SAMPLES)
    (row,) = (row for row in result.rows if row.edit == edit)
    assert row.cells[column].n > 0
    assert row.good(column) == 1


def test_rewards_of_the_text_do_not_notice_a_wrong_image():
    result = audit(RewardSet.from_config(TEXT_SET), SAMPLES)
    (row,) = (row for row in result.rows if row.edit == "wrong image")
    assert (row.applied, row.good(TOTAL)) == (5, 0)


def test_the_shares_and_the_gap_are_those_of_the_pairs():
    result = audit(RewardSet.from_config({"format": {"weight": 0.5}}), SAMPLES)
    (row,) = (row for row in result.rows if row.edit == "empty")
    cell = row.cells[TOTAL]
    assert (cell.n, cell.share_below, cell.share_equal, cell.share_above) == (5, 1, 0, 0)
    assert cell.mean_gap == -0.5


@pytest.mark.parametrize(
    ("edit", "column", "below", "equal", "above", "verdict"),
    [
        ("empty", TOTAL, 1, 0, 0, 1),
        ("empty", TOTAL, 0, 1, 0, -1),
        ("empty", "bleu", 0, 1, 0, 0),
        ("empty", "bleu", 0, 0, 1, -1),
        ("paraphrase", TOTAL, 0, 1, 0, 1),
        ("paraphrase", "bleu", 0, 1, 0, 1),
        ("paraphrase", "bleu", 1, 0, 0, -1),
        ("paraphrase", "bleu", 0, 0, 1, -1),
    ],
)
def test_right_is_to_notice_what_must_lower_and_not_to_notice_what_must_not_matter(
    edit, column, below, equal, above, verdict
):
    cell = Cell(1, below, equal, above, 0.0, 0, 0, "")
    assert EditResult(edit, 1, {column: cell}).verdict(column) == verdict


def test_without_pairs_there_is_no_verdict():
    cell = Cell(0, None, None, None, None, 0, 1, "no image")
    assert EditResult("empty", 1, {TOTAL: cell}).verdict(TOTAL) is None


def result_of(edit, n, good):
    """The result of an edit whose score did what it should in this share of n pairs."""
    fell = EDITS[edit].kind == "must lower"
    below, equal = (good, 1 - good) if fell else (1 - good, good)
    cell = Cell(n, below, equal, 0.0, -0.1, 0, 0, "") if n else Cell(0, *[None] * 4, 0, 1, "none")
    return EditResult(edit, n, {TOTAL: cell})


def summed_up(*rows):
    return Audit(100, 0, (TOTAL,), rows, ())


def test_discrimination_and_robustness_are_means_over_the_edits_of_their_kind():
    result = summed_up(
        result_of("empty", 100, 1.0),
        result_of("laterality flipped", 2, 0.5),
        result_of("wrong image", 0, 0.0),
        result_of("paraphrase", 80, 0.25),
        result_of("sentences shuffled", 8, 0.75),
    )
    assert result.discrimination(TOTAL) == 0.75
    assert result.robustness(TOTAL) == 0.5
    assert result.summary == {"discrimination": ["0.75"], "robustness": ["0.50"]}
    assert result.to_dict()["summary"][TOTAL]["robustness"] == 0.5


def test_without_pairs_nothing_is_summed_up():
    result = summed_up(result_of("wrong image", 0, 0.0))
    assert result.discrimination(TOTAL) is None
    assert result.robustness(TOTAL) is None
    assert result.summary == {"discrimination": ["-"], "robustness": ["-"]}


def test_a_reward_of_the_findings_is_robust_and_one_of_the_wording_is_not():
    result = audit(RewardSet.from_config(TEXT_SET), SAMPLES)
    assert result.robustness("findings_f1") > 0.9 > 0.4 > result.robustness("bleu")
    assert result.discrimination("bleu") > result.discrimination("findings_f1")


def test_the_total_is_the_first_column():
    assert audit(RewardSet.from_config(TEXT_SET), SAMPLES).columns == (TOTAL, *TEXT_SET)


class Unsure:
    """Fails on long reports."""

    name = "unsure"
    bounds = (0.0, 1.0)
    needs = frozenset({"report"})

    def __call__(self, samples):
        if any(len(sample.report) > 150 for sample in samples):
            raise ValueError("too long")
        return [Outcome(1.0) for _ in samples]


@reward("unsure")
def unsure() -> Unsure:
    return Unsure()


@pytest.mark.parametrize("on_failure", ["skip", 0.0])
def test_what_could_not_be_scored_is_counted_apart_and_never_a_zero(on_failure):
    rewards = RewardSet.from_config({"unsure": {"on_failure": on_failure}})
    result = audit(rewards, SAMPLES)
    (row,) = (row for row in result.rows if row.edit == "report repeated")
    cell = row.cells["unsure"]
    assert (row.applied, cell.n, cell.unscored, cell.mean_gap) == (5, 0, 5, None)
    assert "unsure: 5 unscored" in result.table()
    assert "cause of unscored pairs: failed: unsure: ValueError: too long" in result.table()
    assert row.cells[TOTAL].unscored == 5


def test_pairs_to_which_a_reward_does_not_apply_say_so():
    bare = [Sample(wrap_report(text), text, id=name) for name, text in REPORTS.items()]
    looks = Unsure()
    looks.needs = frozenset({"image"})
    result = audit(RewardSet([(looks, Entry())]), bare)
    assert "unsure: the first cause of unscored pairs: not applicable: no image" in result.table()
    assert "total: the first cause of unscored pairs: not applicable: no reward" in result.table()


def test_a_total_without_a_failed_part_is_not_compared():
    rewards = RewardSet.from_config({"unsure": {}, "format": {}})
    (row,) = (row for row in audit(rewards, SAMPLES).rows if row.edit == "report repeated")
    assert (row.cells["format"].n, row.cells[TOTAL].n, row.cells[TOTAL].unscored) == (5, 0, 5)


def test_a_report_at_the_lower_bound_cannot_fall_and_is_counted_apart():
    wrong = Sample(wrap_report("There is edema."), "There is a rib fracture.", None, "wrong")
    result = audit(RewardSet.from_config({"findings_f1": {}}), [wrong])
    (row,) = (row for row in result.rows if row.edit == "empty")
    assert (row.cells["findings_f1"].n, row.cells["findings_f1"].at_bound) == (0, 1)
    assert "1 at the lower bound" in result.table()


@pytest.mark.parametrize("schedule", [{"every": 3, "offset": 1}, {"every": 2, "mode": "replace"}])
def test_a_schedule_keeps_no_reward_from_being_audited(schedule):
    rewards = RewardSet.from_config({"rouge_l": {"every": 2}, "findings_f1": schedule, "bleu": {}})
    result = audit(rewards, SAMPLES)
    assert all(cell.unscored == 0 for row in result.rows for cell in row.cells.values())


def test_an_audit_of_nothing_or_without_references_is_a_configuration_error():
    rewards = RewardSet.from_config(TEXT_SET)
    with pytest.raises(ConfigError, match="at least one report"):
        audit(rewards, [])
    with pytest.raises(ConfigError, match="'x'"):
        audit(rewards, [Sample(wrap_report("Edema."), id="x")])


def written(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_rows_become_samples_with_the_reference_as_the_response_where_there_is_none(tmp_path):
    path = written(
        tmp_path / "data.jsonl",
        {"id": "a", "reference": "No edema."},
        {"id": "b", "report": "Edema.", "image": "b.png"},
        {"id": "c", "reference": "Edema.", "response": "No edema."},
        {"id": "d", "reference": "Edema.", "response": "<report>Clear.</report>"},
    )
    samples, problems = read_samples(path)
    assert problems == []
    assert [sample.report for sample in samples] == ["No edema.", "Edema.", "No edema.", "Clear."]
    assert [sample.reference for sample in samples] == ["No edema.", "Edema.", "Edema.", "Edema."]
    assert samples[1].image == ImageRef(str(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "no JSON"),
        ("[]", "a row is a JSON object"),
        ({"reference": "Edema."}, "no 'id'"),
        ({"id": "x", "report": None}, "no 'reference'"),
        ({"id": "x", "reference": " "}, "no 'reference'"),
        ({"id": "x", "reference": "Edema.", "image": 3}, "'image' must be a text"),
        ({"id": "x", "reference": "A.", "response": "<report>A."}, "tags"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_the_others_are_used(tmp_path, row, message):
    path = written(tmp_path / "data.jsonl", {"id": "a", "reference": "No edema."}, "", row)
    samples, (problem,) = read_samples(path)
    assert len(samples) == 1
    assert "line 3: " in problem
    assert message in problem


def test_a_file_without_a_usable_row_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no report to audit\. .*line 1: no JSON"):
        read_samples(written(tmp_path / "data.jsonl", "{"))
    with pytest.raises(ConfigError, match="is empty"):
        read_samples(written(tmp_path / "data.jsonl", ""))
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        read_samples(tmp_path / "none.jsonl")


@pytest.fixture
def command(tmp_path):
    """Runs the command on five reports and a bad row."""
    pytest.importorskip("matplotlib")
    rows = [{"id": name, "report": text} for name, text in REPORTS.items()]
    data = written(tmp_path / "data.jsonl", *rows, "{")
    rewards = written(tmp_path / "set.yaml", {"rewards": TEXT_SET})

    def run(*arguments):
        out = str(tmp_path / "out")
        options = ["--set", str(rewards), "--data", str(data), "--out", out, *arguments]
        return CliRunner().invoke(main, ["audit", *options])

    return run


def test_the_command_writes_numbers_a_picture_and_a_page(command, tmp_path):
    result = command()
    assert result.exit_code == 0, result.output
    assert "line 6: no JSON" in result.stderr
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert content["reports"] == 5
    assert len(content["left_out"]) == 1
    with Image.open(tmp_path / "out/audit.png") as image:
        image.load()
        assert image.width > 800
    page = (tmp_path / "out/audit.html").read_text()
    for name in EDITS:
        assert name in result.output
        assert name.capitalize() in page
    for name in (*TEXT_SET, TOTAL):
        assert name in result.output
        assert name in page
    assert "line 6" in page
    assert "http" not in page  # nothing from outside


def test_the_limit_takes_the_first_rows(command, tmp_path):
    assert command("--limit", "2").exit_code == 0
    assert json.loads((tmp_path / "out/audit.json").read_text())["reports"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "none.yaml"], "cannot read reward set none.yaml"),
        (["--data", "none.jsonl"], "cannot read data none.jsonl"),
    ],
)
def test_what_the_user_must_mend_is_one_line_and_exit_code_2(command, arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_without_matplotlib_the_numbers_are_there_and_the_extra_is_named(
    command, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = command()
    assert result.exit_code == 2
    assert "valor-rrg[report]" in result.stderr
    assert (tmp_path / "out/audit.json").exists()
