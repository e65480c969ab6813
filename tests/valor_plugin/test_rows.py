"""The dataset that the host reads."""

import json
import string
import subprocess
import sys
from pathlib import Path

import pytest

from reward_sdk.errors import ConfigError
from reward_sdk.types import ImageRef
from valor_plugin.data.studies import Study
from valor_plugin.host.rows import check_path, write_rows
from valor_plugin.recipe import Data

REPORT = Data(train="studies.jsonl")


def test_host_rows_carry_prompt_image_and_a_label_with_the_study(tmp_path):
    image = tmp_path / "films/a.png"
    studies = [Study("s1", image, "Clear.", "PA", 82.0, "Cough."), Study("s2", image)]
    write_rows(studies, Data(train="", prompt="Describe this."), tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == ["<image>Describe this."] * 2
    assert [r["images"] for r in rows] == [[str(image)]] * 2
    assert [json.loads(r["label"]) for r in rows] == [
        {"id": "s1", "report": "Clear.", "view": "PA", "age": 82.0, "indication": "Cough."},
        {"id": "s2", "report": None, "view": None, "age": None, "indication": None},
    ]


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [({}, "a"), ({"images": "all"}, "ab"), ({"images": "all", "max_images": 3}, "abc"),
     ({"images": "all", "max_images": 1}, "a")],
)  # fmt: skip
def test_a_row_has_a_mark_for_every_image_that_is_shown(tmp_path, shown, wanted):
    first, *others = (tmp_path / f"{name}.png" for name in "abc")
    studies = [
        Study("s1", first, others=tuple(ImageRef(str(path)) for path in others)),
        Study("s2", first),
    ]
    write_rows(studies, Data(train="", **shown), tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["images"] == [str(tmp_path / f"{name}.png") for name in wanted]
    assert rows[1]["images"] == [str(first)]
    assert [row["prompt"].count("<image>") for row in rows] == [len(wanted), 1]


def test_a_run_that_goes_on_refuses_other_studies(tmp_path):
    image = tmp_path / "film.png"
    studies = [Study("s1", image), Study("s2", image)]
    write_rows(studies, REPORT, tmp_path / "rows.jsonl")
    write_rows(studies, REPORT, tmp_path / "rows.jsonl", must_match=True)
    with pytest.raises(ConfigError, match="have changed"):
        write_rows(studies[1:], REPORT, tmp_path / "rows.jsonl", must_match=True)


@pytest.mark.parametrize("name", ["lr=1e-4,seed=1", "a@b", "a::b", "$HOME", "a*", "a?", "[1]"])
def test_a_path_that_the_host_would_read_otherwise_is_refused_with_what_is_wrong_in_it(name):
    mark = next(m for m in (",", "@", "::", "$", "*", "?", "[") if m in name)
    with pytest.raises(ConfigError) as caught:
        check_path(Path("/runs", name, "train.jsonl"))
    assert f"the run's folder /runs/{name} has {mark!r} in its path, which " in str(caught.value)
    assert "choose another with --out, without , @ :: $ * ? [ ]" in str(caught.value)


READ = """
import runpy, sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
file = Path(find_spec("openrlhf").origin).parent / "datasets/utils.py"
strategy = SimpleNamespace(print=lambda *_: None, is_rank_0=lambda: False)
read = runpy.run_path(str(file))["blending_datasets"](sys.argv[1], strategy=strategy)
assert read["prompt"] == ["<image>a q"], read
"""


@pytest.mark.slow
def test_the_host_reads_a_path_with_any_other_characters(tmp_path):
    pytest.importorskip("openrlhf")
    name = "".join(c for c in string.punctuation if c not in ",@$*?[]/")
    path = tmp_path / f"{name} é 胸" / "train.jsonl"
    check_path(path)
    path.parent.mkdir()
    write_rows([Study("s1", tmp_path / "film.png")], Data(train="", prompt="a q"), path)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    subprocess.run([sys.executable, "-c", READ, str(path)], check=True, env=environment)
