"""`openrlhf prepare`: what all datasets share, on trees in the layout of MIMIC-CXR-JPG."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.datasets import film, write_csv, write_json, write_mimic

from reward_sdk.errors import ConfigError
from reward_sdk.observations import OBSERVATIONS
from valor_plugin.cli import main
from valor_plugin.data import prepare as core
from valor_plugin.data.drafts import Choices
from valor_plugin.data.prepare import prepare
from valor_plugin.data.schema import FEATURES, StudyRow
from valor_plugin.data.studies import read_studies

ROOT = Path(__file__).parents[2]
MAIN = "if __name__ == '__main__': from valor_plugin.cli import main; main()"
COMMAND = (sys.executable, "-c", MAIN, "prepare", "mimic-cxr")
REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  Cough.

 FINDINGS:

 The heart is mildly
 enlarged. No effusion since ___.

 IMPRESSION:

 Mild cardiomegaly.
"""


class Mimic:
    """MIMIC-CXR as it was downloaded, study by study."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._split, self._metadata, self._labels = [], [], []

    def study(self, number, views=("PA",), report=REPORT, split="train", patient=10_000_032,
              labels=None, described="CHEST (PA AND LAT)", coded=""):  # fmt: skip
        """Adds a study; `report` None: there is no file of it."""
        folder = f"files/p{patient // 10**6}/p{patient}"
        for i, view in enumerate(views):
            ids = {"dicom_id": f"{number}-{i}", "subject_id": patient, "study_id": number}
            self._split.append(ids | {"split": split})
            self._metadata.append(
                ids | {"ViewPosition": view, "ViewCodeSequence_CodeMeaning": coded,
                       "PerformedProcedureStepDescription": described}
            )  # fmt: skip
            image = self.root / "jpg" / folder / f"s{number}" / f"{number}-{i}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(film())
        if report is not None:
            text = self.root / "text" / folder / f"s{number}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(report)
        said = dict.fromkeys(sorted(OBSERVATIONS), "") | (labels or {})
        self._labels.append({"subject_id": patient, "study_id": number} | said)
        for table in ("split", "metadata", "labels"):
            rows = getattr(self, f"_{table}")
            name = "chexpert" if table == "labels" else table
            write_csv(self.root / f"jpg/mimic-cxr-2.0.0-{name}.csv.gz", rows)
        return self


@pytest.fixture
def mimic(tmp_path) -> Mimic:
    return Mimic(tmp_path / "mimic")


def rows(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def made(mimic: Mimic, force: bool = False, **choices) -> tuple[Path, dict]:
    out = mimic.root.parent / "out"
    return out, prepare("mimic-cxr", mimic.root, out, Choices(**choices), 1, force)[0]


def only(mimic: Mimic, **choices) -> dict:
    """The row of a single study, of the training split."""
    out, _ = made(mimic, **choices)
    [row] = rows(out, "train")
    return row


def test_a_study_of_mimic_has_all_that_its_tables_and_its_report_say(mimic):
    labels = {"Cardiomegaly": "1.0", "Edema": "-1.0", "Pneumothorax": "0.0"}
    row = only(mimic.study(50_414_267, ("LATERAL", "PA"), labels=labels))
    folder = mimic.root / "jpg/files/p10/p10000032/s50414267"
    images = [
        {"path": str(folder / "50414267-1.jpg"), "view": "PA"},
        {"path": str(folder / "50414267-0.jpg"), "view": "LATERAL"},
    ]
    said = {"Cardiomegaly": 1, "Edema": -1, "Pneumothorax": 0}
    assert row == {
        "id": "s50414267", "patient": "p10000032", "image": images[0]["path"], "view": "PA",
        "images": images, "report": row["findings"],
        "findings": "The heart is mildly enlarged. No effusion.",
        "impression": "Mild cardiomegaly.", "indication": "Cough.", "comparison": None,
        "age": None, "sex": None, "labels": dict.fromkeys(OBSERVATIONS) | said, "boxes": [],
        "split": "train", "repeats_train": None, "source": "mimic-cxr",
    }  # fmt: skip


def test_what_is_prepared_can_be_trained_on(mimic):
    out, _ = made(mimic.study(1, ("PA", "LATERAL")))
    [study] = read_studies(out / "train.jsonl")
    assert (study.view, len(study.others)) == ("PA", 1)
    assert study.report == "The heart is mildly enlarged. No effusion."
    assert study.indication == "Cough."


def test_every_column_is_declared_to_datasets_in_the_order_of_the_rows():
    assert [feature["name"] for feature in FEATURES] == list(StudyRow.model_fields)


def test_hugging_face_datasets_loads_the_folder_with_the_columns_of_the_schema(mimic, tmp_path):
    datasets = pytest.importorskip("datasets")
    out, _ = made(mimic.study(1).study(2, split="validate", patient=2 * 10**7))
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"].column_names == list(StudyRow.model_fields)
    assert loaded["train"][0] == rows(out, "train")[0]


def test_the_schema_in_the_docs_is_the_one_that_is_checked():
    documented = json.loads((ROOT / "docs/study.schema.json").read_text())
    assert documented == StudyRow.model_json_schema()


@pytest.mark.parametrize(
    ("report", "text"),
    [("impression", "{impression}"), ("both", "Findings: {findings} Impression: {impression}")],
)  # fmt: skip
def test_the_reference_is_the_section_that_was_chosen(mimic, report, text):
    row = only(mimic.study(1), report=report)
    assert row["report"] == text.format(**row)


def test_marks_of_de_identification_stay_if_they_shall(mimic):
    assert only(mimic.study(1), marks="keep")["report"].endswith("No effusion since ___.")


def test_the_54_studies_that_need_more_than_rules_are_there(mimic):
    text = REPORT.replace(" IMPRESSION:", " RECOMMENDATIONS:")
    assert only(mimic.study(50_913_680, report=text))["impression"] == "Mild cardiomegaly."


def test_one_of_the_54_with_the_report_of_another_study_is_rejected(mimic):
    _, card = made(mimic.study(50_913_680).study(2))
    assert card["rejected"] == {"its report is not the one that MIMIC-CXR has for it": 1}


@pytest.mark.parametrize("report", [None, "FINAL REPORT\n\n IMPRESSION:\n\n Clear.\n"])
def test_a_study_without_its_reference_is_kept_and_counted_by_reason(mimic, report):
    out, card = made(mimic.study(1, report=report).study(2))
    assert rows(out, "train")[0]["report"] is None
    reason = "no file of the report" if report is None else "no findings"
    assert card["splits"]["train"]["no_report"] == {reason: 1}


def test_an_empty_view_is_taken_from_the_code_and_then_from_a_description_of_a_single_one(mimic):
    mimic.study(1, ("",), coded="postero-anterior")
    mimic.study(2, ("",), described="CHEST (PORTABLE AP)")
    mimic.study(3, ("",))
    out, _ = made(mimic)
    assert [row["view"] for row in rows(out, "train")] == ["PA", "AP", None]


def test_of_several_images_the_frontal_one_stands_for_the_study_and_unknown_before_lateral(mimic):
    row = only(mimic.study(1, ("LL", "", "AP", "PA")))
    assert [image["view"] for image in row["images"]] == ["PA", "AP", None, "LL"]


def test_a_study_with_lateral_images_alone_is_kept_and_counted(mimic):
    out, card = made(mimic.study(1, ("LATERAL", "LATERAL")))
    assert rows(out, "train")[0]["view"] == "LATERAL"
    assert card["splits"]["train"]["first image of another view"] == 1


def test_an_image_that_is_not_there_is_counted_and_a_study_without_any_rejected(mimic):
    mimic.study(1, ("PA", "LATERAL")).study(2)
    folder = mimic.root / "jpg/files/p10/p10000032"
    (folder / "s1/1-0.jpg").unlink()
    (folder / "s2/2-0.jpg").unlink()
    out, card = made(mimic)
    assert [row["view"] for row in rows(out, "train")] == ["LATERAL"]
    assert card["splits"]["train"]["images that are not there"] == 1
    assert rows(out, "rejected") == [{"id": "s2", "reason": "no image is there", "detail": ""}]


def test_images_are_opened_only_if_asked(mimic):
    mimic.study(1).study(2)
    (mimic.root / "jpg/files/p10/p10000032/s2/2-0.jpg").write_bytes(b"no image")
    out, _ = made(mimic)
    assert len(rows(out, "train")) == 2
    out, card = made(mimic, check_images=True, force=True)
    assert card["rejected"] == {"an image cannot be read": 1}
    assert "2-0.jpg" in rows(out, "rejected")[0]["detail"]


def test_images_that_were_opened_are_not_opened_again_by_training(mimic, monkeypatch):
    monkeypatch.setattr("valor_plugin.data.studies._MANY", 17)
    for number in range(100, 117):
        mimic.study(number)
    out, _ = made(mimic, check_images=True)
    (mimic.root / "jpg/files/p10/p10000032/s116/116-0.jpg").write_bytes(b"no image")
    assert len(read_studies(out / "train.jsonl")) == 17


def r2gen(path: Path) -> None:
    write_json(path, {"train": [{"id": "a-b", "study_id": 1, "report": "r", "image_path": []}],
                      "val": [{"id": "c-d", "study_id": 2, "report": "r", "image_path": []}],
                      "test": []})  # fmt: skip


def rexrank(path: Path) -> None:
    write_json(path, {"s1": {"section_findings": "r", "split": "train"}, "s2": {"split": "valid"}})


def table(path: Path) -> None:
    write_csv(path, [{"study_id": "s1", "split": "train"}, {"study_id": "2", "split": "val"}])


@pytest.mark.parametrize("write", [r2gen, rexrank, table])
def test_splits_of_another_file_stand_in_the_place_of_the_datasets_own(mimic, tmp_path, write):
    name = "splits.csv" if write is table else "splits.json"
    write(tmp_path / name)
    mimic.study(1, split="test").study(2, patient=10_000_033).study(3, patient=10_000_034)
    out, card = made(mimic, splits=tmp_path / name)
    assert {split: [row["id"] for row in rows(out, split)] for split in card["splits"]} == {
        "train": ["s1"], "validate": ["s2"]
    }  # fmt: skip
    assert card["rejected"] == {"in no split of the file": 1}
    assert card["faults"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"s1": {"report": "r"}}', "neither R2Gen's annotation.json nor of ReXrank's"),
        ("a.json", '{"s1": {"split": "trian"}}', "the split is none of train, validate and test"),
        ("a.json", '{"train": [{"report": "r"}]}', "train, entry 1 has no 'id'"),
        ("a.json", '{"train": [', "is no JSON"),
        ("a.csv", "name,split\nx,train\n", "has no column study_id or id"),
        (
            "a.csv",
            "study_id,spilt\n1,train\n",
            "does not name its columns, of which it needs split",
        ),
        ("a.txt", "1 train\n", r"not \.txt"),
    ],
)
def test_a_file_of_splits_that_is_none_is_refused(mimic, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        made(mimic.study(1), splits=tmp_path / name)


def test_patients_in_two_splits_are_an_error_that_names_none_of_them(mimic):
    mimic.study(1).study(2, split="test").study(3, patient=10_000_033)
    with pytest.raises(ConfigError, match="1 patients are in more than one split") as caught:
        made(mimic)
    assert "10000032" not in str(caught.value)
    listed = (mimic.root.parent / "out/patients-in-two-splits.txt").read_text()
    assert listed.startswith("p10000032: ")


MS_CXR = "dicom_id,category_name,path\nx,Edema,files/p10/p10000032/s9/x.jpg\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [("ms-cxr.csv", MS_CXR), ("ids.csv", "subject_id\n10000032\n"), ("ids.txt", "p10000032\n\n")],
)
def test_patients_of_a_file_are_kept_out_of_training_alone(mimic, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    mimic.study(1).study(2, patient=10_000_033)
    mimic.study(3, split="test", patient=10_000_032 + 2)
    out, card = made(mimic, keep_out=tmp_path / name)
    assert [row["id"] for row in rows(out, "train")] == ["s2"]
    assert card["rejected"] == {"kept out of training": 1}
    assert card["faults"] == 0


def test_a_file_of_patients_that_meets_none_is_refused(mimic, tmp_path):
    (tmp_path / "ids.txt").write_text("p99999999\n")
    with pytest.raises(ConfigError, match=r"ids\.txt: no study of training .* these ids of this"):
        made(mimic.study(1), keep_out=tmp_path / "ids.txt")


@pytest.mark.parametrize("patient", ["P10000032", "10000032.0", "\ufeff10000032"])
def test_patients_are_met_in_every_spelling(mimic, tmp_path, patient):
    (tmp_path / "ids.txt").write_text(patient, encoding="utf-8")
    _, card = made(mimic.study(1).study(2, patient=10_000_033), keep_out=tmp_path / "ids.txt")
    assert card["rejected"] == {"kept out of training": 1}


def test_a_study_without_a_split_beside_others_that_have_one_is_rejected(mimic):
    _, card = made(mimic.study(1).study(2, split="", patient=10_000_033))
    assert (card["rejected"], list(card["splits"])) == ({"in no split": 1}, ["train"])


def test_images_of_one_study_in_two_splits_are_no_study(mimic):
    mimic.study(1).study(2).study(2, split="test")
    assert made(mimic)[1]["rejected"] == {"its images are in several splits": 1}


def test_an_image_that_is_named_twice_is_one(mimic):
    row = only(mimic.study(1, ("PA", "LATERAL")).study(1, ("PA", "LATERAL")))
    assert len(row["images"]) == 2


@pytest.mark.parametrize(
    ("findings", "reason"),
    [
        ("word " * 25_000, "more than 100,000 characters"),
        ("<report> Clear.", "broken <report> tags"),
    ],
)
def test_a_report_that_no_one_could_read_is_none(mimic, findings, reason):
    out, card = made(mimic.study(1, report=REPORT.replace("The heart is mildly", findings)))
    assert card["splits"]["train"]["no_report"] == {reason: 1}
    assert len(read_studies(out / "train.jsonl")) == 1


@pytest.mark.parametrize("view", ["XTABLE LATERAL", "LATERO-LATERAL", "left lateral"])
def test_side_views_of_every_spelling_are_no_frontal_ones(mimic, view):
    out, _ = made(mimic.study(1, (view,)))
    assert not read_studies(out / "train.jsonl")[0].is_frontal


def test_a_table_without_a_head_is_told_without_its_content(mimic):
    mimic.study(1)
    path = mimic.root / "jpg/mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b"\n", 1)[1]))
    with pytest.raises(ConfigError, match="first line does not name its columns") as caught:
        made(mimic)
    assert "10000032" not in str(caught.value)


def test_files_of_every_name_are_studies_of_their_own(tmp_path):
    src = tmp_path / "films"
    src.mkdir()
    names = ["CXR1_1_IM-0001-3001.png", "CXR1_1_IM-0001-4001.png", "1.png", "s1.png"]
    for name in names:
        (src / name).write_bytes(film("PNG"))
    (src / os.fsdecode(b"bad\xff.png")).write_bytes(film("PNG"))
    prepare("folder", src, tmp_path / "out", Choices(), 1)
    assert len(read_studies(tmp_path / "out/studies.jsonl")) == 5


def test_force_makes_anew_what_was_begun(mimic):
    mimic.study(1).study(2)
    folder = mimic.root / "jpg/files/p10/p10000032/s2"
    folder.rename(folder.with_name("away"))
    out, _ = made(mimic)
    folder.with_name("away").rename(folder)
    assert made(mimic, force=True)[1]["rejected"] == {}
    (out / "train.jsonl").unlink()
    assert len(rows(made(mimic)[0], "train")) == 2, "a file that is gone is made anew"


def test_what_is_wrong_with_a_choice_leaves_what_was_prepared(mimic, tmp_path):
    out, card = made(mimic.study(1))
    (tmp_path / "bad.csv").write_text("study_id,split\n1,x\n")
    with pytest.raises(ConfigError, match="none of train"):
        made(mimic, splits=tmp_path / "bad.csv", force=True)
    assert json.loads((out / "card.json").read_text()) == card


def test_a_strange_entry_beside_the_tables_is_passed_over(mimic):
    mimic.study(1)
    (mimic.root / "loop").symlink_to("loop")
    assert only(mimic)["id"] == "s1"


def test_a_report_of_a_test_study_that_occurs_in_training_is_marked_and_counted(mimic):
    other = REPORT.replace("enlarged", "prominent")
    mimic.study(1).study(
        2, split="test", patient=2 * 10**7, report=REPORT.replace("heart", "HEART")
    )
    mimic.study(3, split="test", patient=2 * 10**7 + 1, report=other)
    out, card = made(mimic)
    assert [row["repeats_train"] for row in rows(out, "test")] == [True, False]
    assert rows(out, "train")[0]["repeats_train"] is None
    assert card["splits"]["test"]["reports that occur in train"] == 1


def test_the_card_has_what_was_chosen_counted_and_read(mimic):
    out, card = made(mimic.study(1), marks="keep")
    assert card["made"]["choices"]["marks"] == "keep"
    assert card["splits"]["train"]["labels"]["Cardiomegaly"]["present"] == 1
    assert card["splits"]["train"]["words"]["median"] == 9
    assert set(card["sha256"]) == {"split", "metadata", "chexpert"}
    content = (out / "train.jsonl").read_bytes()
    assert card["written"] == {"train": hashlib.sha256(content).hexdigest()}
    text = (out / "README.md").read_text()
    assert "| Cardiomegaly | 100.0% (0.0%) |" in text
    assert card == json.loads((out / "card.json").read_text())


def test_a_second_run_finds_that_all_is_done(mimic):
    out, card = made(mimic.study(1))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare("mimic-cxr", mimic.root, out, Choices(), 1) == (card, True)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_what_a_kill_behind_the_card_has_left_is_removed(mimic):
    out, card = made(mimic.study(1))
    (out / ".prepare").mkdir()
    (out / ".prepare/000000.jsonl").touch()
    assert prepare("mimic-cxr", mimic.root, out, Choices(), 1) == (card, True)
    assert not (out / ".prepare").exists()


def test_a_folder_that_was_prepared_otherwise_is_replaced_only_if_told(mimic):
    made(mimic.study(1))
    with pytest.raises(ConfigError, match=r"other: choices.*--force"):
        made(mimic, report="both")
    assert made(mimic, report="both", force=True)[1]["made"]["choices"]["report"] == "both"


def test_a_table_that_has_changed_is_noticed(mimic):
    made(mimic.study(1))
    with pytest.raises(ConfigError, match="other: read"):
        made(mimic.study(2))


def test_a_folder_with_something_else_is_refused(mimic):
    out = mimic.root.parent / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty, and nothing was prepared into it"):
        made(mimic.study(1))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def without_view(path: Path) -> None:
    with gzip.open(path, "rt") as file:
        left = list(csv.DictReader(file))
    for row in left:
        del row["ViewPosition"]
    write_csv(path, left)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(Path.unlink, r"holds no mimic-cxr-2\.0\.0-metadata.*is from MIMIC-CXR-JPG"),
     (cut, r"metadata\.csv\.gz is cut off"),
     (without_view, r"metadata\.csv\.gz has no column 'ViewPosition'"),
     (lambda path: path.write_bytes(b"no gzip"), r"cannot read .*metadata")],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_an_error_that_names_it(mimic, spoil, message):
    mimic.study(1)
    spoil(mimic.root / "jpg/mimic-cxr-2.0.0-metadata.csv.gz")
    with pytest.raises(ConfigError, match=message):
        made(mimic)


def test_reports_that_were_not_unpacked_are_missed(mimic):
    mimic.study(1, report=None)
    shutil.rmtree(mimic.root / "text", ignore_errors=True)
    out = mimic.root.parent / "none"
    with pytest.raises(ConfigError, match=r"mimic-cxr-reports\.zip"):
        prepare("mimic-cxr", mimic.root, out, Choices(), 1)
    assert not out.exists()


def command(*words: object):
    return CliRunner().invoke(main, ["prepare", *map(str, words), "--processes", "1"])


def test_more_faults_than_allowed_fail_after_all_is_written(mimic, tmp_path):
    mimic.study(1).study(2)
    shutil.rmtree(mimic.root / "jpg/files/p10/p10000032/s2")
    done = command("mimic-cxr", mimic.root, tmp_path / "out")
    assert done.exit_code == 1
    assert "1 of 2 studies have faults, more than --max-rejected 0.01" in done.stderr
    assert len(rows(tmp_path / "out", "train")) == 1
    again = command("mimic-cxr", mimic.root, tmp_path / "out", "--max-rejected", "0.5")
    assert again.exit_code == 0
    assert "was prepared before" in again.output


def test_neither_text_nor_patients_reach_the_screen(mimic, tmp_path):
    mimic.study(1).study(2, report=None)
    shutil.rmtree(mimic.root / "jpg/files/p10/p10000032/s2")
    done = command("mimic-cxr", mimic.root, tmp_path / "out")
    assert "train.jsonl: 1 studies" in done.output
    assert not any(secret in done.output + done.stderr for secret in ("10000032", "heart", "s2"))


def test_a_folder_of_images_is_a_dataset_without_reports(tmp_path):
    src = tmp_path / "films"
    (src / "ward").mkdir(parents=True)
    for name in ("b.png", "ward/a.JPG", "notes.txt"):
        (src / name).write_bytes(film("PNG"))
    done = command("folder", src, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    found = rows(tmp_path / "out", "studies")
    assert [(row["id"], row["image"]) for row in found] == [
        ("b.png", str(src / "b.png")), ("ward/a.JPG", str(src / "ward/a.JPG"))
    ]  # fmt: skip
    assert [study.report for study in read_studies(tmp_path / "out/studies.jsonl")] == [None, None]


def test_paths_below_the_folder_that_is_written_are_relative_to_it(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.png").write_bytes(film("PNG"))
    (tmp_path / ".prepare").mkdir()  # as if begun
    prepare("folder", tmp_path / "films", tmp_path, Choices(), 1)
    assert rows(tmp_path, "studies")[0]["image"] == "films/a.png"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("large")
    write_mimic(root / "src", 5000)
    return root


def peak(src: Path, out: Path) -> int:
    """The most memory that a process of the command took, in kB."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    words = [sys.executable, "-c", code, *COMMAND, str(src), str(out), "--processes", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    returned, most = done.stdout.split()
    assert returned == "0", done.stderr
    return int(most)


def test_memory_does_not_grow_with_the_number_of_studies(many, tmp_path):
    write_mimic(tmp_path / "small", 500)
    little = peak(tmp_path / "small", tmp_path / "out")
    much = peak(many / "src", many / "out")
    card = json.loads((many / "out/card.json").read_text())
    assert (card["found"], card["rejected"]) == (5000, {})
    assert much < little + 30_000


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_files(many, tmp_path):
    out = tmp_path / "out"
    words = [*COMMAND, str(many / "src"), str(out), "--processes", "2"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".prepare/00000*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    batches = {file: file.stat().st_mtime_ns for file in out.glob(".prepare/*.jsonl")}
    assert 2 <= len(batches) < 5
    assert not (out / "card.json").exists()
    seen = {}

    def watch(batch, path):
        seen[path] = path.exists()
        return write(batch, path)

    write = core._write
    core._write = watch
    try:
        prepare("mimic-cxr", many / "src", out, Choices(), 1)
    finally:
        core._write = write
    assert seen
    assert not batches.keys() & seen.keys(), "whole batches are not made again"
    for name in ("train", "validate", "test"):
        assert (out / f"{name}.jsonl").read_bytes() == (many / f"out/{name}.jsonl").read_bytes()
