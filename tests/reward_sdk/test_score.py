import json
import re
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from reward_sdk.cli import main
from reward_sdk.commands.bench import measure
from reward_sdk.commands.score import score_file
from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample

SET = "rewards:\n  rouge_l: {weight: 0.5}\n  format: {weight: 0.5}\n"


@pytest.fixture
def files(tmp_path):
    """A set, 200 rows of which every tenth is bad, and a place for scores."""
    (tmp_path / "set.yaml").write_text(SET)
    rows = []
    for i in range(1, 201):
        row = {"id": f"s{i}", "response": "<report>Clear.</report>", "reference": "Clear."}
        rows.append(json.dumps(row) if i % 10 else "{broken")
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "set.yaml", tmp_path / "data.jsonl", tmp_path / "out.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_good_row_gets_its_total_and_parts_in_order(files):
    columns, _ = score_file(*files)
    rows = rows_of(files[2])
    assert [row["line"] for row in rows] == [i for i in range(1, 201) if i % 10]
    assert rows[0]["id"] == "s1"
    assert rows[0]["total"] == pytest.approx(1)
    assert rows[0]["parts"]["format"] == {"value": 1.0, "status": "ok", "reason": ""}
    assert columns["rouge_l"].scored == columns["total"].scored == 180


def test_bad_rows_are_named_by_line_and_kept(files):
    _, rejected = score_file(*files)
    assert [row.number for row in rejected] == list(range(10, 201, 10))
    kept = rows_of(files[2].with_name("out.jsonl.rejected"))
    assert kept[0]["number"] == 10
    assert kept[0]["text"] == "{broken"
    assert "no JSON" in kept[0]["problem"]


def test_a_row_without_a_response_is_rejected(files):
    files[1].write_text('{"id": "a", "reference": "Clear."}\n')
    _, rejected = score_file(*files)
    assert "no 'response'" in rejected[0].problem


def test_scoring_goes_on_where_it_was_stopped_and_mends_a_row_that_broke_off(files):
    score_file(*files)
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[: len(whole) // 2])
    seen = []
    score_file(*files, progress=seen.append)
    assert files[2].read_bytes() == whole


def test_scores_of_another_set_are_not_mixed_in(files):
    score_file(*files)
    files[0].write_text(SET.replace("0.5", "0.7"))
    with pytest.raises(ConfigError, match=r"out\.jsonl holds scores of another set"):
        score_file(*files)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.jsonl", "my notes\n"),
        ("out.jsonl", "my notes"),
        ("out.jsonl", '{"id": "a"}'),
        ("out.jsonl", '{"line": 1}\n'),
        ("out.jsonl.rejected", "my notes"),
        ("out.jsonl.rejected", '{"id": "a"}\n'),
    ],
)
def test_a_file_that_is_no_file_of_scores_is_not_touched(files, name, text):
    path = files[2].with_name(name)
    path.write_text(text)
    with pytest.raises(ConfigError, match="no file of scores"):
        score_file(*files)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ['{"number": 1, "id": 7}', '{"line": 3, "note": "mine"}\n', "x"])
def test_a_file_of_ones_own_that_begins_like_ours_is_not_touched(files, text):
    for path in (files[2], files[2].with_name("out.jsonl.rejected")):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no file of scores"):
            score_file(*files)
        assert path.read_text() == text
        path.unlink()


def test_what_is_no_regular_file_is_no_output(files, tmp_path):
    for path in (tmp_path, Path(), Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"regular file|a folder"):
            score_file(files[0], files[1], path)


def test_data_of_blank_lines_has_no_row(files):
    files[1].write_text("\n\n")
    with pytest.raises(ConfigError, match="has no row"):
        score_file(*files)


def test_the_data_itself_cannot_be_the_output(files):
    before = files[1].read_text()
    with pytest.raises(ConfigError, match="no file of scores"):
        score_file(files[0], files[1], files[1])
    assert files[1].read_text() == before


def test_scores_of_other_data_are_not_mixed_in(files):
    score_file(*files)
    files[1].write_text('{"id": "a", "response": "<report>x</report>", "reference": "x"}\n')
    with pytest.raises(ConfigError, match="another set, data"):
        score_file(*files)


