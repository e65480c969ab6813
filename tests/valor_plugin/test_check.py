"""Whether a model folder can be loaded, by its files alone."""

import json
from pathlib import Path

import pytest

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
