"""Whether a model folder can be loaded, by its files alone."""

import json
import struct
from pathlib import Path

import pytest
from support.hostile import HOSTILE
from support.hostrun import openrlhf

from reward_sdk.errors import ConfigError
from valor_plugin.evaluation.generate import generate
from valor_plugin.llava_med.check import check_model
from valor_plugin.llava_med.original import find_shards
from valor_plugin.llava_med.plan import plan


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model's folder by links, from which files can be removed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("index", ['{"metadata": {}', "{}", "[]", '{"weight_map": ["a"]}'])
def test_a_damaged_shard_index_is_refused(model, index):
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"index\.json is cut short or damaged"):
        check_model(str(model))


def test_weights_that_are_cut_short_are_refused(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors .* cut short or damaged"):
        check_model(str(model))


def test_a_shard_that_the_index_names_must_be_there(model):
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lacks model-00002-of-00002\.safetensors"):
        check_model(str(model))


def test_a_complete_model_passes(model):
    check_model(str(model))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights"),
        ("processor_config.json", "has no processor_config.json"),
        ("tokenizer_config.json", "has no tokenizer_config.json"),
    ],
)
def test_an_incomplete_model_is_refused_with_what_it_lacks(model, file, why):
    (model / file).unlink()
    with pytest.raises(ConfigError, match=why):
        check_model(str(model))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('{"model_type": "mistral"}', "is of type 'mistral'"),
        ("{}", "is of type None"),
        ("[]", "config.json of .* is no JSON object"),
        ("{", "config.json of .* is no JSON object"),
        ("", "config.json of .* is no JSON object"),
    ],
)
def test_another_kind_of_model_is_refused(model, config, why):
    (model / "config.json").unlink()
    (model / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ConfigError, match=why):
        check_model(str(model))


def test_a_run_learns_the_image_token_and_the_positions_of_its_model(model):
    pytest.importorskip("transformers")
    token = json.loads((model / "config.json").read_text())["image_token_index"]
    known = check_model(str(model))
    assert (known.image_tokens, known.positions) == ((token,), 512)


CODE = "open({marker!r}, 'w').close()\nclass Config: pass\n"


@pytest.fixture
def hostile(model, tmp_path):
    """Adds Python code that leaves a mark to the model; what must not be there afterwards."""

    def hostile(file: str, *keys: str) -> Path:
        (model / "code.py").write_text(CODE.format(marker=str(tmp_path / "executed")))
        content = json.loads((model / file).read_text())
        below = content
        for key in keys:
            below = below[key]
        below["auto_map"] = {"AutoConfig": "code.Config"}
        (model / file).unlink()
        (model / file).write_text(json.dumps(content))
        return tmp_path / "executed"

    return hostile


NAMED = [
    ("config.json",), ("config.json", "text_config"), ("tokenizer_config.json",),
    ("processor_config.json",), ("processor_config.json", "image_processor"),
]  # fmt: skip


@pytest.mark.parametrize("named", NAMED, ids=".".join)
def test_a_model_that_names_code_is_refused_with_the_file(model, hostile, named):
    hostile(*named)
    with pytest.raises(ConfigError, match=r"code\.py: a model folder that holds Python code"):
        check_model(str(model))
    (model / "code.py").unlink()  # it may lie on a hub
    with pytest.raises(ConfigError, match=rf"{named[0]}: names Python code under 'auto_map'"):
        check_model(str(model))


@pytest.fixture
def run(model, tmp_path):
    """What a command about the model prints; the command has to refuse the model."""
    pytest.importorskip("openrlhf")
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(
        f"name: r\nstage: sft\nmodel: {{path: {model}, trainable: projector}}\n"
        f"data: {{train: {tmp_path}/none.jsonl}}\nsft: {{steps: 1}}\n"
    )
    arguments = {
        "train": ["train", "--recipe", str(recipe), "--out", str(tmp_path / "out")],
        "doctor": ["doctor", str(model)],
        "convert": ["convert", str(model), str(tmp_path / "converted")],
    }

    def run(command: str) -> str:
        done = openrlhf(*arguments[command])
        printed = done.stdout + done.stderr
        assert done.returncode == (1 if command == "doctor" else 2), printed
        assert "Traceback" not in printed
        return printed

    return run


COMMANDS = ("train", "doctor", "convert")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_executes_code_of_a_model_folder(hostile, run, command):
    marker = hostile("config.json")
    assert "holds Python code" in run(command)
    assert not marker.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_executes_a_torchscript_archive_among_the_weights(model, tmp_path, run, command):
    HOSTILE["TorchScript"](model / "pytorch_model.bin", tmp_path / "executed")
    assert "a TorchScript archive" in run(command)
    assert not (tmp_path / "executed").exists()


def test_no_model_that_holds_code_writes_reports(model, hostile):
    marker = hostile("config.json")
    with pytest.raises(ConfigError, match="holds Python code"):
        generate(model, [], "Describe.", temperature=0, max_new_tokens=1)
    assert not marker.exists()


NO_LOADER_TAKES = ("folder", "link to nothing")
COSTS_NOTHING = ("memo that lies",)


@pytest.mark.parametrize("kind", [k for k in HOSTILE if k not in NO_LOADER_TAKES + COSTS_NOTHING])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "mm_projector.pth"])
def test_pickled_weights_of_more_than_tensors_are_refused(model, tmp_path, kind, name):
    HOSTILE[kind](model / name, tmp_path / "executed")
    for check in (lambda: check_model(str(model)), lambda: plan(model)):
        with pytest.raises(ConfigError, match=name.replace(".", r"\.") + "|pipe"):
            check()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("adapter_config.json", "{}", "holds an adapter"),
        ("more.json", '{"configuration_files": ["config.4.0.0.json"]}', "another file to be read"),
        ("more.json", '{"a": [{"attn_implementation": "stranger/kernel"}]}', "a kernel of the hub"),
        (
            "more.json",
            '{"_attn_implementation": {"text": "stranger/kernel"}}',
            "a kernel of the hub",
        ),
    ],
)
def test_what_would_lead_a_loader_elsewhere_is_refused(model, file, content, why):
    (model / file).write_text(content)
    with pytest.raises(ConfigError, match=why):
        check_model(str(model))


def test_what_a_trainer_leaves_beside_a_model_is_not_looked_at(model):
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (model / name).write_bytes(b"anything")
    check_model(str(model))


def with_header(length: int, end: int) -> bytes:
    """A safetensors file of eight bytes in one tensor, whose header says its own length and end."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", length or len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    ("length", "end"), [(1 << 62, 8), (1 << 20, 8), (8, 8), (0, 1 << 40), (0, 4)]
)
def test_safetensors_whose_sizes_lie_are_refused(model, length, end):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(with_header(length, end))
    for check in (lambda: check_model(str(model)), lambda: find_shards(model)):
        with pytest.raises(ConfigError, match=r"model\.safetensors is .*cut short"):
            check()


def test_safetensors_whose_sizes_are_true_are_read(model):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(with_header(0, 8))
    assert find_shards(model)[0].names == ("a",)
