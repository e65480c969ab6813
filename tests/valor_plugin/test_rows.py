"""The dataset that the host reads."""

import json

import pytest

from reward_sdk.errors import ConfigError
from valor_plugin.data.studies import Study
from valor_plugin.host.rows import write_rows


def test_host_rows_carry_prompt_image_and_a_label_with_id_and_report(tmp_path):
    image = tmp_path / "films/a.png"
    write_rows(
        [Study("s1", image, "Clear."), Study("s2", image)], "Describe.", tmp_path / "rows.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == ["<image>Describe."] * 2
    assert [r["images"] for r in rows] == [[str(image)]] * 2
    assert [json.loads(r["label"]) for r in rows] == [
        {"id": "s1", "report": "Clear.", "view": None},
        {"id": "s2", "report": None, "view": None},
    ]


def test_a_run_that_goes_on_refuses_other_studies(tmp_path):
    image = tmp_path / "film.png"
    studies = [Study("s1", image), Study("s2", image)]
    write_rows(studies, "q", tmp_path / "rows.jsonl")
    write_rows(studies, "q", tmp_path / "rows.jsonl", must_match=True)
    with pytest.raises(ConfigError, match="have changed"):
        write_rows(studies[1:], "q", tmp_path / "rows.jsonl", must_match=True)
