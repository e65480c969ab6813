from itertools import combinations

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from valor_plugin.llava_med.parts import PARTS, part_of, train_only  # noqa: E402

SUBSETS = [parts for n in (1, 2, 3) for parts in combinations(PARTS, n)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)


@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_exactly_the_wanted_parts_train(model, parts):
    train_only(model, parts)
    assert all(p.requires_grad == (part_of(name) in parts) for name, p in model.named_parameters())


def test_every_part_has_parameters(model):
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("tower", lambda m: m.model.vision_tower),
        ("projector", lambda m: m.model.multi_modal_projector),
        ("language", lambda m: m.model.language_model),
        ("language", lambda m: m.lm_head),
    ],
)
def test_parts_are_the_modules_of_their_names(model, part, module):
    wanted = {id(p) for p in module(model).parameters()}
    assert {part_of(n) for n, p in model.named_parameters() if id(p) in wanted} == {part}


def test_the_projector_is_two_layers_with_biases(model):
    names = [name for name, _ in model.named_parameters() if part_of(name) == "projector"]
    assert len(names) == 4


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "tower"),
        ("vision_tower.vision_model.post_layernorm.bias", "tower"),
        ("multi_modal_projector.linear_2.bias", "projector"),
        ("language_model.model.layers.0.self_attn.q_proj.weight", "language"),
        ("language_model.lm_head.weight", "language"),
        ("lm_head.weight", "language"),
        ("module.model.language_model.embed_tokens.weight", "language"),
    ],
)
def test_names_of_every_generation_of_transformers_are_understood(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.weight", "visual.blocks.0.weight", "my_vision_tower.weight", ""]
)
def test_a_parameter_outside_of_all_parts_is_an_error(name):
    with pytest.raises(ValueError, match="belongs to none of the parts"):
        part_of(name)


def test_a_part_that_the_model_lacks_is_an_error(model):
    class LanguageOnly:
        def named_parameters(self):
            return [(n, p) for n, p in model.named_parameters() if part_of(n) == "language"]

    with pytest.raises(ValueError, match="LanguageOnly has no projector that could train"):
        train_only(LanguageOnly(), ["projector"])


def test_the_table_tells_what_trains_and_what_is_frozen(model):
    table = train_only(model, ["projector"])
    assert [(row.part, row.trains) for row in table] == [
        ("tower", False), ("projector", True), ("language", False)
    ]  # fmt: skip
    assert sum(row.parameters for row in table) == sum(p.numel() for p in model.parameters())
    assert sum(row.tensors for row in table) == len(list(model.parameters()))
