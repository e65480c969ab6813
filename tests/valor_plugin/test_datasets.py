"""Every dataset of `openrlhf prepare`, by a small tree in its exact layout."""

from __future__ import annotations

import csv
import json
import re
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import datasets as trees

from reward_sdk.errors import ConfigError
from reward_sdk.images import LATERAL
from reward_sdk.observations import OBSERVATIONS
from valor_plugin.data.datasets import DATASETS, dataset
from valor_plugin.data.drafts import Choices
from valor_plugin.data.prepare import prepare
from valor_plugin.data.schema import StudyRow
from valor_plugin.data.studies import read_studies


def write_folder(root: Path, studies: int, seed: int = 0) -> None:
    root.mkdir()
    for number in range(studies):
        (root / f"{number}.png").write_bytes(trees.film("PNG"))


Tree = tuple[str, Callable[[Path, int], None]]
TREES: dict[str, Tree] = {
    "mimic-cxr": ("mimic-cxr", trees.write_mimic),
    "iu-xray of Kaggle": ("iu-xray", trees.write_iu_kaggle),
    "iu-xray of Open-i": ("iu-xray", trees.write_iu_openi),
    "r2gen of IU X-ray": ("r2gen", trees.write_r2gen_iu),
    "r2gen of MIMIC-CXR": ("r2gen", trees.write_r2gen_mimic),
    "chexpert-plus": ("chexpert-plus", trees.write_chexpert_plus),
    "rexgradient": ("rexgradient", trees.write_rexgradient),
    "padchest-gr": ("padchest-gr", trees.write_padchest_gr),
    "llava-rad": ("llava-rad", trees.write_llava_rad),
    "folder": ("folder", write_folder),
}
every_tree = pytest.mark.parametrize("tree", TREES)
STUDIES = 12


