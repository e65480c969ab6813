"""`reward-sdk labels`: its tables, the gold that it reads, and what it says of bad ones."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.iu_reports import GOLD, iu_sections
from support.tiny_bert import write_chexbert, write_tokenizer

from reward_sdk.cli import main
from reward_sdk.commands.labels import label_studies, read_gold
from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import study_key
from reward_sdk.models.rule_labeler import label_reports
from reward_sdk.observations import OBSERVATIONS

MIMIC = [  # the columns of mimic-cxr-2.1.0-test-set-labeled.csv
    "study_id", "Airspace Opacity", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema",
    "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Pleural Effusion", "Pleural Other",
    "Pneumonia", "Pneumothorax", "Support Devices",
]  # fmt: skip
REPORTS = {
    "s50000001": "Cardiomegaly. No pneumothorax. Left effusion.",
    "s50000002": "Possible edema. Opacity at the base. No effusion.",
    "s50000003": "No edema. Cardiomegaly. No pneumothorax.",
    "s50000004": "Atelectasis. Pacemaker.",
    "s50000005": None,
    "s50000006": "No pneumothorax.",
}
LABELS = [  # of 1 to 5, and of one that the data lack
    {"Cardiomegaly": "1.0", "Pneumothorax": "0.0", "Pleural Effusion": "1.0"},
    {"Edema": "1.0", "Airspace Opacity": "1.0", "Pleural Effusion": "0.0"},
    {"Edema": "-1.0", "Cardiomegaly": "0.0", "Pneumothorax": "1.0"},
    {"Support Devices": "1"},
    {"Edema": "1"},
    {"Edema": "0"},
]


@pytest.fixture
def data(tmp_path):
    """A studies file in MIMIC's ids."""
    lines = [json.dumps({"id": study, "report": report}) for study, report in REPORTS.items()]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "test.jsonl"


@pytest.fixture
def gold(tmp_path):
    """Radiologists' labels in the layout of MIMIC-CXR-JPG 2.1."""
    rows = [{"study_id": f"5000000{i}", **given} for i, given in enumerate(LABELS[:5], 1)]
    return write(tmp_path / "gold.csv", MIMIC, [*rows, {"study_id": "59999999", **LABELS[5]}])


def write(path, columns, rows):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


def run(*words, code=0):
    ran = CliRunner().invoke(main, ["labels", *map(str, words)])
    assert ran.exit_code == code, ran.output
    return ran.output


def rows_of(output):
    """Name of a row -> its cells, the interval as two."""
    lines = (line.replace("[", "").replace("]", "").replace(",", "") for line in output.split("\n"))
    return {line[:26].strip(): line[26:].split() for line in lines if len(line) > 26}


def test_the_table_has_the_golds_counts_and_agreement_of_every_observation(data, gold):
    rows = rows_of(run("--data", data, "--gold", gold, "--uncertain", "negative"))
    assert rows["Cardiomegaly"][:6] == ["1", "1", "0", "0.500", "1.000", "0.667"]
    assert rows["Cardiomegaly"][6:] == ["0.000", "1.000", "0.000"]
    assert rows["Pneumothorax"][:6] == ["1", "1", "0", "-", "0.000", "0.000"]
    assert rows["Pneumothorax"][-1] == "0.667"  # two were found, one of them is gold's
    assert rows["Fracture"] == ["0", "0", "0", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("rule", "whose", "edema"),
    [("positive", "f1chexbert", "1.000 0.500 0.667"), ("negative", "LLaVA-Rad", "- 0.000 0.000")],
)
def test_the_rule_of_uncertainty_is_said_and_holds_on_both_sides(data, gold, rule, whose, edema):
    output = run("--data", data, "--gold", gold, "--uncertain", rule)
    assert f"uncertain counts as {rule} on both sides ({whose}" in output
    assert rows_of(output)["Edema"][3:6] == edema.split()


def test_no_finding_follows_from_the_others_where_the_gold_lacks_it(data, gold):
    read = read_gold(gold)
    assert [given["No Finding"] for given in read.labels.values()] == [
        None, None, None, 1, None, 1
    ]  # fmt: skip
    assert "there is no column No Finding" in run("--data", data, "--gold", gold)