def test_two_processes_do_not_write_one_file(files):
    import fcntl

    with files[2].open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            score_file(*files)


def test_empty_data_and_data_from_a_pipe_are_errors(files, tmp_path):
    import os

    files[1].write_text("")
    with pytest.raises(ConfigError, match=r"data\.jsonl is empty"):
        score_file(*files)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="read only once"):
        score_file(files[0], tmp_path / "pipe", files[2])


def test_a_line_that_is_no_text_is_rejected_and_the_others_are_scored(files):
    good = b'{"id": "a", "response": "<report>x</report>", "reference": null, "report": "x"}\n'
    files[1].write_bytes(b"\xff\n" + good + b'{"id": ' + b"9" * 5000 + b"}\n")
    columns, rejected = score_file(*files)
    assert [line.number for line in rejected] == [1, 3]
    assert columns["rouge_l"].mean == 1


def test_a_line_or_a_text_that_is_too_long_is_rejected_soon_and_the_next_is_scored(files):
    good = {"id": "a", "response": "<report>Clear.</report>", "reference": "Clear."}
    text = json.dumps(good | {"response": "x" * 100_001})
    rows = [json.dumps(good), '{"id": "' + "x" * (30 << 20) + '"}', text, json.dumps(good)]
    files[1].write_text("\n".join(rows) + "\n")
    began = time.process_time()
    columns, rejected = score_file(*files)
    assert time.process_time() - began < 2
    assert columns["total"].scored == 2
    assert [row.problem for row in rejected] == [
        "the line has more than 4,194,304 bytes", "'response' has more than 100,000 characters"
    ]  # fmt: skip
    assert len(rejected[0].text) == 100_000


def test_reports_without_tags_are_read_where_tags_are_optional_and_else_warned_of(files, caplog):
    files[1].write_text('{"id": "a", "response": "Clear.", "reference": "Clear."}\n')
    columns, _ = score_file(*files)
    assert columns["rouge_l"].mean == 0
    assert "1 of 1 responses have no <report> tags" in caplog.text
    assert "`tags: optional`" in rows_of(files[2])[0]["parts"]["rouge_l"]["reason"]
    files[0].write_text(SET + "  tags: optional\n")
    files[2].unlink()
    columns, _ = score_file(*files)
    assert (columns["rouge_l"].mean, columns["format"].mean) == (pytest.approx(1), 0)


def test_a_total_on_fewer_rewards_than_the_set_has_says_so(files):
    files[1].write_text('{"id": "a", "response": "<report> Clear. </report>"}\n')
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert "1 of them on fewer rewards than the set has" in result.output
    assert rows_of(files[2])[0]["missing"] == ["rouge_l"]


def test_what_does_not_apply_is_counted_apart_from_what_a_schedule_skips(files):
    files[0].write_text("rewards: {findings_f1: {}, bleu: {every: 2}}")
    files[1].write_text('{"id": "a", "response": "<report> Clear. </report>"}\n')
    columns, _ = score_file(*files, step=1)
    findings, bleu, total = (columns[name] for name in ("findings_f1", "bleu", "total"))
    assert (findings.not_applicable, findings.skipped, findings.failed) == (1, 0, 0)
    assert (bleu.not_applicable, bleu.skipped, bleu.failed) == (0, 1, 0)
    assert (total.not_applicable, total.skipped, total.failed) == (1, 0, 0)
    assert rows_of(files[2])[0]["not_applicable"] == ["findings_f1"]


REPORTS = {
    "response": "<report> Left pleural effusion. </report>",
    "reference": "Pleural effusion. No edema.",
}


