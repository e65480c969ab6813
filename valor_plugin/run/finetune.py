"""A process of supervised fine-tuning: TRL's SFTTrainer on the rows in a run's folder.

`valor_plugin.run.process` starts `python -m valor_plugin.run.finetune FOLDER DEVICE`, under torch's
launcher where there are several devices. The recipe is the resolved one in the folder.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from valor_plugin import records
from valor_plugin.host import failures
from valor_plugin.llava_med import checkpoint, lora
from valor_plugin.llava_med.parts import train_only
from valor_plugin.llava_med.processor import open_rgb
from valor_plugin.recipe import Lora, Recipe, Sft
from valor_plugin.records import SupervisedStep, finite
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.sft import SETTINGS

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_FINITE = ("loss", "grad_norm", "eval_loss")  # else the weights are none, or soon will be
_READERS = 4  # ours: processes a GPU that open images


class _When(TrainerCallback):
    """Says after which steps there is an evaluation, or a checkpoint. The model itself is saved
    after the last step, so there is no checkpoint."""

    def __init__(self, sft: Sft, evaluates: bool) -> None:
        self._sft, self._evaluates = sft, evaluates

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        last = state.global_step >= state.max_steps
        every = self._sft.eval_every
        control.should_evaluate = self._evaluates and (last or state.global_step % every == 0)
        every = self._sft.save_every
        control.should_save = every is not None and not last and state.global_step % every == 0


class Trainer(SFTTrainer):
    """TRL's trainer, with the run's records, whole checkpoints, and the loss of an evaluation as
    the mean over all tokens.

    Args:
        folder: the run's folder.
        sft: how it trains.
        options: keyword arguments of TRL's trainer.
    """

    def __init__(self, folder: RunFolder, sft: Sft, **options: Any) -> None:
        evaluates = options.get("eval_dataset") is not None
        super().__init__(**options, callbacks=[_When(sft, evaluates)])
        self._folder, self._sft = folder, sft
        self._record: SupervisedStep | None = None
        self._tokens = 0
        self._began = time.perf_counter()

    def get_batch_samples(self, *args: Any) -> Any:
        samples, tokens = super().get_batch_samples(*args)
        self._tokens = int(tokens or 0)
        return samples, tokens

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **options)
        self._began = time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        broken = [name for name in _FINITE if not math.isfinite(logs.get(name, 0.0))]
        waits = self.control.should_evaluate and not broken
        if "loss" in logs:
            norm = logs.get("grad_norm")
            self._record = SupervisedStep(
                step=self.state.global_step,
                time=records.now(),
                loss=finite(logs["loss"]),
                learning_rate=logs["learning_rate"],
                gradient_norm=None if norm is None else finite(norm),
                tokens=self._tokens,
                seconds=time.perf_counter() - self._began,
            )
        elif "eval_loss" in logs and self._record is not None:
            self._record = replace(self._record, evaluation_loss=finite(logs["eval_loss"]))
            waits = False
        if self._record is not None and not waits:
            if self.is_world_process_zero():
                records.append(self._folder.steps, self._record)
            self._record = None
        if broken:
            raise FloatingPointError(
                f"step {self.state.global_step}: {broken[0]} is {logs[broken[0]]}, from which "
                "training does not recover: lower sft.learning_rate"
            )

    def evaluation_loop(
        self, dataloader: Any, description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        """The mean over all tokens of the held-out answers; transformers' own takes that of
        batches, which depends on their size."""
        model: Any = self.model_wrapped
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        studies = 0
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                out = model(**inputs, fused_lm_head=True)
            sums = torch.stack([-out.log_probs.double().sum(1), out.label_mask.double().sum(1)], 1)
            rows: Any = self.accelerator.gather_for_metrics(sums)  # without those that only fill up
            total += rows.sum(0).cpu()
            studies += len(rows)
        loss = (total[0] / total[1]).item()
        metrics = {f"{metric_key_prefix}_loss": loss}
        return EvalLoopOutput(None, None, metrics, studies)  # type: ignore[arg-type]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keeps a checkpoint of the best evaluation, and ends the run after too many others."""
        state, loss = self.state, metrics["eval_loss"]
        patience = self._sft.early_stop
        if patience is None:
            return False
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
            self.control.should_save = state.global_step < state.max_steps
        elif state.global_step - (state.best_global_step or 0) >= patience * self._sft.eval_every:
            self.control.should_training_stop = True
            self.control.should_save = False  # else a run that goes on from there trains on
        return False

    def load_best(self) -> None:
        """Takes the weights back that had the lowest evaluation loss, if the run stops early."""
        best = self.state.best_global_step
        if best not in (None, self.state.global_step):
            self.state.best_model_checkpoint = str(self._folder.whole_checkpoint(best))
            self._load_best_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_deepspeed_enabled:  # whose own files in a checkpoint hold the weights
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Of a checkpoint's weights, those that train."""
        folder = Path(output_dir or self.args.output_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.model
        trained = {
            name: parameter.detach().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing: what does not train is missing in every checkpoint."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super(SFTTrainer, self)._save_checkpoint(model, trial)  # TRL's writes a model card
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._folder.close_checkpoint(self.state.global_step, self.state.best_global_step)

    def whole_state(self) -> dict[str, Any]:
        """Every weight of the model, with adapters added, in bfloat16; empty but in the first
        process."""
        state: Any
        if self._sft.zero_stage == 3:  # every process has a part
            state = self.accelerator.get_state_dict(self.model_wrapped)
        else:
            state = lora.merged_state(self.model)
        if not self.is_world_process_zero():
            return {}
        return {name: tensor.bfloat16().cpu() for name, tensor in state.items()}


def train(folder: RunFolder, sft: Sft, device: str) -> None:
    """Trains what the folder's recipe says, and leaves the model in `folder.unsaved`.

    Args:
        folder: the run's folder, with recipe and rows.
        sft: how it trains, in the place of what the recipe says of it.
        device: "cpu" or "cuda".
    """
    content = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(content).model_copy(update={"sft": sft})
    dataset = _dataset(folder.rows)
    arguments = _arguments(recipe, sft.steps_of(len(dataset)), folder, device)
    set_seed(recipe.seed)  # of the adapters
    processor = AutoProcessor.from_pretrained(recipe.model.path)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = LlavaForConditionalGeneration.from_pretrained(recipe.model.path, dtype=dtype)
    if "lora" in recipe.model.trainable:
        sizes = recipe.model.lora or Lora()
        lora.add(model, sizes.rank, sizes.alpha)
    table = train_only(model, recipe.model.trainable)
    if not sft.zero_stage:  # DeepSpeed keeps float32 weights of its own
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainer = Trainer(
        folder,
        sft,
        model=model,
        processing_class=processor,
        train_dataset=dataset,
        eval_dataset=None if recipe.data.validate is None else _dataset(folder.held_out),
        args=arguments,
    )
    first = trainer.is_world_process_zero()
    if first:
        records.write_trainable(folder.trainable, table)
    if last := folder.last_checkpoint:
        best = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)).best_global_step
        if best is not None:  # now, not after the last step
            folder.whole_checkpoint(best)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.load_best()
    state = trainer.whole_state()
    if wrong := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise FloatingPointError(
            f"{wrong} has values that are not finite after step {trainer.state.global_step}: "
            "lower sft.learning_rate"
        )
    if first:
        checkpoint.save(model.bfloat16(), processor, folder.unsaved, state)
    trainer.accelerator.end_training()


