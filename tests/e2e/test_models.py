"""Models of other origins through the real host, and every choice of what trains. Too slow for
`make test`."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hostrun import DEVICE, Chain, openrlhf, scalars, steps, train_on_films

from valor_plugin.demo.model import Shape
from valor_plugin.demo.model import write as write_model
from valor_plugin.llava_med.parts import part_of

pytestmark = [pytest.mark.slow, pytest.mark.host]
pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
sys.path.insert(0, str(Path(__file__).parents[1] / "valor_plugin"))


def weights(folder: Path) -> dict:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def changed(before: dict, after: dict) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not before[name].to(after[name].dtype).equal(after[name])]


def run(
    root: Path, model: Path, trainable: str = "projector", **options: object
) -> tuple[str, dict, dict]:
    """What was printed and logged, and the weights before and after."""
    chain = train_on_films(root, model, trainable, **options)
    printed = chain.printed["out"] + chain.log("out")
    return printed, weights(model), weights(root / "out/model")


def synced(root: Path) -> set[float | None]:
    """How many tensors each step sent to the engine."""
    return {step.synced["tensors"] for step in steps(Chain(root, {}), "out")}


def test_a_model_that_transformers_itself_saved_is_trained(tmp_path, tiny_model):
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaConfig

    model = tmp_path / "model"
    fresh = AutoModelForImageTextToText.from_config(LlavaConfig.from_pretrained(tiny_model))
    fresh.bfloat16().save_pretrained(model)
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(model)
    names = load_file(model / "model.safetensors").keys()
    assert not any("vision_model" in name for name in names), "transformers has changed its ways"
    printed, *_ = run(tmp_path, model)
    assert "step    2/2" in printed


def test_llava_med_in_its_original_format_is_trained_after_conversion(tmp_path):
    import sentencepiece as spm
    from test_convert import write

    prefix = tmp_path / "tokenizer"
    sentences = ["The heart is enlarged.", "No pleural effusion.", "Describe the lungs."] * 9
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences), model_prefix=str(prefix), vocab_size=300,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    source = write(tmp_path, prefix.with_suffix(".model"))
    done = openrlhf("convert", str(source), str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    printed, before, after = run(tmp_path, tmp_path / "model")
    assert "step    2/2" in printed
    assert {part_of(name) for name in changed(before, after)} == {"projector"}
    assert synced(tmp_path) == {4}


def test_every_part_trains_and_the_engine_follows_it(tmp_path, tiny_model):
    _, before, after = run(tmp_path, tiny_model, "all")
    names = changed(before, after)
    assert {part_of(name) for name in names} == {"tower", "projector", "language"}
    log = scalars(Chain(tmp_path, {}), "out")
    before_any_sync, after_one = log["train/vllm_kl"]
    assert after_one == pytest.approx(before_any_sync, rel=0.5)
    assert synced(tmp_path) == {len(before)}


@pytest.mark.gpu
def test_adapters_train_and_vllm_and_the_next_stage_get_whole_weights(tmp_path, tiny_model):
    model = "lora, lora: {rank: 8, alpha: 32}"
    printed, before, after = run(
        tmp_path, tiny_model, model, actor__gradient_checkpointing_enable="true"
    )
    names = changed(before, after)
    assert {part_of(name) for name in names} == {"language"}
    assert len(names) == 14  # of two layers, seven each
    assert all(name.endswith("_proj.weight") for name in names)
    assert synced(tmp_path) == {14}
    assert "KL reference: no model, 28 tensors" in printed
    log = scalars(Chain(tmp_path, {}), "out")
    assert log["train/kl"][0] == 0
    before_any_sync, after_one = log["train/vllm_kl"]
    assert after_one == pytest.approx(before_any_sync, rel=0.5)


@pytest.mark.gpu
def test_the_language_model_trains_under_zero_3_beside_a_reference_of_its_own(tmp_path, tiny_model):
    printed, before, after = run(
        tmp_path, tiny_model, "[projector, language]", ds__zero_stage=3,
        algo__kl__use_loss="true", train__num_episodes=2, vllm__enforce_eager="false",
    )  # fmt: skip
    assert "ReferenceModelActor" in printed
    names = changed(before, after)
    assert {part_of(name) for name in names} == {"projector", "language"}
    trained = [name for name in before if part_of(name) != "tower"]
    assert synced(tmp_path) == {len(trained)}
    log = scalars(Chain(tmp_path, {}), "out")
    assert log["train/kl"][0] == pytest.approx(0, abs=1e-3)
    assert log["train/kl"][-1] != 0
    assert all(abs(kl) < 0.1 for kl in log["train/vllm_kl"])
    if DEVICE == "cuda":
        assert "enforce_eager=False" in printed, "CUDA graphs are on"


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs")
def test_the_projector_trains_alone_under_zero_3_on_two_processes(tmp_path):
    # Wide enough for DeepSpeed to take tensors apart and gather them again. In the second episode
    # a process meets images that the other one has encoded: both must enter the tower, or none.
    shape = Shape(image=64, patch=16, tower=384, tower_layers=3, language=512, language_layers=2,
                  heads=4, key_value_heads=2, vocabulary=120)  # fmt: skip
    model = tmp_path / "model"
    write_model(model, ["No pleural effusion.", "The heart is enlarged."] * 9, shape)
    printed, before, after = run(
        tmp_path, model, ds__zero_stage=3, actor__gradient_checkpointing_enable="true",
        actor__num_gpus_per_node=2, rollout__micro_batch_size=4, train__micro_batch_size=4,
        train__num_episodes=2,
    )  # fmt: skip
    assert "step    4/4" in printed
    names = changed(before, after)
    assert {part_of(name) for name in names} == {"projector"}
    assert len(names) == 4
    assert synced(tmp_path) == {4}
    log = scalars(Chain(tmp_path, {}), "out")
    assert log["train/kl"][0] == 0
    assert log["train/kl"][-1] != 0
    assert all(abs(kl) < 0.1 for kl in log["train/vllm_kl"])
    assert all(abs(loss) < 10 for loss in log["train/policy_loss"])