def prepared(
    name: str, src: Path, out: Path, **choices: Any
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The card, and the rows by id, of what was rejected, too."""
    card, _ = prepare(name, src, out, Choices(**choices), processes=1)
    rows = [row for file in sorted(out.glob("*.jsonl")) for row in lines(file)]
    assert len({row["id"] for row in rows}) == len(rows)
    return card, {row["id"]: row for row in rows}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Callable[[str], tuple[dict[str, Any], dict[str, Any], Path]]:
    """Tree -> card, rows by id and folder, each prepared once."""
    done = {}

    def get(tree: str):
        if tree not in done:
            name, write = TREES[tree]
            folder = tmp_path_factory.mktemp("tree")
            write(folder / "src", STUDIES)
            done[tree] = (*prepared(name, folder / "src", folder / "out"), folder)
        return done[tree]

    return get


def test_every_dataset_has_a_tree():
    assert {name for name, _ in TREES.values()} == DATASETS.keys()


@every_tree
def test_every_study_of_a_tree_is_prepared(tree, ready):
    card, rows, _ = ready(tree)
    assert card["rejected"] == {}
    assert len(rows) == STUDIES


@every_tree
def test_every_row_fits_the_schema(tree, ready):
    _, rows, _ = ready(tree)
    assert all(StudyRow.model_validate(row).source == TREES[tree][0] for row in rows.values())


@every_tree
def test_a_side_view_comes_first_only_where_there_is_nothing_else(tree, ready):
    _, rows, _ = ready(tree)
    for row in rows.values():
        views = [image["view"] for image in row["images"]]
        assert views[0] not in LATERAL or set(views) <= LATERAL


@every_tree
def test_what_is_prepared_is_read_by_a_run(tree, ready):
    _, rows, folder = ready(tree)
    files = [file for file in (folder / "out").glob("*.jsonl") if file.stem != "rejected"]
    studies = [study for file in files for study in read_studies(file)]
    assert {study.id: study.report for study in studies} == {
        study: row["report"] for study, row in rows.items()
    }


@every_tree
def test_a_dataset_with_reports_has_them_in_every_row(tree, ready):
    _, rows, _ = ready(tree)
    wanted = tree != "folder"
    assert all((row["report"] is not None) is wanted for row in rows.values())


SPLIT = [tree for tree in TREES if not tree.startswith(("iu-xray", "folder", "mimic", "chexpert"))]


@pytest.mark.parametrize("tree", SPLIT)
def test_the_splits_are_those_of_the_dataset(tree, ready):
    card, _, _ = ready(tree)
    assert {name: part["studies"] for name, part in card["splits"].items()} == {
        "train": STUDIES // 2, "validate": STUDIES // 4, "test": STUDIES // 4,
    }  # fmt: skip


TABLES = {
    "mimic-cxr": ("mimic-cxr-2.0.0-split.csv.gz", "files/p*/p*/*.txt"),
    "iu-xray of Kaggle": ("indiana_projections.csv", "images_normalized"),
    "iu-xray of Open-i": ("ecgen-radiology", "NLMCXR_png"),
    "r2gen of IU X-ray": ("annotation.json", "images"),
    "r2gen of MIMIC-CXR": ("annotation.json", "images"),
    "chexpert-plus": ("df_chexpert_plus_240401.csv", "train"),
    "rexgradient": ("valid_metadata_view_position.json", "deid_png"),
    "padchest-gr": ("master_table.csv", "Padchest_GR_files"),
    "llava-rad": ("chat_dev_MIMIC_CXR_all_gpt4extract_rulebased_v1.json", "files"),
}


@pytest.mark.parametrize(("tree", "gone"), [(t, g) for t, both in TABLES.items() for g in both])
def test_what_is_missing_is_named_with_its_source(tree, gone, tmp_path):
    name, write = TREES[tree]
    write(tmp_path / "src", 1)
    for number, place in enumerate([*(tmp_path / "src").rglob(gone)]):
        place.rename(tmp_path / f"gone{number}")
    with pytest.raises(ConfigError, match=r"holds no .*: it is from \w+"):
        dataset(name).find(tmp_path / "src")


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Changes what a JSON file holds."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_csv(file: Path, change: Callable[[list[dict[str, str]]], Any]) -> None:
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    change(rows)
    trees.write_csv(file, rows)


def test_the_reader_in_contributing_prepares_a_dataset(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [reader] = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
        if "Draft" in block
    ]
    module = ModuleType("valor_plugin.data.datasets.our_hospital")
    exec(reader, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(DATASETS, "our-hospital", "films of our hospital")
    (tmp_path / "src/films").mkdir(parents=True)
    (tmp_path / "src/films/1.png").write_bytes(trees.film("PNG"))
    row = {"study": "a", "film": "1.png", "view": "PA", "patient": "p", "text": "Clear lungs."}
    trees.write_csv(tmp_path / "src/reports.csv", [row])
    _, rows = prepared("our-hospital", tmp_path / "src", tmp_path / "out")
    assert (rows["a"]["report"], rows["a"]["view"]) == ("Clear lungs.", "PA")


# IU X-ray


@pytest.mark.parametrize("write", [trees.write_iu_kaggle, trees.write_iu_openi])
def test_iu_studies_join_r2gens_splits(write, tmp_path):
    write(tmp_path / "src", 4)
    trees.write_r2gen_iu(tmp_path / "r2gen", 4)
    annotation = tmp_path / "r2gen/iu_xray/annotation.json"
    _, rows = prepared("iu-xray", tmp_path / "src", tmp_path / "out", splits=annotation)
    assert {study: row["split"] for study, row in rows.items()} == {
        "CXR1": "validate", "CXR2": "test", "CXR3": "train", "CXR4": "train",
    }  # fmt: skip


def test_iu_has_its_views_from_kaggle_even_beside_the_xml(tmp_path):
    trees.write_iu_openi(tmp_path / "src/openi", 1)
    trees.write_iu_kaggle(tmp_path / "src/kaggle", 1)
    _, rows = prepared("iu-xray", tmp_path / "src", tmp_path / "out")
    assert [image["view"] for image in rows["CXR1"]["images"]] == ["FRONTAL", "LATERAL"]


def test_the_sections_of_open_i_are_those_of_its_labels(tmp_path):
    trees.write_iu_openi(tmp_path / "src", 1)
    _, rows = prepared("iu-xray", tmp_path / "src", tmp_path / "out")
    assert rows["CXR1"]["indication"] == "Cough"
    assert rows["CXR1"]["comparison"] == "None."
    assert rows["CXR1"]["impression"] in trees.SENTENCES


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    '<eCitation><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>'
)


@pytest.mark.parametrize(
    ("xml", "reason"), [(BOMB, "its XML has a document type"), ("<a>", "its XML is broken")]
)
def test_xml_that_declares_entities_or_is_broken_is_rejected(xml, reason, tmp_path):
    trees.write_iu_openi(tmp_path / "src", 2)
    (tmp_path / "src/ecgen-radiology/2.xml").write_text(xml)
    card, rows = prepared("iu-xray", tmp_path / "src", tmp_path / "out")
    assert card["rejected"] == {reason: 1}
    assert rows["CXR2"]["reason"] == reason


@pytest.fixture(scope="module")
def openi(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The 3,955 reports of Open-i, prepared; each image is a link to a small one."""
    spec = find_spec("torchxrayvision")
    packed = Path(spec.origin).parent / "data/NLMCXR_reports.tgz" if spec and spec.origin else None
    if packed is None or not packed.is_file():
        pytest.skip("torchxrayvision is not installed with its data")
    folder = tmp_path_factory.mktemp("openi")
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "src", filter="data")
    image = folder / "film.png"
    image.write_bytes(trees.film("PNG"))
    reports = (folder / "src/ecgen-radiology").glob("*.xml")
    texts = "".join(report.read_text(encoding="utf-8") for report in reports)
    named = re.findall(r'<parentImage id="(.*?)"', texts)
    (folder / "src/NLMCXR_png").mkdir()
    for name in named:
        (folder / f"src/NLMCXR_png/{name}.png").hardlink_to(image)
    return prepared("iu-xray", folder / "src", folder / "out")


