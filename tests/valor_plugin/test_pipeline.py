import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from reward_sdk.errors import ConfigError
from valor_plugin.data.studies import Study
from valor_plugin.demo import pipeline
from valor_plugin.llava_med.check import check_model

ROOT = Path(__file__).parents[2]
STUDIES = [Study(f"s{i}", Path(f"{i}.png"), f"Report {i}.") for i in range(100)]


def test_a_share_of_the_phantoms_gets_the_report_of_another_one():
    result = pipeline.mispaired(STUDIES, 0.4, seed=0)
    assert [(s.id, s.image) for s in result] == [(s.id, s.image) for s in STUDIES]
    assert sum(a.report != b.report for a, b in zip(result, STUDIES, strict=True)) == 40
    assert Counter(s.report for s in result) == Counter(s.report for s in STUDIES)


def test_a_result_gets_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "result"
    interrupted = pipeline.step(target, "a step that breaks")
    (interrupted.__enter__() / "half").mkdir(parents=True)
    assert not target.exists()
    with pipeline.step(target, "the same step again") as part:
        assert not part.exists()
        part.mkdir()
    assert target.exists()
    with pipeline.step(target, "a step that was done before") as part:
        assert part is None


def test_a_model_of_the_demo_has_a_card_that_says_what_it_is_not_for(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    pipeline.write_card(folder, "Stage 2")
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-text-to-text"
    assert text.startswith("\n# Stage 2 of the demo of valor-rrg ")
    assert "**Not for care.**" in text
    assert check_model(str(folder)).image_tokens


def test_the_demo_checks_every_recipe_before_it_starts(tmp_path):
    for name in pipeline.RUNS:
        text = (ROOT / "recipes/demo" / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text.replace("actor.adam.lr", "actor.adam.rl"))
    with pytest.raises(ConfigError, match=r"stage1\.yaml: OpenRLHF has no option"):
        pipeline.run(tmp_path, tmp_path / "runs", "cpu")
    assert not (tmp_path / "runs").exists()


def test_the_audit_of_the_rewards_of_stage_2_is_a_page(tmp_path):
    (tmp_path / "stage2").mkdir()
    recipe = "stage: grpo\nrewards:\n  findings_f1: {weight: 0.9}\n  format: {weight: 0.1}\n"
    (tmp_path / "stage2/recipe.yaml").write_text(recipe)
    (tmp_path / "test").mkdir()
    row = '{"id": "a", "image": "a.png", "report": "Left effusion. Heart size is normal."}\n'
    (tmp_path / "test/phantoms.jsonl").write_text(row)
    pipeline.audit_stage2(tmp_path, tmp_path / "audit")
    assert "1 report of held-out phantoms" in (tmp_path / "audit/audit.html").read_text()


def test_the_demo_writes_into_no_folder_that_holds_something_else(tmp_path):
    (tmp_path / "index.html").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no folder of the demo and not empty, .* index\.html"):
        pipeline.run(ROOT / "recipes/demo", tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize("begun", ["train.part", "train/phantoms.jsonl", "nothing"])
def test_the_demo_goes_on_in_a_folder_of_its_own(tmp_path, begun):
    if begun != "nothing":
        (tmp_path / begun).parent.mkdir(exist_ok=True)
        (tmp_path / begun).touch()
    assert pipeline._check_root(tmp_path) is None
