import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from PIL import Image  # noqa: E402

from valor_plugin.demo.model import Shape, make_model, make_processor  # noqa: E402


@pytest.fixture(scope="module")
def processor(tiny_model):
    return transformers.AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model):
    return transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)


def test_an_image_becomes_as_many_tokens_as_it_has_patches(processor, model):
    inputs = processor(
        images=Image.new("L", (40, 50)), text="<s>[INST] <image>\nDescribe. [/INST]",
        add_special_tokens=False, return_tensors="pt",
    )  # fmt: skip
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    assert model(**inputs).logits.shape[-1] == len(processor.tokenizer)


@pytest.mark.parametrize("mark", ["<report>", "</report>", "[INST]", "[/INST]", "<image>"])
def test_marks_are_one_token(processor, mark):
    assert len(processor.tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1


def test_a_decoded_response_keeps_its_tags_and_loses_its_end(processor):
    tokenizer = processor.tokenizer
    response = "<report> Lungs are clear. </report></s>"
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert " ".join(decoded.split()) == "<report> Lungs are clear. </report>"


def test_the_saved_model_is_bfloat16(tiny_model):
    assert json.loads((tiny_model / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_seed_decides_the_weights():
    shape = Shape(
        image=16, patch=8, tower=8, tower_layers=1, language=8, language_layers=1, heads=2,
        vocabulary=60,
    )  # fmt: skip
    processor = make_processor(["The lungs are clear."], shape)
    first, again, other = (
        torch.cat([p.flatten() for p in make_model(processor, shape, seed).parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_default_shape_has_the_size_that_is_said():
    shape = Shape()
    processor = make_processor(["The lungs are clear."], shape)
    processor.tokenizer.add_tokens([f"word{i}" for i in range(512 - len(processor.tokenizer))])
    parameters = sum(p.numel() for p in make_model(processor, shape, 0).parameters())
    assert round(parameters / 1e6, 1) == 2.7
