import json
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

from valor_plugin.llava_med import checkpoint  # noqa: E402
from valor_plugin.llava_med.check import check_model  # noqa: E402


@pytest.fixture(scope="module")
def model(tiny_model):
    return transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model):
    return transformers.AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture
def sharded(model, monkeypatch):
    """The model, saved in several files as a large one is."""
    monkeypatch.setattr(
        model, "save_pretrained", partial(model.save_pretrained, max_shard_size="200KB")
    )
    return model


def keys_of(folder: Path) -> list[str]:
    return [key for file in folder.glob("*.safetensors") for key in load_file(file)]


def test_saved_tower_keys_are_the_ones_that_vllm_reads(tiny_model):
    tower = [key for key in keys_of(tiny_model) if "vision_tower" in key]
    assert tower
    assert all("vision_tower.vision_model." in key for key in tower)


def test_transformers_reads_back_every_tensor_as_it_was(model, processor, tmp_path):
    checkpoint.save(model, processor, tmp_path)
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_a_saved_folder_is_a_complete_model(model, processor, tmp_path):
    checkpoint.save(model, processor, tmp_path)
    check_model(str(tmp_path))


def test_the_index_of_a_large_model_names_the_keys_that_its_files_hold(
    sharded, processor, tmp_path
):
    checkpoint.save(sharded, processor, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for file in set(index.values()):
        assert {key for key, at in index.items() if at == file} == set(load_file(tmp_path / file))


def test_a_large_model_is_read_back_as_it_was(sharded, processor, tmp_path):
    checkpoint.save(sharded, processor, tmp_path)
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in sharded.state_dict().items())


def test_the_processor_is_read_back_with_its_template(processor, tmp_path, model):
    checkpoint.save(model, processor, tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert again.chat_template == processor.chat_template
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