def test_airspace_opacity_is_lung_opacity(gold):
    assert read_gold(gold).labels["50000002"]["Lung Opacity"] == 1


def test_studies_that_one_side_lacks_are_counted(data, gold):
    output = run("--data", data, "--gold", gold)
    assert (
        f"4 of 6 studies compared; not in {data}: 1; without a report there: 1; in {data} alone: 1"
    ) in output


def test_the_tables_of_mimic_cxr_jpg_are_read_gzipped(tmp_path):
    columns = ["subject_id", "study_id", *sorted(OBSERVATIONS)]
    row = {"subject_id": "10000032", "study_id": "50414267", "No Finding": "1.0", "Edema": "-1.0"}
    read = read_gold(write(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", columns, [row]))
    stated = {k: v for k, v in read.labels["50414267"].items() if v is not None}
    assert stated == {"No Finding": 1, "Edema": -1}
    assert read.notes == ()


def test_opens_gold_has_lesions_in_two_columns_and_zeros_that_deny_nothing(tmp_path):
    columns = ["filename", "Effusion", "Mass", "Nodule", "Pleural_Thickening", "Hernia", "normal"]
    rows = [["CXR1", 0, 0, 1, 0, 0, 0], ["CXR2", 1, 0, 0, 1, 0, 0]]
    rows = [dict(zip(columns, row, strict=True)) for row in rows]
    read = read_gold(write(tmp_path / "gold.csv", columns, rows))
    assert read.labels == {
        "CXR1": {"Lung Lesion": 1, "Pleural Effusion": None, "Pleural Other": None},
        "CXR2": {"Lung Lesion": None, "Pleural Effusion": 1, "Pleural Other": 1},
    }
    assert read.notes == (
        "left out, for CheXpert's 14 do not have them: Hernia, normal",
        "no cell is empty: 0 may mean not mentioned, so negatives are not compared",
    )


@pytest.mark.skipif(not GOLD.exists(), reason="shared data absent")
def test_the_command_gives_the_numbers_of_the_docs_on_iu_xray(tmp_path):
    if not iu_sections():
        pytest.skip("the IU-XRay reports come with torchxrayvision")
    lines = [
        json.dumps({"id": uid, "report": "\n\n".join(sections) if any(sections) else None})
        for uid, sections in iu_sections().items()
    ]
    (tmp_path / "iu.jsonl").write_text("\n".join(lines), encoding="utf-8")
    output = run("--data", tmp_path / "iu.jsonl", "--gold", GOLD, "--uncertain", "negative")
    docs = (Path(__file__).parents[2] / "docs/findings.md").read_text(encoding="utf-8")
    assert "3,059 of 3,080 studies compared" in output
    for name, row in rows_of(output[output.index("F1") :]).items():
        if name in OBSERVATIONS:
            cells = docs[docs.index(f"| {name} |") :].split("|")[2:6]
            numbers = [float(row[0]), *map(float, row[3:6])]
            assert list(map(float, cells)) == pytest.approx(numbers, abs=0.0051), name
    assert rows_of(output)["micro-9"][5] == "0.924"


def test_the_labels_that_are_written_are_a_gold_that_the_labeler_agrees_with(data, tmp_path):
    run("--data", data, "--out", tmp_path / "labels.csv")
    rows = rows_of(run("--data", data, "--gold", tmp_path / "labels.csv"))
    assert rows["micro-14"][3:6] == ["1.000"] * 3


def test_labels_are_written_with_the_ids_of_the_data(data, tmp_path):
    run("--data", data, "--out", tmp_path / "labels.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [study for study, text in REPORTS.items() if text]
    assert [row["labels"] for row in rows] == label_reports([t for t in REPORTS.values() if t])


def test_without_gold_it_says_how_often_each_label_was_given(data):
    output = run("--data", data)
    assert "5 of 6 studies have a report; labeler: rules" in output
    assert rows_of(output)["Cardiomegaly"] == ["2", "40.0%", "0", "0", "3"]


@pytest.mark.parametrize("name", ["labels.txt", "there.csv", "nowhere/labels.csv"])
def test_a_place_that_labels_cannot_go_to_is_refused_before_the_work(data, tmp_path, name):
    (tmp_path / "there.csv").write_text("mine")
    assert "error:" in run("--data", data, "--out", tmp_path / name, code=2)
    assert (tmp_path / "there.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study_id,Edema\n1,1\n2,yes\n", "line 3, column 'Edema': not 1, 0, -1 or empty"),
        ("study_id,Edema\n1,1\ns1,0\n", "line 3: the same study as in line 2"),
        ("study_id,Edema\n1,1,0\n", "line 2: 3 cells, where 2 have a name"),
        ("study_id,Edema\n,1\n", "line 2: no study_id"),
        ("study_id,Edema\n", "has no study"),
        ("study,Edema\n1,1\n", "has no column study_id"),
        ("study_id,report\n1,1\n", "has no column of an observation"),
        ("", "has no column study_id"),
    ],
)
def test_a_gold_that_is_wrong_is_an_error_that_says_where(tmp_path, text, message):
    (tmp_path / "gold.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_gold(tmp_path / "gold.csv")
    assert "yes" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gold.csv", b"study_id,Edema\n1,\xff\n"),
        ("gold.csv.gz", b"study_id,Edema\n1,1\n"),
        ("gold.csv.gz", gzip.compress(b"study_id,Edema\n1,1\n")[:-12]),
    ],
)
def test_a_gold_that_is_no_text_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"gold\.csv.*: no CSV in UTF-8"):
        read_gold(tmp_path / name)


