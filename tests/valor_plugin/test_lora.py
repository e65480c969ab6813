"""Adapters on the language model, and a model with them shown as one without."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
from valor_plugin.host.merged import merged  # noqa: E402
from valor_plugin.llava_med import lora  # noqa: E402
from valor_plugin.llava_med.parts import part_of, train_only  # noqa: E402

IDS = torch.tensor([[1, 5, 9, 7, 11]])


@pytest.fixture
def base(tiny_model):
    return transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model).float()


@pytest.fixture
def adapted(tiny_model):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model).float()
    lora.add(model, rank=4, alpha=8)
    return model


def trained(model) -> None:
    for name, parameter in model.named_parameters():
        if part_of(name) == "lora":
            parameter.data.normal_()


def test_fresh_adapters_change_nothing(base, adapted):
    assert torch.equal(base(IDS).logits, adapted(IDS).logits)


def test_every_linear_layer_of_the_language_model_and_no_other_has_an_adapter(adapted):
    names = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    layers = adapted.config.text_config.num_hidden_layers
    assert len(names) == 7 * layers
    assert all("language_model.layers" in name for name in names)


def test_adapters_train_in_float32_whatever_the_model_is_in(tiny_model):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)
    assert model.dtype == torch.bfloat16
    lora.add(model, rank=4, alpha=8)
    kinds = {part_of(name): p.dtype for name, p in model.named_parameters()}
    assert kinds == {"lora": torch.float32} | dict.fromkeys(
        ("tower", "projector", "language"), torch.bfloat16
    )
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True, None])
def test_every_adapter_learns_with_gradient_checkpointing_and_without(adapted, reentrant):
    train_only(adapted, ["lora"])
    if reentrant is not None:
        adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
    adapted.train()
    ids = torch.tensor([[adapted.config.image_token_id] * 16 + [1, 5, 9]])
    adapted(ids, pixel_values=torch.randn(1, 3, 32, 32)).logits.square().sum().backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if ".lora_B." in n}
    assert len(grads) == 14
    assert all(grad is not None and grad.any() for grad in grads.values())


def test_a_frozen_tower_is_not_differentiated_for_adapters(adapted):
    train_only(adapted, ["lora"])
    towers = []
    adapted.model.vision_tower.register_forward_hook(lambda _m, _i, o: towers.append(o[0]))
    ids = torch.tensor([[adapted.config.image_token_id] * 16 + [1, 5, 9]])
    assert adapted(ids, pixel_values=torch.randn(1, 3, 32, 32)).logits.requires_grad
    assert not towers[0].requires_grad


def test_adapters_alone_train_and_the_table_has_them(adapted):
    table = train_only(adapted, ["lora"])
    trains = {part_of(name) for name, p in adapted.named_parameters() if p.requires_grad}
    assert trains == {"lora"}
    assert [part.part for part in table if part.trains] == ["lora"]


def test_adapters_that_were_not_added_cannot_train(base):
    with pytest.raises(ValueError, match="has no lora that could train"):
        train_only(base, ["lora"])


def test_the_plain_state_is_a_model_without_adapters_that_says_the_same(base, adapted):
    trained(adapted)
    wanted = adapted(IDS).logits
    assert not torch.allclose(wanted, base(IDS).logits, atol=1e-2)
    with merged(adapted):
        state = adapted.state_dict()
    assert state.keys() == base.state_dict().keys()
    base.load_state_dict(state)
    torch.testing.assert_close(base(IDS).logits, wanted, rtol=1e-3, atol=1e-4)


def test_what_vllm_is_sent_are_whole_weights_by_their_usual_names(base, adapted):
    train_only(adapted, ["projector", "lora"])
    trained(adapted)
    usual = dict(base.named_parameters())
    with merged(adapted):
        sent = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        state = adapted.state_dict()
    assert {part_of(name) for name in sent} == {"projector", "language"}
    for name, tensor in sent.items():
        assert tensor.shape == usual[name].shape
        assert tensor.dtype == usual[name].dtype
        assert torch.equal(tensor.data, state[name])


def test_afterwards_the_model_shows_its_adapters_again(adapted):
    before = [name for name, _ in adapted.named_parameters()]
    with pytest.raises(RuntimeError, match="disk"), merged(adapted):
        raise RuntimeError("disk full")
    assert [name for name, _ in adapted.named_parameters()] == before
    assert any("lora_A" in name for name in adapted.state_dict())


def test_a_model_without_adapters_is_shown_as_it_is(base):
    names = [name for name, _ in base.named_parameters()]
    with merged(base):
        assert [name for name, _ in base.named_parameters()] == names
        assert base.state_dict()[names[0]].data_ptr() == base.get_parameter(names[0]).data_ptr()


def test_what_is_saved_is_loaded_as_a_model_without_adapters(adapted, tmp_path):
    trained(adapted)
    with merged(adapted):
        adapted.save_pretrained(tmp_path, state_dict=adapted.state_dict())
    loaded, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(loaded(IDS).logits, adapted(IDS).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parts", [["lora"], ["projector"], ["tower", "lora"]], ids="+".join)
def test_the_optimizer_decays_matrices_and_neither_biases_nor_norms(adapted, parts):
    from valor_plugin.host.policy import optimizer_groups

    train_only(adapted, parts)
    decayed, others = optimizer_groups(adapted, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"])
    given = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in adapted.parameters() if p.requires_grad)
