"""A recipe as the host's command line, checked as far as that goes without data, weights or Ray."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from valor_plugin.run import folder
from valor_plugin.host import options, reference
from valor_plugin.host.seams import check_host
from valor_plugin.recipe import Recipe

_REFUSED = {
    "train.async_enable": "rewards need the policy step, which asynchronous rollouts do not have",
    "ds.lora.rank": "set `model: {train: lora, lora: {rank: 128, alpha: 256}}` instead",
    "train.dynamic_batch_enable": "it packs samples, which the host cannot do with images",
    "ds.ring_attn_size": "it packs samples, which the host cannot do with images",
    "train.enable_ema": "no checkpoint holds the average, and none of LoRA's factors would do",
    "eval.dataset": "evaluate the saved model instead",
}


def host_options(recipe: Recipe, out: Path, device: str, resumes: bool = False) -> dict[str, Any]:
    """The complete options of the host for this run."""
    from valor_plugin.host import executor_path

    result: dict[str, Any] = {"algo.advantage.estimator": "group_norm", **recipe.openrlhf}
    if recipe.advantage.rank != "off":
        estimator = recipe.openrlhf.get("algo.advantage.estimator", "dr_grpo")
        if estimator != "dr_grpo":
            raise ConfigError(
                f"advantage.rank {recipe.advantage.rank!r} replaces the host's estimator, but "
                f"openrlhf.algo.advantage.estimator is {estimator!r}: leave it out, or set "
                "`advantage: {rank: off}`"
            )
        result["algo.advantage.estimator"] = estimator
    result |= {
        "actor.model_name_or_path": recipe.model.path,
        "data.prompt_dataset": str(out / "train.jsonl"),
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.image_key": "images",
        "data.apply_chat_template": True,
        "data.max_images_per_prompt": 1,
        "train.agent_func_path": executor_path(),
        "train.seed": recipe.seed,
        "ckpt.output_dir": str(runfolder.unsaved(out)),
        "ckpt.path": str(out / "checkpoints"),
        "ckpt.load_enable": resumes,
        "logger.tensorboard_dir": str(out / "tensorboard"),
        "logger.wandb.run_name": recipe.name,
    }
    if reference.is_shared(recipe.model.train):
        result["train.colocate_actor_ref"] = True
        for size in ("num_nodes", "num_gpus_per_node"):  # which the host then compares
            result[f"ref.{size}"] = result.get(f"actor.{size}")
    if device == "cpu":
        from valor_plugin.host import cpu

        result |= cpu.HOST_OPTIONS
    return result


def host_arguments(
    recipe: Recipe, where: str, out: Path, device: str, resumes: bool = False
) -> list[str]:
    """The host's complete and checked command line for this run.

    Raises:
        ConfigError: in the host's words, for options that do not go together.
    """
    arguments = options.arguments(host_options(recipe, out, device, resumes))
    chosen = vars(options.parser().parse_args(arguments))
    for name in _AT_LEAST_1:
        if chosen[name] is not None and chosen[name] < 1:
            raise ConfigError(f"{where}: openrlhf.{name} must be at least 1, not {chosen[name]}")
    if chosen["vllm.num_engines"] is None:
        raise ConfigError(
            f"{where}: openrlhf.vllm.num_engines says how many engines generate: set it"
        )
    if "lora" in recipe.model.train:
        for name, most in (("ds.zero_stage", 2), ("ds.tensor_parallel_size", 1),
                           ("ds.load_in_4bit", False)):  # fmt: skip
            if chosen[name] > most:
                raise ConfigError(
                    f"{where}: openrlhf.{name} {chosen[name]} does not go with `model.train: "
                    "lora`, whose weights are put together whole in every process"
                )
    saves = chosen["ckpt.save_steps"]
    if saves != -1 and saves < 1:
        raise ConfigError(
            f"{where}: openrlhf.ckpt.save_steps must be at least 1, or -1 for no checkpoints"
        )
    if saves != -1 and chosen["ckpt.max_num"] < 2:
        raise ConfigError(
            f"{where}: openrlhf.ckpt.max_num must be at least 2, because the host removes an old "
            "checkpoint before it has written the new one"
        )
    options.validate(arguments, where)
    rollout = chosen["rollout.batch_size"] * chosen["rollout.n_samples_per_prompt"]
    if rollout % chosen["train.batch_size"]:
        raise ConfigError(
            f"{where}: openrlhf.train.batch_size {chosen['train.batch_size']} does not divide a "
            f"rollout of {rollout} samples (rollout.batch_size x rollout.n_samples_per_prompt)"
        )
    check_gpus(chosen, where)
    if device == "cpu":
        from valor_plugin.host import cpu

        if (wanted := gpus(chosen)) > cpu.LOGICAL_GPUS:
            raise ConfigError(
                f"{where}: without a GPU, actor, reference and engines can have {cpu.LOGICAL_GPUS} "
                f"processes together; the recipe asks for {wanted}. Set "
                "openrlhf.actor.num_gpus_per_node (the host's default is 8), "
                "openrlhf.ref.num_gpus_per_node and openrlhf.vllm.num_engines to 1."
            )
    return arguments


_AT_LEAST_1 = (
    "vllm.num_engines", "vllm.tensor_parallel_size", "rollout.batch_size",
    "rollout.n_samples_per_prompt", "rollout.micro_batch_size", "rollout.max_new_tokens",
    "train.batch_size", "train.micro_batch_size", "train.num_episodes", "data.max_len",
    "data.max_samples", "actor.num_nodes", "actor.num_gpus_per_node", "ds.ring_attn_size",
    "ds.tensor_parallel_size", "logger.logging_steps",
)  # fmt: skip


def gpus(chosen: Mapping[str, Any]) -> int:
    """How many GPUs the host will reserve under these options."""
    actor = chosen["actor.num_nodes"] * chosen["actor.num_gpus_per_node"]
    reference = chosen["ref.num_nodes"] * chosen["ref.num_gpus_per_node"]
    engines = chosen["vllm.num_engines"] * chosen["vllm.tensor_parallel_size"]
    if chosen["train.colocate_all"]:
        return actor
    if chosen["train.colocate_actor_ref"] or not chosen["algo.kl.init_coef"]:
        return actor + engines
    return actor + reference + engines


def check_gpus(chosen: Mapping[str, Any], where: str) -> None:
    """That the parts fit together as the host demands once Ray is up.

    Raises:
        ConfigError: parts that share GPUs have not the same number of them, or a batch cannot be
            dealt out to the actor's.
    """
    actor = chosen["actor.num_nodes"] * chosen["actor.num_gpus_per_node"]
    reference = chosen["ref.num_nodes"] * chosen["ref.num_gpus_per_node"]
    engines = chosen["vllm.num_engines"] * chosen["vllm.tensor_parallel_size"]
    shared = chosen["train.colocate_all"] or chosen["train.colocate_actor_ref"]
    if shared and chosen["algo.kl.init_coef"] and actor != reference:
        raise ConfigError(
            f"{where}: actor and reference share GPUs, so openrlhf.actor.num_gpus_per_node and "
            f"openrlhf.ref.num_gpus_per_node must be equal ({actor} and {reference} in all)"
        )
    if chosen["train.colocate_all"] and actor != engines:
        raise ConfigError(
            f"{where}: with openrlhf.train.colocate_all the actor's GPUs ({actor}) must be those "
            f"of the engines (vllm.num_engines x vllm.tensor_parallel_size = {engines})"
        )
    apart = max(1, actor // chosen["ds.tensor_parallel_size"])
    micro = chosen["train.micro_batch_size"] * apart
    if chosen["train.batch_size"] % micro:
        raise ConfigError(
            f"{where}: openrlhf.train.batch_size {chosen['train.batch_size']} is no multiple of "
            f"{micro} (train.micro_batch_size x the actor's GPUs)"
        )


def check(recipe: Recipe, where: str) -> None:
    """What can be checked without touching data or weights: the host, its options, the schedule."""
    if problem := check_host():
        raise ConfigError(problem)
    options.check(recipe.openrlhf, where)
    if recipe.advantage.rank != "off":
        for name in ("reward.overlong_buffer_len", "reward.stop_properly_penalty_coef"):
            if recipe.openrlhf.get(name) is not None:
                raise ConfigError(
                    f"{where}: openrlhf.{name} would be added to ranks instead of rewards: leave "
                    "it out, or set `advantage: {rank: off}`"
                )
    for name, why in _REFUSED.items():
        value = recipe.openrlhf.get(name)
        if value and (name, value) != ("ds.ring_attn_size", 1):
            raise ConfigError(f"{where}: openrlhf.{name} does not work with this plugin: {why}")


def text(arguments: list[str]) -> str:
    """The host's command line, as a person would type it."""
    return f"python -m {options.MODULE} {shlex.join(arguments)}"
