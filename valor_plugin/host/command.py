"""The host's command line: a recipe turned into one, parsed once, and checked as far as that goes
without weights, data or Ray.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from reward_sdk.errors import ConfigError
from valor_plugin.host import cluster, reference
from valor_plugin.host.options import MODULE, count_actors, count_gpus, read_options
from valor_plugin.host.rows import KEYS, check_path
from valor_plugin.host.versions import check_host, installed
from valor_plugin.recipe import Recipe

_REFUSED = {
    "train.async_enable": "rewards need the policy step, which asynchronous rollouts do not have",
    "ds.lora.rank": "set `model: {trainable: lora, lora: {rank: 128, alpha: 256}}` instead",
    "train.dynamic_batch_enable": "it packs samples, which the host cannot do with images",
    "ds.ring_attn_size": "it packs samples, which the host cannot do with images",
    "train.enable_ema": "no checkpoint holds the average, and none of LoRA's factors would do",
    "eval.dataset": "evaluate the saved model instead",
    "logger.wandb.key": "it would be in the run's folder and its logs. Set WANDB_API_KEY in the "
    "environment, and logger.wandb.project in the recipe",
}


class RunPaths(Protocol):
    """Where a run keeps what the host reads and writes.

    Attributes:
        rows: file of the host's dataset, JSONL.
        unsaved: folder of the model while it is being written.
        checkpoints: folder of the host's checkpoints.
        tensorboard: folder of the host's TensorBoard logs.
    """

    @property
    def rows(self) -> Path: ...
    @property
    def unsaved(self) -> Path: ...
    @property
    def checkpoints(self) -> Path: ...
    @property
    def tensorboard(self) -> Path: ...


@dataclass(frozen=True)
class HostCommand:
    """What the host is started with.

    Attributes:
        argv: the host's arguments, without the interpreter and the module.
        options: dotted name -> value of every option that the host has, as its own parser reads
            them.
        steps: number of policy steps that the run takes; 0 until `fitted` knows of how many
            studies.
    """

    argv: tuple[str, ...]
    options: Mapping[str, Any]
    steps: int = 0

    @property
    def gpus(self) -> int:
        """How many GPUs the host reserves."""
        return count_gpus(self.options)

    @property
    def actors(self) -> int:
        """How many Ray actors it starts."""
        return count_actors(self.options)

    @property
    def rollout_images(self) -> int:
        """How many images a rollout has at most."""
        return self.options["rollout.batch_size"] * self.options["data.max_images_per_prompt"]

    @property
    def deterministic(self) -> bool:
        """Whether the run can be repeated to the last bit."""
        return self.options["train.full_determinism_enable"]

    def start(self, scratch: str) -> list[str]:
        """The arguments of Python that start the driver.

        Args:
            scratch: path of a folder for temporary files, which may be removed afterwards.
        """
        return ["-m", "valor_plugin.host.main", f"{scratch}/ray", "--", *self.argv]

    def __str__(self) -> str:
        """As a person would type it."""
        return f"python -m {MODULE} {shlex.join(self.argv)}"

    def fitted(
        self,
        recipe: Recipe,
        studies: int,
        positions: float | None,
        prompt: int | None,
        device: str,
    ) -> HostCommand:
        """The command for these studies, this model and this machine.

        The last, smaller rollout of an episode is left out where the host cannot bear one: several
        GPUs would get uneven parts and wait for each other for ever, and a run that goes on from a
        checkpoint behind it would begin its episode anew.

        Args:
            recipe: the recipe that the command was made from.
            studies: number of studies in the data set.
            positions: number of tokens that the language model knows positions for; None where that
                is not limited. With longer sequences vLLM would refuse to start, and the rest of
                the host wait for it for minutes.
            prompt: number of tokens of the longest prompt, images included; None where that is not
                known.
            device: "cpu" or "cuda"; with "cuda", and unless a cluster is joined, the GPUs must be
                here.

        Raises:
            ConfigError: `data.max_len` exceeds the positions, or has no room for prompt and
                response, or the studies are fewer than one rollout; or, unless a cluster is joined,
                GPUs are missing, or the key of W&B where the recipe asks for W&B.
        """
        if misfit := next(self.misfits(recipe, studies, positions, prompt, device), None):
            raise misfit
        options, argv = self.options, self.argv
        batch, used = options["rollout.batch_size"], self._used(studies)
        if used < min(studies, options["data.max_samples"]):
            argv += ("--data.max_samples", str(used))  # of two, the parser takes the last
            options = MappingProxyType({**options, "data.max_samples": used})
        steps = -(-used // batch) * options["train.num_episodes"]
        return replace(self, argv=argv, options=options, steps=steps)

    def misfits(
        self,
        recipe: Recipe,
        studies: int | None,
        positions: float | None,
        prompt: int | None,
        device: str,
    ) -> Iterator[ConfigError]:
        """Everything for which `fitted` would refuse; None for studies and a prompt that are not
        known yet."""
        options = self.options
        if positions is not None and options["data.max_len"] > positions:
            yield recipe.error(
                f"openrlhf.data.max_len {options['data.max_len']} is more than the {positions:.0f} "
                f"positions of the language model in {recipe.model.path}"
            )
        new = options["rollout.max_new_tokens"] or 1
        if prompt is not None and prompt + new > options["data.max_len"]:
            yield recipe.error(
                f"openrlhf.data.max_len {options['data.max_len']} is less than the longest prompt, "
                f"{prompt} tokens with up to {recipe.data.most_images} images, and a response "
                f"({new}, openrlhf.rollout.max_new_tokens) need: raise it, or show fewer images"
            )
        if cluster.joined() is None:
            yield from self._without_wandb(recipe)
            if device == "cuda":
                yield from self._without_gpus(recipe)
        if studies is not None and not self._used(studies):
            batch = options["rollout.batch_size"]
            yield recipe.error(f"{studies} studies are fewer than one rollout of {batch}")

    def _used(self, studies: int) -> int:
        """How many of the studies an episode has."""
        options = self.options
        batch, used = options["rollout.batch_size"], min(studies, options["data.max_samples"])
        one = options["actor.num_nodes"] * options["actor.num_gpus_per_node"] == 1
        return used if one and options["ckpt.save_steps"] == -1 else used // batch * batch

    def _without_wandb(self, recipe: Recipe) -> Iterator[ConfigError]:
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if not (online and self.options["logger.wandb.key"]):
            return
        import wandb

        if not wandb.api.api_key:  # the host asks the same
            yield recipe.error(
                "openrlhf.logger.wandb.project: W&B has no key on this machine. Set WANDB_API_KEY, "
                "or call `wandb login`"
            )

    def _without_gpus(self, recipe: Recipe) -> Iterator[ConfigError]:
        import torch

        there = torch.cuda.device_count()
        if self.gpus > there:
            yield recipe.error(
                f"the run asks for {self.gpus} GPUs and there are {there}. Lower "
                "openrlhf.actor.num_gpus_per_node, openrlhf.ref.num_gpus_per_node and "
                "openrlhf.vllm.num_engines, share GPUs with openrlhf.train.colocate_all, or set "
                "RAY_ADDRESS to join a cluster."
            )


def host_command(
    recipe: Recipe, paths: RunPaths, device: str, resumes: bool = False
) -> HostCommand:
    """The host's complete and checked command line for a run.

    Args:
        recipe: the recipe of the run, of stage grpo.
        paths: the run's files and folders.
        device: "cpu" or "cuda".
        resumes: whether the run goes on from a checkpoint.

    Raises:
        ConfigError: another host is installed; a path holds characters that mean something to it;
            it does not know an option, or refuses a value; the recipe says an option elsewhere; or
            options do not go together or do not work with this plugin.
    """
    if problem := check_host():
        raise ConfigError(problem)
    check_path(paths.rows)
    _check_ours(recipe)
    chosen = _complete(recipe, paths, device, resumes)
    if chosen["ds.attn_implementation"] == "flash_attention_2" and not installed("flash-attn"):
        raise recipe.error(
            "openrlhf.ds.attn_implementation: flash_attention_2 needs flash-attn, which is not "
            "installed. Leave the key out for torch's own attention, sdpa"
        )
    argv, options = read_options(recipe, chosen)
    wanted = count_gpus(options)
    if device == "cpu":
        from valor_plugin.host import cpu

        if wanted > cpu.LOGICAL_GPUS:
            raise recipe.error(
                f"without a GPU, actor, reference and engines can have {cpu.LOGICAL_GPUS} "
                f"processes together; the recipe asks for {wanted}. Set "
                "openrlhf.actor.num_gpus_per_node (the host's default is 8), "
                "openrlhf.ref.num_gpus_per_node and openrlhf.vllm.num_engines to 1."
            )
    return HostCommand(tuple(argv), MappingProxyType(options))


def _complete(recipe: Recipe, paths: RunPaths, device: str, resumes: bool) -> dict[str, Any]:
    """The recipe's options and those that are set for it."""
    wandb = recipe.openrlhf.get("logger.wandb.project")
    ranked = recipe.advantage.rank != "off"  # the host then adds nothing: its means are 0 already
    result: dict[str, Any] = {
        "algo.advantage.estimator": "dr_grpo" if ranked else "group_norm",
        "ds.attn_implementation": "flash_attention_2" if installed("flash-attn") else "sdpa",
        **recipe.openrlhf,
        "actor.model_name_or_path": recipe.model.path,
        "data.prompt_dataset": str(paths.rows),
        **KEYS,
        "data.apply_chat_template": True,
        "data.max_images_per_prompt": recipe.data.most_images,
        "train.agent_func_path": str(Path(__file__).with_name("executor.py")),
        "train.seed": recipe.seed,
        "ckpt.output_dir": str(paths.unsaved),
        "ckpt.path": str(paths.checkpoints),
        "ckpt.load_enable": resumes,
        "logger.tensorboard_dir": str(paths.tensorboard),
        "logger.wandb.run_name": recipe.name,
        # The host logs to W&B if it has a key. W&B finds the true one by itself, in the environment
        # or where `wandb login` has left it.
        "logger.wandb.key": "WANDB_API_KEY" if wandb else None,
    }
    if reference.is_shared(recipe.model.trainable):
        result["train.colocate_actor_ref"] = True
        for size in ("num_nodes", "num_gpus_per_node"):  # which the host then compares
            result[f"ref.{size}"] = result.get(f"actor.{size}")
    if device == "cpu":
        from valor_plugin.host import cpu

        result |= cpu.HOST_OPTIONS
    return result


def _check_ours(recipe: Recipe) -> None:
    """What this plugin refuses by name."""
    for mark in "*?[]":
        if mark in recipe.model.path:
            raise recipe.error(
                f"model.path: {recipe.model.path} has {mark!r} in it, which matches names of files "
                "where vLLM looks for weights: rename the folder"
            )
    options = recipe.openrlhf
    for name, why in _REFUSED.items():
        value = options.get(name)
        if value and (name, value) != ("ds.ring_attn_size", 1):
            raise recipe.error(f"openrlhf.{name} does not work with this plugin: {why}")
    if recipe.advantage.rank == "off":
        return
    for name in ("reward.overlong_buffer_len", "reward.stop_properly_penalty_coef"):
        if options.get(name) is not None:
            raise recipe.error(
                f"openrlhf.{name} would be added to ranks instead of rewards: leave "
                "it out, or set `advantage: {rank: off}`"
            )
    estimator = options.get("algo.advantage.estimator", "dr_grpo")
    if estimator != "dr_grpo":
        raise recipe.error(
            f"advantage.rank {recipe.advantage.rank!r} replaces the host's estimator, but "
            f"openrlhf.algo.advantage.estimator is {estimator!r}: leave it out, or set "
            "`advantage: {rank: off}`"
        )
