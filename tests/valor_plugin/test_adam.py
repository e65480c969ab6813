"""torch's AdamW in the place of DeepSpeed's."""

from types import SimpleNamespace

import pytest

pytest.importorskip("deepspeed")
import torch
from deepspeed.ops.adam import fused_adam
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from valor_plugin.host.adam import torch_adam

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture
def adam(monkeypatch) -> type:
    found = torch_adam(fused_adam.FusedAdam, SimpleNamespace())
    monkeypatch.setattr(fused_adam, "FusedAdam", found)
    return found


def train(optimizer_class: type, steps: int, **options) -> tuple:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = optimizer_class([weight], **OPTIONS, **options)
    for _ in range(steps):
        weight.grad = weight.detach().sin()
        optimizer.step()
    return weight, optimizer


def test_it_steps_as_torchs_own_adamw(adam):
    found, _ = train(adam, 5, adam_w_mode=True)
    expected, _ = train(torch.optim.AdamW, 5)
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


def sleep(optimizer: torch.optim.Optimizer) -> None:
    """What DeepSpeed does with an optimizer under ZeRO-3, as far as it goes without parameters."""
    policy = SimpleNamespace(
        optimizer=optimizer, offloaded_states=set(), empty_partition_cache=lambda: None
    )
    DeepSpeedZeroOptimizer_Stage3.offload_states(policy)


def test_deepspeed_lets_it_sleep_under_zero_3_and_no_other(adam):
    with pytest.raises(AssertionError, match="only for DeepSpeed FusedAdam"):
        sleep(train(torch.optim.AdamW, 1)[1])
    with pytest.raises(AttributeError, match="has no attribute"):  # the question is behind it
        sleep(train(adam, 1)[1])


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor([3.0]), torch.full((4,), 3.0)])
def test_it_goes_on_from_a_step_as_a_checkpoint_gives_it_back(adam, step):
    expected, _ = train(adam, 4)
    found, optimizer = train(adam, 3)
    optimizer.state[found]["step"] = step
    found.grad = found.detach().sin()
    optimizer.step()
    assert torch.equal(found, expected)
    assert optimizer.state[found]["step"].item() == 4


def test_plain_adam_is_refused(adam):
    with pytest.raises(ValueError, match="only decoupled weight decay"):
        train(adam, 0, adam_w_mode=False)
