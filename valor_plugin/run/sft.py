"""Stage 0: supervised fine-tuning on TRL's SFTTrainer, before any reward is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from reward_sdk.errors import ConfigError
from reward_sdk.text import wrap_report
from valor_plugin.data.prompts import question
from valor_plugin.data.studies import Study, read_studies
from valor_plugin.llava_med.check import check_model
from valor_plugin.recipe import Lora, Recipe
from valor_plugin.records import write_trainable
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.studies import shown


def describe(recipe: Recipe) -> str:
    """What a run would do: the class that trains, and the resolved recipe."""
    return f"# trl.SFTTrainer with\n{recipe.to_yaml()}"


def train(recipe: Recipe, folder: RunFolder, device: str) -> Path:
    """Fine-tunes the recipe's model on its studies' reports; returns the new model's folder.

    Only the report and its closing token carry loss. Weights are trained in float32 on a CPU and
    in bfloat16 on a GPU, and saved in bfloat16.

    Raises:
        ConfigError: files are missing or wrong; nothing was trained.
        ScoringError: an image cannot be decoded.
    """
    folder.check()
    check_model(recipe.model.path)
    studies = [study for study in read_studies(recipe.data.train) if study.report]
    studies = shown(recipe, studies)
    if not studies:
        raise ConfigError(f"{recipe.data.train}: no study has a 'report' to learn from")
    folder.begin(recipe.to_yaml(), device)
    return _train(recipe, studies, folder, device)


def rows(recipe: Recipe, studies: Sequence[Study]) -> dict[str, list]:
    """The columns of TRL's dataset: a study's question, its report as the answer, and the paths of
    the images that are shown, which TRL puts before the question."""
    data = recipe.data
    return {
        "prompt": [
            [{"role": "user", "content": question(data.prompt, study)}] for study in studies
        ],
        "completion": [
            [{"role": "assistant", "content": wrap_report(study.report or "")}] for study in studies
        ],
        "images": [study.shown(data.most_images) for study in studies],
    }


def _train(recipe: Recipe, studies: Sequence[Study], folder: RunFolder, device: str) -> Path:
    import torch
    from datasets import Dataset
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from valor_plugin.llava_med import checkpoint, lora
    from valor_plugin.llava_med.parts import train_only
    from valor_plugin.llava_med.processor import open_rgb

    sft = recipe.sft
    assert sft is not None  # the recipe's own validator
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    processor = AutoProcessor.from_pretrained(recipe.model.path)
    model = LlavaForConditionalGeneration.from_pretrained(recipe.model.path, dtype=dtype)
    if "lora" in recipe.model.trainable:
        sizes = recipe.model.lora or Lora()
        lora.add(model, sizes.rank, sizes.alpha)
    table = train_only(model, recipe.model.trainable)
    write_trainable(folder.trainable, table)
    for part in table:
        click.echo(part)

    def opened(batch: dict) -> dict:
        return batch | {"images": [[open_rgb(path) for path in row] for row in batch["images"]]}

    dataset = Dataset.from_dict(rows(recipe, studies)).with_transform(opened)
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=dataset,
        args=SFTConfig(
            output_dir=str(folder.path / "trainer"),
            max_steps=sft.steps,
            per_device_train_batch_size=sft.batch_size,
            learning_rate=sft.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(0.03 * sft.steps)),  # borrowed: LLaVA-1.5
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=device == "cuda",
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            seed=recipe.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
        ),
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    (folder.path / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    checkpoint.save(model.bfloat16(), processor, folder.unsaved)
    return folder.finish()
