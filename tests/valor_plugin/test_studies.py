import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reward_sdk.errors import ConfigError
from reward_sdk.types import ImageRef
from valor_plugin.data.studies import (
    Study,
    problems_of,
    read_studies,
    write_studies,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the film `films/a.png`."""
    folder = tmp_path_factory.mktemp("studies").resolve()
    (folder / "films").mkdir()
    Image.new("L", (8, 8)).save(folder / "films/a.png")
    return folder


def row(**keys) -> str:
    return json.dumps({"id": "s1", "image": "films/a.png", "report": "Clear."} | keys)


def read(folder: Path, *lines: str) -> list[Study]:
    path = folder / "studies.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_studies(path)


def refused(folder: Path, *lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, *lines)
    return str(caught.value)


def test_image_paths_are_relative_to_the_file(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read(folder, row()) == [Study("s1", folder / "films/a.png", "Clear.")]


def test_absolute_image_paths_stay_what_they_are(folder):
    (study,) = read(folder, row(image=str(folder / "films/a.png")))
    assert study.image == folder / "films/a.png"


def test_a_report_may_be_missing_or_null(folder):
    bare = json.dumps({"id": "s2", "image": "films/a.png"})
    assert [s.report for s in read(folder, row(report=None), bare)] == [None, None]


def test_the_report_of_a_study_is_what_its_row_calls_so_before_a_reference(folder):
    rows = read(folder, row(reference="R."), row(id="s2", report=None, reference="R."))
    assert [study.report for study in rows] == ["Clear.", "R."]


def test_more_keys_and_empty_lines_are_no_trouble(folder):
    assert len(read(folder, row(view="PA"), "", "  ", row(id="s2"), "")) == 2


studies_lists = st.lists(
    st.tuples(
        st.text(min_size=1).filter(str.strip),
        st.none() | st.text().filter(str.strip),
        st.none() | st.floats(0, 150),
    ),
    min_size=1, max_size=4, unique_by=lambda study: study[0],
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(studies_lists)
def test_written_studies_are_read_back(folder, drawn):
    studies = [Study(name, folder / "films/a.png", report, age=age) for name, report, age in drawn]
    write_studies(studies, folder / "round.jsonl")
    assert read_studies(folder / "round.jsonl") == studies


def test_a_study_of_several_images_is_read_and_written_with_all_of_them(folder):
    images = [{"path": "films/a.png", "view": "PA"}, {"path": "films/b.png", "view": "LATERAL"}]
    shutil.copy(folder / "films/a.png", folder / "films/b.png")
    line = json.dumps({"id": "s1", "images": images})
    (study,) = read(folder, line)
    assert (study.image, study.view) == (folder / "films/a.png", "PA")
    assert study.others == (ImageRef(str(folder / "films/b.png"), view="LATERAL"),)
    write_studies([study], folder / "several.jsonl")
    assert read_studies(folder / "several.jsonl") == [study]
    assert json.loads((folder / "several.jsonl").read_text())["images"] == images


def test_images_may_be_paths_alone(folder):
    (study,) = read(folder, json.dumps({"id": "s1", "images": ["films/a.png", "films/a.png"]}))
    assert len(study.others) == 1


def test_every_image_of_a_study_is_looked_at(folder):
    images = [{"path": "films/a.png", "view": None}, {"path": "films/gone.png", "view": None}]
    assert "gone.png" in refused(folder, json.dumps({"id": "s1", "images": images}))


@pytest.mark.parametrize(
    ("images", "image"), [("films/a.png", None), ([7], None), ([{"path": 1}], None),
                          ([{"path": "films/a.png", "view": 1}], None),
                          ([{"path": "films/a.png"}], "films/b.png")],
)  # fmt: skip
def test_images_of_another_form_are_refused(folder, images, image):
    assert "'image" in refused(folder, row(images=images, image=image))


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """A studies file of as many studies as are looked at once only, and one of its images."""
    monkeypatch.setattr("valor_plugin.data.studies._MANY", 20)
    films = [tmp_path / f"{i}.png" for i in range(20)]
    for film in films:
        Image.new("L", (8, 8)).save(film)
    write_studies([Study(f"s{i}", film) for i, film in enumerate(films)], tmp_path / "s.jsonl")
    read_studies(tmp_path / "s.jsonl")
    return tmp_path / "s.jsonl"


def test_images_that_were_found_well_are_not_opened_again(many):
    (many.parent / "19.png").write_bytes(b"no image")
    assert len(read_studies(many)) == 20


def test_what_was_found_well_elsewhere_is_looked_at_here(many, tmp_path_factory):
    there = tmp_path_factory.mktemp("there") / "copy"
    shutil.copytree(many.parent, there)
    (there / "19.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"19\.png"):
        read_studies(there / "s.jsonl")


def test_a_rehearsal_remembers_for_this_process_alone(many, monkeypatch):
    many.with_name("s.jsonl.checked").unlink()
    monkeypatch.setattr("valor_plugin.data.studies._found_well", {})
    assert list(problems_of(many, [])) == []
    assert not many.with_name("s.jsonl.checked").exists()
    (many.parent / "19.png").write_bytes(b"no image")
    assert list(problems_of(many, [])) == []


def test_a_disk_that_is_not_there_is_noticed_all_the_same(many):
    (many.parent / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"0\.png"):
        read_studies(many)


def test_a_studies_file_that_has_changed_is_looked_at_again(many):
    (many.parent / "19.png").write_bytes(b"no image")
    many.write_text(many.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"19\.png"):
        read_studies(many)


def test_a_blank_report_is_none(folder):
    assert read(folder, row(report=" \n"))[0].report is None


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c"])
def test_only_a_newline_ends_a_line(folder, separator):
    report = f"Clear.{separator}No edema."
    line = json.dumps({"id": "s1", "image": "films/a.png", "report": report}, ensure_ascii=False)
    if separator == "\x1c":  # JSON escapes it in any case
        line = row(report=report)
    assert read(folder, line)[0].report == report


def test_windows_line_ends_are_read(folder):
    assert len(read(folder, row() + "\r", row(id="s2") + "\r")) == 2


def test_written_image_paths_are_relative_where_they_can_be(folder):
    write_studies([Study("s1", folder / "films/a.png")], folder / "out.jsonl")
    assert json.loads((folder / "out.jsonl").read_text())["image"] == os.path.join("films", "a.png")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "no JSON"),
        ("[]", "a row is a JSON object"),
        ("null", "a row is a JSON object"),
        (json.dumps({"image": "films/a.png"}), "the row has no 'id'"),
        (json.dumps({"id": "s9"}), "the row has no 'image'"),
        (row(id=""), "the row has no 'id'"),
        (row(id=7.5), "the row has no 'id'"),
        (row(image=None), "the row has no 'image'"),
        (row(report=["Clear."]), "'report' must be a text or null"),
        (row(image="films/none.png", id="s9"), "study 's9': image .*none.png: no such file"),
        (row(image="films", id="s9"), "study 's9': image .*: cannot be read"),
        (row(image="studies.jsonl", id="s9"), "study 's9': image .*: cannot be read"),
        (row(image="a\0b", id="s9"), "'image': a path has no null"),
        (row(), "id 's1' was used before"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(folder, line, why):
    message = refused(folder, row(), "", line)
    assert "studies.jsonl, line 3" in message
    assert re.search(why, message)


@pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
def test_a_file_without_a_study_is_refused(folder, content):
    assert "holds no study" in refused(folder, content)


def test_a_missing_file_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match=r"cannot read studies .*none\.jsonl: No such file"):
        read_studies(folder / "none.jsonl")


def test_a_file_that_is_no_text_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match=r"a\.png, line 1: no UTF-8"):
        read_studies(folder / "films/a.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_an_image_that_is_cut_short_is_refused_by_name(tmp_path, kind):
    path = tmp_path / f"film.{kind}"
    Image.effect_noise((200, 200), 80).save(path)
    path.write_bytes(path.read_bytes()[:-5000])
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "image": path.name}))
    with pytest.raises(ConfigError, match=rf"study 'a': image .*film\.{kind}: cannot be read"):
        read_studies(tmp_path / "s.jsonl")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_bytes_behind_the_end_of_an_image_do_no_harm(tmp_path, kind):
    path = tmp_path / f"film.{kind}"
    Image.effect_noise((200, 200), 80).save(path)
    path.write_bytes(path.read_bytes() + bytes(8192))
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "image": path.name}))
    assert len(read_studies(tmp_path / "s.jsonl")) == 1


def test_an_image_beyond_the_size_limit_is_refused(tmp_path):
    Image.new("1", (9000, 8000)).save(tmp_path / "film.png")
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "image": "film.png"}))
    with pytest.raises(ConfigError, match="more than the limit"):
        read_studies(tmp_path / "s.jsonl")


def test_a_dicom_file_is_a_study_and_one_that_breaks_off_is_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    path = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    (tmp_path / "film.dcm").write_bytes(path.read_bytes())
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "image": "film.dcm"}))
    assert len(read_studies(tmp_path / "s.jsonl")) == 1
    (tmp_path / "film.dcm").write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ConfigError, match=r"film\.dcm: cannot be read"):
        read_studies(tmp_path / "s.jsonl")