def test_an_unknown_column_is_named_with_the_nearest_observation(tmp_path, data):
    gold = tmp_path / "gold.csv"
    gold.write_text("study_id,Edema,Pleural Efusion\n50000001,,1\n")
    output = run("--data", data, "--gold", gold)
    assert "column 'Pleural Efusion' is left out" in output
    assert "did you mean 'Pleural Effusion'?" in output


def test_no_study_in_common_shows_the_form_of_ids_and_no_id(data, tmp_path):
    gold = tmp_path / "gold.csv"
    gold.write_text("study_id,Edema\nDoe-1234,1\n")
    message = run("--data", data, "--gold", gold, code=2)
    assert "ids there are of the form 3 letters + - + 4 digits, here s + 8 digits" in message
    assert not any(part in message for part in ("Doe", "1234", "5000"))


def test_a_study_that_the_data_have_twice_is_an_error(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": "s1", "report": "a"}\n{"id": 1, "report": "b"}\n')
    with pytest.raises(ConfigError, match="line 2: the same study as in line 1"):
        label_studies(tmp_path / "d.jsonl", label_reports)


def test_lines_that_are_no_rows_are_named_and_the_others_labelled(data):
    data.write_text(data.read_text() + "\n{broken\n")
    output = run("--data", data, code=1)
    assert "line 7: no JSON" in output
    assert "5 of 6 studies have a report" in output


@pytest.mark.parametrize("study", ["s50414267", "50414267", " S50414267", "50414267.0"])
def test_one_study_of_mimic_has_one_key(study):
    assert study_key(study) == "50414267"


def test_other_ids_stay_as_they_are():
    assert study_key("CXR1_1_IM-0001") == "CXR1_1_IM-0001"


def test_chexbert_without_weights_says_where_to_get_them(data, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    message = run("--data", data, "--labeler", "chexbert", code=2)
    assert "chexbert.pth in repository StanfordAIMI/RRG_scorers" in message


def test_chexbert_labels_where_its_weights_are(data, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    from reward_sdk.models.chexbert import load_chexbert

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    weights = write_chexbert(tmp_path / "chexbert/chexbert.pth")
    tokenizer = write_tokenizer(tmp_path / "bert-base-uncased")
    run("--data", data, "--labeler", "chexbert", "--out", "labels.jsonl")
    rows = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()]
    expected = load_chexbert(str(weights), str(tokenizer))([t for t in REPORTS.values() if t])
    assert [row["labels"] for row in rows] == expected