def test_explained_rows_say_what_a_reward_read_of_each_finding(files):
    files[0].write_text("rewards: {findings_f1: {}, format: {}}")
    files[1].write_text(json.dumps({"id": "a", **REPORTS}) + "\n")
    arguments = ("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert run(*arguments, "--explain").exit_code == 0
    parts = rows_of(files[2])[0]["parts"]
    edema, effusion = sorted(parts["findings_f1"]["evidence"], key=lambda row: row["finding"])
    assert effusion == {
        "finding": "Pleural Effusion", "response": "present, left", "reference": "present",
        "image": None, "agrees": True, "note": "",
    }  # fmt: skip
    assert (edema["finding"], edema["agrees"]) == ("Edema", None)
    assert parts["findings_f1"]["unexplained"] == ""
    assert "evidence" not in parts["format"]
    assert "explained otherwise" in run(*arguments).output  # explained and bare rows do not mix


def test_what_cannot_be_explained_is_said_and_ends_nothing(files, monkeypatch):
    def boom(self, sample):
        raise SystemExit("no words")

    monkeypatch.setattr("reward_sdk.rewards.findings.FindingsF1.explain", boom)
    files[0].write_text("rewards: {findings_f1: {}}")
    files[1].write_text(json.dumps({"id": "a", **REPORTS}) + "\n")
    result = run("score", "--explain", "--set", files[0], "--data", files[1], "--out", files[2])
    assert result.exit_code == 0
    assert "1 not explained: SystemExit: no words" in result.output
    part = rows_of(files[2])[0]["parts"]["findings_f1"]
    assert (part["value"], part["evidence"]) == (1.0, [])
    assert part["unexplained"] == "SystemExit: no words"


def test_rewards_can_be_named_and_tags_left_out_on_the_command_line(files):
    files[1].write_text('{"id": 7, "response": "Clear.", "reference": "Clear."}\n')
    arguments = ("--data", files[1], "--out", files[2])
    result = run("score", "--set", "rouge_l,findings_f1", "--tags", "optional", *arguments)
    assert result.exit_code == 0, result.output
    assert rows_of(files[2])[0]["total"] == pytest.approx(2)


def test_scoring_says_where_it_goes_on(files):
    run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert "out.jsonl has 180 rows; scoring others" in result.output


def test_a_row_that_lacks_a_response_says_what_it_has_and_few_of_many_are_told(files):
    files[1].write_text('{"id": 7.0, "prediction": "Clear.", "reference": NaN}\n' * 30)
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert "line 1: the row has no 'response' (a text); it has 'prediction'" in result.output
    assert "rejected: 20 more lines" in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,report\n1,Clear.\n", "CSV, not JSONL"),
        (b"\xef\xbb\xbfid;report\n", "CSV, not JSONL"),
        (b"\xff\xfe{\x00", "byte order mark"),
        (b'[{"id": "a"}]', "one JSON array"),
    ],
)
def test_data_in_another_format_is_named_with_what_to_do(files, content, message):
    files[1].write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        score_file(*files)


def test_a_byte_order_mark_of_utf_8_is_passed_over(files):
    files[1].write_bytes(b"\xef\xbb\xbf" + files[1].read_bytes())
    columns, _ = score_file(*files)
    assert columns["total"].scored == 180


def test_a_set_with_a_schedule_wants_its_step(files):
    files[0].write_text("rewards: {rouge_l: {}, findings_f1: {every: 4}}")
    with pytest.raises(ConfigError, match="--step"):
        score_file(*files)
    columns, _ = score_file(*files, step=4)
    assert columns["findings_f1"].scored == 180


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_prints_means_and_what_was_rejected(files):
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert result.exit_code == 1
    assert "rouge_l                1.000     180       0              0       0" in result.output
    assert "line 10: no JSON" in result.output
    assert "out.jsonl.rejected" in result.output


def test_ctrl_c_says_that_the_command_goes_on_where_it_was_and_exits_with_130(files, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RewardSet, "score", interrupted)
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert result.exit_code == 130
    assert "stopped; the same command goes on where it was" in result.stderr


def test_the_command_ends_with_0_where_every_row_was_scored(files):
    files[1].write_text('{"id": "a", "response": "<report>x</report>", "reference": "x"}\n')
    assert run("score", "--set", files[0], "--data", files[1], "--out", files[2]).exit_code == 0


@pytest.mark.parametrize("missing", ["set.yaml", "data.jsonl"])
def test_a_missing_file_is_named_with_exit_code_2(files, tmp_path, missing):
    (tmp_path / missing).unlink()
    result = run("score", "--set", files[0], "--data", files[1], "--out", files[2])
    assert result.exit_code == 2
    assert missing in result.output


