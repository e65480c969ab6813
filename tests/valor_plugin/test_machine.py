"""What a run on GPUs needs of a machine, and the memory that it is estimated to need."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.recipes import recipe, with_options
from transformers import CLIPVisionConfig, LlavaConfig, MistralConfig

pytest.importorskip("openrlhf")
from valor_plugin.host import machine, memory
from valor_plugin.host.command import host_command
from valor_plugin.host.memory import GB, Memory, SupervisedMemory
from valor_plugin.llava_med.plan import model_shapes, model_sizes
from valor_plugin.recipe import Lora, find_recipe, load_recipe
from valor_plugin.run import sft
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.grpo import memory_of

FOLDER = RunFolder(Path("run"))


@pytest.fixture(scope="module")
def llava_med() -> tuple:
    """The sizes of LLaVA-Med 7B."""
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    language = MistralConfig(vocab_size=32064, num_key_value_heads=8)
    return model_shapes(LlavaConfig(vision_config=tower, text_config=language)), language


def needed(name: str, sizes: tuple, **options) -> Memory:
    """What a shipped recipe needs, with `a.b` given as `a__b`."""
    loaded = with_options(load_recipe(find_recipe(name)), **options)
    command = host_command(loaded, FOLDER, "cuda")
    adapters = loaded.model.lora or Lora()
    return memory.estimate(command.options, loaded.model.trainable, adapters, *sizes)


def test_the_policy_of_stage_2_holds_its_weights_and_little_else(llava_med):
    found = needed("valor_stage2", llava_med)
    assert found.weights == pytest.approx(15.1 * GB, rel=0.01)  # 7.57 billion in bfloat16
    assert found.reference + found.gradients + found.optimizer < 0.2 * GB


def test_zero_3_divides_weights_gradients_optimizer_and_reference_among_the_gpus(llava_med):
    eight = needed("valor_stage1", llava_med)
    of_all = eight.weights + eight.gradients + eight.optimizer
    assert of_all == pytest.approx((7.26 * 16 + 0.30 * 2) / 8 * GB, rel=0.01)
    assert eight.reference == eight.weights


def test_zero_2_divides_no_weights(llava_med):
    found = needed("valor_stage1", llava_med, ds__zero_stage=2)
    assert found.weights == pytest.approx(15.1 * GB, rel=0.01)
    assert found.optimizer == needed("valor_stage1", llava_med).optimizer


def test_an_optimizer_that_is_offloaded_takes_nothing(llava_med):
    assert needed("valor_stage1", llava_med, ds__adam_offload=True).optimizer == 0


@pytest.mark.parametrize("name", ["valor_stage1_one_gpu", "valor_stage2_one_gpu"])
def test_the_recipes_for_one_gpu_fit_into_80_gb(name, llava_med):
    assert 40 * GB < needed(name, llava_med).card < 80 * GB


def test_an_engine_that_does_not_sleep_stands_beside_all_that_training_takes(llava_med):
    found = needed("valor_stage1_one_gpu", llava_med)
    assert found.beside == found.weights + found.reference + memory._RESERVE
    assert replace(found, engine_sleeps=False).beside == found.training > found.beside


def test_checkpointing_of_gradients_saves_most_activations(llava_med):
    kept = needed("valor_stage2_one_gpu", llava_med, actor__gradient_checkpointing_enable=False)
    assert kept.activations > 3 * needed("valor_stage2_one_gpu", llava_med).activations


def test_longer_sequences_need_more_of_everything_that_grows(llava_med):
    short, long = (needed("valor_stage2", llava_med, data__max_len=n) for n in (512, 2048))
    assert long.activations == pytest.approx(4 * short.activations)
    assert long.least_engine > short.least_engine


def test_the_memory_of_a_recipe_is_read_from_the_model_that_it_names(tiny_model):
    options = host_command(recipe(tiny_model), FOLDER, "cuda").options
    found = memory_of(recipe(tiny_model), options)
    parameters = sum(
        torch.Size(shape).numel() for shape in model_sizes(str(tiny_model))[0].values()
    )
    assert found.weights == 2 * parameters
    assert "about" in str(found)


def tuned(name: str, sizes: tuple, *overrides: str) -> SupervisedMemory:
    """What a shipped recipe of stage sft needs."""
    loaded = sft.fitted(load_recipe(find_recipe(name), overrides), "cuda")
    assert loaded.sft is not None
    adapters = loaded.model.lora or Lora()
    return memory.estimate_supervised(loaded.sft, loaded.model.trainable, adapters, *sizes, 1024)


def test_zero_3_divides_all_states_of_fine_tuning_among_the_gpus(llava_med):
    found = tuned("valor_sft", llava_med)
    states = found.weights + found.gradients + found.optimizer
    assert states == pytest.approx((7.26 * 16 + 0.30 * 2) / 8 * GB, rel=0.01)
    assert found.card < 80 * GB


def test_fine_tuning_of_the_whole_does_not_fit_into_80_gb_and_that_of_adapters_does(llava_med):
    whole = tuned("valor_sft", llava_med, "sft.devices=1", "sft.zero_stage=0")
    states = whole.weights + whole.gradients + whole.optimizer
    assert states == pytest.approx((7.26 * 16 + 0.30 * 2) * GB, rel=0.01)
    assert tuned("valor_sft_one_gpu", llava_med).card < 80 * GB < whole.card


@pytest.fixture
def cards(monkeypatch):
    """Makes torch see cards: (free, total) bytes each."""

    def cards(*sizes: tuple[float, float]) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i][1])
        )
        monkeypatch.setattr(torch.cuda, "device_memory_used", lambda i: sizes[i][1] - sizes[i][0])

    return cards


def test_a_card_with_too_little_free_memory_is_told_with_what_to_lower(cards, llava_med):
    cards((79 * GB, 80 * GB), (20 * GB, 80 * GB))
    found = machine.fits(needed("valor_stage2", llava_med), 2)
    assert found.ok is None
    assert "of GPU 1 20 are. Lower openrlhf.vllm.gpu_memory_utilization" in found.detail
    assert machine.fits(needed("valor_stage2", llava_med), 1).ok, "it needs the first one only"


def test_the_policy_stands_beside_the_share_that_vllm_takes(cards, llava_med):
    found = needed("valor_stage2_one_gpu", llava_med)
    wanted = 0.4 * 80 * GB + found.weights + memory._RESERVE
    assert found.of(80 * GB) == pytest.approx(wanted, rel=0.01)
    cards((46 * GB, 80 * GB))
    assert found.card < 46 * GB, "a smaller card would do, for vLLM would take less of it"
    assert machine.fits(found, 1).ok is None


def test_a_free_card_will_do(cards, llava_med):
    cards((79 * GB, 80 * GB))
    assert machine.fits(needed("valor_stage2_one_gpu", llava_med), 1).ok


def test_vllm_refuses_a_card_whose_share_is_not_free_however_small_the_model(cards, tiny_model):
    cards((30 * GB, 80 * GB))
    options = host_command(recipe(tiny_model), FOLDER, "cuda").options
    assert options["vllm.gpu_memory_utilization"] * 80 > 30
    assert machine.fits(memory_of(recipe(tiny_model), options), 1).ok is None


def test_a_cuda_build_without_a_driver_says_what_torch_says_and_what_to_do(monkeypatch):
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", no_driver)
    [found] = machine.gpus()
    assert found.ok is False
    assert "finds no GPU: Found no NVIDIA driver on your system. Compare" in found.detail
    assert "make setup STACK=cpu" in found.detail


def test_a_cpu_build_of_torch_is_no_fault(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    [found] = machine.gpus()
    assert found.ok


def looked_at(what: str) -> machine.Check:
    [found] = [check for check in machine.system() if check.what == what]
    return found


@pytest.mark.parametrize(
    ("scope", "capabilities", "ok"),
    [
        ("0", "0000000000000000", True),
        ("1", "00000000a80425fb", None),  # root in a container
        ("1", "000001ffffffffff", True),
        ("3", "000001ffffffffff", None),
        (None, "0000000000000000", True),
    ],
)
def test_cuda_ipc_is_doubted_where_processes_may_not_look_at_each_other(
    tmp_path, monkeypatch, scope, capabilities, ok
):
    path = tmp_path / "ptrace_scope"
    if scope is not None:
        path.write_text(f"{scope}\n")
    monkeypatch.setattr(machine, "_PTRACE_SCOPE", path)
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n")
    monkeypatch.setattr(machine, "_STATUS", status)
    found = looked_at("CUDA IPC")
    assert found.ok is ok
    assert ok or "sysctl kernel.yama.ptrace_scope=0" in found.detail


@pytest.mark.parametrize(("size", "ok"), [(64e6, None), (8e9, True)])
def test_a_container_with_little_shared_memory_is_doubted(monkeypatch, size, ok):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(total=size))
    found = looked_at("shared memory")
    assert found.ok is ok
    assert ok or "0.06 GB, and 1 GB is the least: start the container with" in found.detail


def test_a_system_without_a_compiler_is_doubted(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert looked_at("compiler").ok is None
    assert "a C compiler: not there" in looked_at("compiler").detail