def test_the_reports_of_open_i_go_through_the_whole_command(openi):
    card, _ = openi
    part = card["splits"]["studies"]
    assert card["found"] == 3955
    assert card["rejected"] == {"the dataset names no image": 104}
    assert card["faults"] == 0
    assert (part["studies"], part["images"], part["with a report"]) == (3851, 7470, 3337)
    assert part["no_report"] == {"no findings": 514}


def test_no_report_of_open_i_keeps_a_mark_or_a_line_break(openi):
    _, rows = openi
    reports = [row["report"] for row in rows.values() if row.get("report")]
    assert not [report for report in reports if "XXX" in report or "\n" in report]


def test_a_report_of_open_i_in_four_occurs_again(openi):
    _, rows = openi
    reports = [row["report"].lower() for row in rows.values() if row.get("report")]
    assert len(reports) - len(set(reports)) == 786


# R2Gen


def test_the_images_of_a_study_in_r2gen_are_one_study_and_counted(tmp_path):
    trees.write_r2gen_mimic(tmp_path / "src", 4)
    card, rows = prepared("r2gen", tmp_path / "src", tmp_path / "out")
    assert sum(part["rows merged"] for part in card["splits"].values()) == 4
    assert rows["s50000000"]["patient"] == "p10000000"
    assert len(rows["s50000000"]["images"]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda said: said["train"][0].update(report="Another."), "its rows have several reports"),
        (lambda said: said["test"].append(said["train"][0]), "its rows are in several splits"),
    ],
)
def test_a_study_of_r2gen_that_contradicts_itself_is_rejected(change, reason, tmp_path):
    trees.write_r2gen_mimic(tmp_path / "src", 2)
    edit(tmp_path / "src/annotation.json", change)
    card, _ = prepared("r2gen", tmp_path / "src", tmp_path / "out")
    assert card["rejected"] == {reason: 1}
    assert card["faults"] == 1


def test_two_files_of_r2gen_are_not_mixed(tmp_path):
    trees.write_r2gen_iu(tmp_path / "src/iu", 1)
    trees.write_r2gen_mimic(tmp_path / "src/mimic", 1)
    with pytest.raises(ConfigError, match="name the folder of one"):
        dataset("r2gen").find(tmp_path / "src")


# CheXpert Plus


def test_a_study_of_chexpert_plus_has_its_sections_labels_and_patient(tmp_path):
    trees.write_chexpert_plus(tmp_path / "src", 3)
    _, rows = prepared("chexpert-plus", tmp_path / "src", tmp_path / "out")
    row = rows["patient00001/study1"]
    assert row["impression"].startswith("1. ")
    assert row["indication"] == "Cough"
    assert (row["patient"], row["age"], row["sex"]) == ("patient00001", 62.0, "F")
    assert tuple(row["labels"]) == OBSERVATIONS
    assert [image["view"] for image in row["images"]] == ["AP", "LATERAL"]
    assert {row["split"] for row in rows.values()} == {"train", "validate"}


def test_images_with_different_reports_are_no_study_and_no_fault(tmp_path):
    trees.write_chexpert_plus(tmp_path / "src", 2)
    table = tmp_path / "src/df_chexpert_plus_240401.csv"
    edit_csv(table, lambda rows: rows[0].update(section_impression="Another."))
    card, _ = prepared("chexpert-plus", tmp_path / "src", tmp_path / "out")
    assert card["rejected"] == {"its images have different reports": 1}
    assert card["faults"] == 0


def test_chexpert_plus_does_without_labels(tmp_path):
    trees.write_chexpert_plus(tmp_path / "src", 1)
    (tmp_path / "src/chexbert_labels/impression_fixed.json").unlink()
    _, rows = prepared("chexpert-plus", tmp_path / "src", tmp_path / "out")
    assert rows["patient00001/study1"]["labels"] is None


# ReXGradient


