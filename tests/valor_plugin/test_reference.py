"""The policy as its own reference; through the host in tests/e2e/test_same.py."""

import copy

import pytest

torch = pytest.importorskip("torch")
from valor_plugin.host.reference import ReferenceWeights, is_shared  # noqa: E402
from valor_plugin.llava_med.parts import train_only  # noqa: E402

transformers = pytest.importorskip("transformers")


@pytest.fixture
def model(tiny_model):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)
    train_only(model, ["projector"])
    return model


def trained(model) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter))


def state(model) -> dict:
    return copy.deepcopy(model.state_dict())


def same(one: dict, other: dict) -> bool:
    return all(one[name].equal(other[name]) for name in one)


def test_the_start_is_in_place_inside_and_the_policy_is_whole_afterwards(model):
    start, reference = state(model), ReferenceWeights(model, sharded=False)
    for _ in range(3):
        trained(model)
        now = state(model)
        assert not same(now, start)
        with reference.in_place():
            assert same(state(model), start)
        assert same(state(model), now)


def test_the_policy_comes_back_when_the_forward_pass_fails(model):
    reference = ReferenceWeights(model, sharded=False)
    trained(model)
    now = state(model)
    with pytest.raises(RuntimeError, match="out of memory"), reference.in_place():
        raise RuntimeError("out of memory")
    assert same(state(model), now)


def test_parameters_keep_their_storage_which_deepspeed_holds(model):
    reference = ReferenceWeights(model, sharded=False)
    before = [p.data_ptr() for p in model.parameters()]
    with reference.in_place():
        assert [p.data_ptr() for p in model.parameters()] == before
    assert [p.data_ptr() for p in model.parameters()] == before


def test_only_what_trains_is_kept(model, caplog):
    reference = ReferenceWeights(model, sharded=False)
    kept = sum(tensor.numel() for tensor in reference.kept)
    assert kept == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert "KL reference: no model, 4 tensors" in caplog.text


@pytest.mark.parametrize(
    ("parts", "shared"),
    [
        (("projector",), True),
        (("tower", "projector"), True),
        (("projector", "language"), False),
        (("tower", "projector", "language"), False),
    ],
)
def test_a_reference_of_its_own_is_started_where_the_language_model_trains(parts, shared):
    assert is_shared(parts) is shared
