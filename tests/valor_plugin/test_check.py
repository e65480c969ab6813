"""Whether a model folder can be loaded, by its files alone."""

import json
from pathlib import Path

import pytest
from support.hostrun import openrlhf

from reward_sdk.errors import ConfigError
from valor_plugin.llava_med.check import check_model


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


HOSTILE = "open({marker!r}, 'w').close()\nclass Config: pass\n"


@pytest.fixture
def hostile(model, tmp_path):
    """Adds Python code that leaves a mark to the model; what must not be there afterwards."""

    def hostile(file: str, *keys: str) -> Path:
        (model / "code.py").write_text(HOSTILE.format(marker=str(tmp_path / "executed")))
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


@pytest.mark.parametrize("command", ["train", "doctor", "convert"])
def test_no_command_executes_code_of_a_model_folder(model, hostile, tmp_path, command):
    pytest.importorskip("openrlhf")
    marker = hostile("config.json")
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
    done = openrlhf(*arguments[command])
    assert done.returncode == (1 if command == "doctor" else 2), done.stdout + done.stderr
    assert "holds Python code" in done.stdout + done.stderr
    assert not marker.exists()