def _dataset(rows: Path) -> Dataset:
    """The rows of a file, whose images are opened when a batch is made."""

    def opened(batch: dict) -> dict:
        return batch | {"images": [[open_rgb(path) for path in row] for row in batch["images"]]}

    with rows.open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines]).with_transform(opened)


def _arguments(recipe: Recipe, steps: int, folder: RunFolder, device: str) -> SFTConfig:
    sft = recipe.sft
    assert sft is not None  # the recipe's own validator
    assert sft.devices is not None  # `sft.fitted` has filled in all that depends on the device
    assert sft.micro_batch_size is not None
    gpu = device == "cuda"
    return SFTConfig(
        output_dir=str(folder.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=sft.micro_batch_size,
        per_device_eval_batch_size=sft.micro_batch_size,
        gradient_accumulation_steps=sft.batch_size // (sft.devices * sft.micro_batch_size),
        learning_rate=sft.learning_rate,
        lr_scheduler_type=_SCHEDULES[sft.schedule],
        warmup_steps=max(1, round(sft.warmup * steps)) if sft.warmup else 0,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=bool(sft.gradient_checkpointing),
        bf16=gpu,
        use_cpu=not gpu,
        ddp_backend=None if gpu or sft.devices == 1 else "gloo",
        # The tower's last layer is not used.
        ddp_find_unused_parameters="tower" in recipe.model.trainable,
        deepspeed=_zero(sft.zero_stage) if sft.zero_stage else None,
        dataloader_num_workers=_READERS if gpu else 0,
        dataloader_pin_memory=gpu,
        seed=recipe.seed,
        save_strategy="no",  # `_When` says when
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
    )


def _zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" is what the Trainer's arguments say."""
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": stage == 3,
        },
        "zero_allow_untested_optimizer": True,  # torch's AdamW, see host/adam.py
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }


def main() -> None:
    folder = RunFolder(Path(sys.argv[1]))
    try:
        sft = Sft.model_validate(json.loads(os.environ[SETTINGS])["sft"])
        train(folder, sft, sys.argv[2])
    except Exception as error:
        told = failures.failure(f"process {os.environ.get('RANK', 0)}", error)
        if not failures.lost_a_peer(told):  # which has a cause of its own
            records.append(folder.failures, told)
        raise


if __name__ == "__main__":
    main()