def test_list_says_of_every_reward_its_needs_and_of_weights_whether_they_are_there(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "chexbert").mkdir()
    (tmp_path / "chexbert/chexbert.pth").touch()
    output = "\n" + run("list").output
    for name in ("bleu", "chexbert_f1", "radgraph_f1", "image_text", "length", "bertscore"):
        assert f"\n{name} " in output
    assert f"weights chexbert, found: {tmp_path}" in output
    assert "weights radgraph-xl, missing" in output
    assert "needs: image, report" in output


def test_a_calibration_is_fitted_from_the_command_line(tmp_path):
    xrv = pytest.importorskip("torchxrayvision")
    import torch
    from PIL import Image

    model = xrv.models.DenseNet(
        growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=2
    )
    model.targets, model.op_threshs = ["Edema", "Effusion"], torch.full((2,), 0.5)
    model.input_resolution = 32
    weights = tmp_path / "w.pt"
    torch.save(model, weights)
    rows = []
    for i, view in enumerate(("PA", "PA", "LATERAL")):
        Image.new("L", (40, 40), 80 * i).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"id": str(i), "image": f"{i}.png", "view": view}))
    (tmp_path / "images.jsonl").write_text("\n".join(rows))
    out = tmp_path / "calibration.json"
    result = run(
        "calibrate", "--expert", weights, "--data", tmp_path / "images.jsonl", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["images"] == 2


def test_the_bench_gives_a_line_for_every_reward_of_a_set_whatever_its_schedule(files):
    files[0].write_text("rewards: {rouge_l: {}, findings_f1: {every: 4, weight: 0}}")
    files[1].write_text('{"id": "a", "reference": "Clear."}\n')
    result = run("bench", "--set", files[0], "--data", files[1])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert [line[0] for line in lines[-2:]] == ["rouge_l", "findings_f1"]
    assert all(float(number) >= 0 for line in lines[-2:] for number in line[1:4])


def test_the_bench_names_a_reward_that_scores_nothing(files):
    files[0].write_text("rewards: {rouge_l: {}}")
    files[1].write_text('{"id": "a", "reference": ""}\n')
    assert run("bench", "--set", files[0], "--data", files[1]).exit_code == 2


def test_the_bench_gives_its_device_to_every_reward_that_runs_on_one(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def where(samples, device='cpu'):\n"
        "    return [1.0 if device == 'there' else None for _ in samples]\n"
    )
    source = {"rouge_l": {}, f"{file}:where": {}}
    samples = [Sample("<report>Clear.</report>", "Clear.")]
    assert len(list(measure(source, samples, device="there"))) == 2


def test_the_bench_wants_a_set_with_its_data(files):
    result = run("bench", "--set", files[0])
    assert result.exit_code == 2
    assert "--set and --data go together" in result.output


def test_the_bench_says_that_a_device_is_not_there():
    pytest.importorskip("torchxrayvision")
    result = run("bench", "--device", "nowhere")
    assert result.exit_code == 2
    assert result.output.startswith("error: device 'nowhere': ")
    assert len(result.output.splitlines()) == 1


def test_the_bench_without_a_set_compares_networks_with_their_plain_use(monkeypatch):
    networks = pytest.importorskip("reward_sdk.commands.networks")
    small = networks.BertConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256
    )
    monkeypatch.setattr(
        networks, "compare", partial(networks.compare, reports=2, films=2, config=small)
    )
    monkeypatch.setattr(networks, "_FILM", (300, 400))
    result = run("bench", "--device", "cpu")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["cpu", "BERT,", "BERT,", "DenseNet-121:", "a"]
    assert all(float(ratio) > 0 for ratio in re.findall(r"([\d.]+) times", result.output))


def test_a_recipe_is_a_set_too(files):
    files[0].write_text("name: x\nstage: grpo\nrewards: {format: {}}\n")
    columns, _ = score_file(*files)
    assert columns["format"].scored == 180


def test_other_keys_beside_rewards_are_refused_where_there_is_no_recipe(files):
    files[0].write_text("rewards: {format: {}}\nweights: {}\n")
    with pytest.raises(ConfigError, match="put weights there too"):
        score_file(*files)