def test_a_study_of_rexgradient_is_read_from_its_json(ready):
    _, rows, _ = ready("rexgradient")
    row = rows["pGRDN000000000000_aGRDNA00000000000_s2.25.1000000000"]
    assert [image["view"] for image in row["images"]] == ["PA", "LATERAL"]
    assert (row["patient"], row["age"], row["sex"]) == ("GRDN000000000000", 62.0, "F")
    assert (row["indication"], row["comparison"]) == ("Cough", None)


def test_views_that_rexgradient_does_not_know_are_none(tmp_path):
    trees.write_rexgradient(tmp_path / "src", 1)
    for view in ("UNKNOWN", "N/A", "None", None):
        edit(
            tmp_path / "src/metadata/train_metadata_view_position.json",
            lambda said, view=view: [
                r.update(ImageViewPosition=[view, "LL"]) for r in said.values()
            ],
        )
        found = dataset("rexgradient").find(tmp_path / "src")
        [(study, row)] = dataset("rexgradient").rows(found)
        draft = dataset("rexgradient").draft(study, [row], found)
        assert [view for _, view in draft.images] == [None, "LL"]


def test_a_study_whose_views_are_not_those_of_its_images_is_rejected(tmp_path):
    trees.write_rexgradient(tmp_path / "src", 2)
    edit(
        tmp_path / "src/metadata/train_metadata_view_position.json",
        lambda said: [row["ImageViewPosition"].pop() for row in said.values()],
    )
    card, _ = prepared("rexgradient", tmp_path / "src", tmp_path / "out")
    assert card["rejected"] == {"it has not as many views as images": 1}


# PadChest-GR


def test_boxes_of_the_first_reader_come_with_sentence_and_label(ready):
    _, rows, _ = ready("padchest-gr")
    for row in rows.values():
        nodule = row["findings"].split(". ")[0] + "."
        box = {"image": 0, "box": [0.1, 0.2, 0.3, 0.4], "label": "nodule", "sentence": nodule}
        assert row["boxes"] == [box]


def test_the_sentences_of_padchest_gr_are_ended_in_the_report(ready):
    _, rows, _ = ready("padchest-gr")
    assert all(". No pleural effusion" in row["report"] for row in rows.values())


@pytest.mark.parametrize("box", [[0.3, 0.2, 0.1, 0.4], [0.1, 0.2, 1.3, 0.4], [0.1, 0.2], None])
def test_a_study_with_a_box_outside_of_its_image_is_rejected(box, tmp_path):
    trees.write_padchest_gr(tmp_path / "src", 2)
    edit(
        tmp_path / "src/grounded_reports_20240819.json",
        lambda said: said[0]["findings"][0].update(boxes=[box]),
    )
    card, _ = prepared("padchest-gr", tmp_path / "src", tmp_path / "out")
    assert card["rejected"] == {"a box is not inside of the image": 1}


# LLaVA-Rad


def test_the_report_is_gpt_4s_but_in_the_test_split(ready):
    _, rows, _ = ready("llava-rad")
    for row in rows.values():
        method = "rule-based" if row["split"] == "test" else "gpt4"
        assert row["report"].endswith(f"As read by {method}.")


def test_a_study_of_llava_rad_has_each_image_once_and_its_indication(ready):
    _, rows, _ = ready("llava-rad")
    row = rows["s50000000"]
    assert [image["view"] for image in row["images"]] == ["AP", "LATERAL"]
    assert row["patient"] == "p10000000"
    assert row["indication"] == "With cough"


def test_a_report_that_gpt_4_did_not_find_is_the_rules(tmp_path):
    def forget(said: list[dict[str, Any]]) -> None:
        for row in said:
            if row["generate_method"] == "gpt4":
                row["conversations"][1]["value"] = float("nan")

    trees.write_llava_rad(tmp_path / "src", 1)
    edit(tmp_path / "src/chat_train_MIMIC_CXR_all_gpt4extract_rulebased_v1.json", forget)
    _, rows = prepared("llava-rad", tmp_path / "src", tmp_path / "out")
    assert rows["s50000000"]["report"].endswith("As read by rule-based.")


def test_a_test_study_that_only_gpt_4_read_has_no_report(tmp_path):
    trees.write_llava_rad(tmp_path / "src", 3)
    file = tmp_path / "src/chat_test_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
    said = [row for row in json.loads(file.read_text()) if row["generate_method"] == "gpt4"]
    trees.write_json(file, said)
    card, rows = prepared("llava-rad", tmp_path / "src", tmp_path / "out")
    [reason] = card["splits"]["test"]["no_report"]
    assert "LLaVA-Rad does not test" in reason
    assert len(rows["s50000002"]["images"]) == 2
