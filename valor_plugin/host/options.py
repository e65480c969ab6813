"""The host's options as its own parser reads them, checked as it checks them, and for what it
would only find once Ray is up.

OpenRLHF has its parser and its checks under `if __name__ == "__main__"`. Only that part of the
installed file is executed here, so that neither Ray nor vLLM is imported.
"""

from __future__ import annotations

import argparse
import ast
import runpy
from collections.abc import Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from datetime import datetime
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from reward_sdk.errors import ConfigError, nearest
from valor_plugin.recipe import Recipe

MODULE = "openrlhf.cli.train_ppo_ray"

OURS = {
    "actor.model_name_or_path": "model.path",
    "actor.freeze_visual_encoder": "model.trainable",
    "data.prompt_dataset": "data.train",
    "train.seed": "seed",
    "train.agent_func_path": "rewards",
    "reward.remote_url": "rewards",
    "data.input_key": "data",
    "data.label_key": "data",
    "data.image_key": "data",
    "data.apply_chat_template": "data",
    "data.max_images_per_prompt": "data.max_images",
    "ckpt.output_dir": "--out",
    "ckpt.path": "--out",
    "ckpt.load_enable": "--out",
    "logger.tensorboard_dir": "--out",
    "logger.wandb.run_name": "name",
}
"""Options that the recipe or the command line of this plugin says in its own words."""

_AT_LEAST_1 = (
    "vllm.num_engines", "vllm.tensor_parallel_size", "rollout.batch_size",
    "rollout.n_samples_per_prompt", "rollout.micro_batch_size", "rollout.max_new_tokens",
    "train.batch_size", "train.micro_batch_size", "train.num_episodes", "data.max_len",
    "data.max_samples", "actor.num_nodes", "actor.num_gpus_per_node", "ds.ring_attn_size",
    "ds.tensor_parallel_size", "logger.logging_steps",
)  # fmt: skip
"""Options below which the host fails or hangs after its start."""

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Ways of attention that are in transformers itself; any other would be fetched from the hub."""

_LANDMARKS = ("parse_args(", "hierarchize(args)", "args.use_ms")
"""What the host's statements hold: options are declared before the first of them, and checked
between the others."""


def read_options(recipe: Recipe, chosen: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The host's arguments, and all of its options as its own parser reads them.

    Args:
        recipe: the recipe that the options are of, which messages name.
        chosen: dotted name -> value of the recipe's options and of those that are set for it.

    Returns:
        The arguments, and dotted name -> value of every option that the host has.

    Raises:
        ConfigError: the host does not know an option, the recipe says it elsewhere, the host
            refuses a value or options together, or would fail or hang with them after its start.
    """
    spec = find_spec("openrlhf")  # its __init__ is empty: nothing heavy is imported
    assert spec is not None  # `check_host` was asked before
    assert spec.origin is not None
    package = Path(spec.origin).parent
    path = package / "cli" / "train_ppo_ray.py"
    main = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    if not isinstance(main, ast.If):
        raise ConfigError(f"{path} does not end in the command line that this plugin knows")

    parsing, begin, end = (_position(main.body, call) for call in _LANDMARKS)
    namespace: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    _execute(main.body[:parsing], namespace)
    parser: argparse.ArgumentParser = namespace["parser"]
    _check_names(recipe, parser)

    def refuse(message: str) -> NoReturn:
        raise recipe.error(f"OpenRLHF refuses an option: {message}")

    parser.error = refuse
    argv = arguments(chosen)
    options = vars(parser.parse_args(argv))
    for name in _AT_LEAST_1:
        if options[name] is not None and options[name] < 1:
            raise recipe.error(f"openrlhf.{name} must be at least 1, not {options[name]}")

    config = runpy.run_path(str(package / "utils" / "config.py"))
    copy = argparse.Namespace(**deepcopy(options))  # the host's checks change what they read
    try:
        with redirect_stdout(StringIO()):  # its recommendations come again when it starts
            _execute(main.body[begin + 1 : end], {"args": config["hierarchize"](copy)})
    except AssertionError as error:
        raise recipe.error(f"OpenRLHF refuses these options together: {error}") from None
    _check_values(recipe, options)
    _check_batches(recipe, options)
    _check_placement(recipe, options)
    return argv, options


def _position(statements: list[ast.stmt], call: str) -> int:
    """Index of the statement that makes this call."""
    return next(i for i, one in enumerate(statements) if call in ast.unparse(one))


def _execute(statements: list[ast.stmt], namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module(statements, []), "the host's command line", "exec"), namespace)


def _check_names(recipe: Recipe, parser: argparse.ArgumentParser) -> None:
    """That the host knows the recipe's options, and that none is said elsewhere."""
    spellings = {name for action in parser._actions for name in action.option_strings}
    known = {name[2:] for name in spellings if name.startswith("--")} - {"help"}
    for name in recipe.openrlhf:
        if name in OURS:
            raise recipe.error(f"openrlhf.{name} is set from the recipe's {OURS[name]!r}")
        if name not in known:
            raise recipe.error(f"OpenRLHF has no option {name!r}: {nearest(name, known)}")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Dotted options as the host's arguments: true is a bare flag, false and null are left out."""
    argv: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        argv.append(f"--{name}")
        if isinstance(value, list | tuple):
            argv.extend(str(item) for item in value)
        elif value is not True:
            argv.append(str(value))
    return argv


def _check_values(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """Values with which the host would fail or hang after its start."""
    if options["vllm.num_engines"] is None:
        raise recipe.error("openrlhf.vllm.num_engines says how many engines generate: set it")
    if "lora" in recipe.model.trainable:
        for name, most in (("ds.zero_stage", 2), ("ds.tensor_parallel_size", 1),
                           ("ds.load_in_4bit", False)):  # fmt: skip
            if options[name] > most:
                raise recipe.error(
                    f"openrlhf.{name} {options[name]} does not go with `model.trainable: "
                    "lora`, whose weights are put together whole in every process"
                )
    if not 0 < options["vllm.gpu_memory_utilization"] < 1:
        raise recipe.error(
            "openrlhf.vllm.gpu_memory_utilization is the share of a GPU's memory that vLLM takes, "
            f"above 0 and below 1, not {options['vllm.gpu_memory_utilization']}"
        )
    if options["ds.zero_stage"] not in range(4):
        raise recipe.error(f"openrlhf.ds.zero_stage is 0 to 3, not {options['ds.zero_stage']}")
    if (attention := options["ds.attn_implementation"]) not in _ATTENTION:
        raise recipe.error(
            f"openrlhf.ds.attn_implementation {attention!r} is none of transformers': "
            f"{nearest(attention, _ATTENTION)}"
        )
    saves = options["ckpt.save_steps"]
    if saves != -1 and saves < 1:
        raise recipe.error("openrlhf.ckpt.save_steps must be at least 1, or -1 for no checkpoints")
    if saves != -1 and options["ckpt.max_num"] < 2:
        raise recipe.error(
            "openrlhf.ckpt.max_num must be at least 2, because the host removes an old "
            "checkpoint before it has written the new one"
        )


def _check_batches(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """That rollouts can be dealt out to optimizer steps, and these to the actor's GPUs."""
    batch = options["train.batch_size"]
    rollout = options["rollout.batch_size"] * options["rollout.n_samples_per_prompt"]
    if rollout % batch:
        raise recipe.error(
            f"openrlhf.train.batch_size {batch} does not divide a "
            f"rollout of {rollout} samples (rollout.batch_size x rollout.n_samples_per_prompt)"
        )
    actor, _, _ = _sizes(options)
    apart = max(1, actor // options["ds.tensor_parallel_size"])
    micro = options["train.micro_batch_size"] * apart
    if batch % micro:
        raise recipe.error(
            f"openrlhf.train.batch_size {batch} is no multiple of "
            f"{micro} (train.micro_batch_size x the actor's GPUs)"
        )


def _sizes(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """The GPUs of actor, reference and engines."""
    return (
        options["actor.num_nodes"] * options["actor.num_gpus_per_node"],
        options["ref.num_nodes"] * options["ref.num_gpus_per_node"],
        options["vllm.num_engines"] * options["vllm.tensor_parallel_size"],
    )


def _check_placement(recipe: Recipe, options: Mapping[str, Any]) -> None:
    """That parts which share GPUs have the same number of them, as the host demands once Ray is
    up."""
    actor, ref, engines = _sizes(options)
    shared = options["train.colocate_all"] or options["train.colocate_actor_ref"]
    if shared and options["algo.kl.init_coef"] and actor != ref:
        raise recipe.error(
            "actor and reference share GPUs, so openrlhf.actor.num_gpus_per_node and "
            f"openrlhf.ref.num_gpus_per_node must be equal ({actor} and {ref} in all)"
        )
    if options["train.colocate_all"] and actor != engines:
        raise recipe.error(
            f"with openrlhf.train.colocate_all the actor's GPUs ({actor}) must be those "
            f"of the engines (vllm.num_engines x vllm.tensor_parallel_size = {engines})"
        )


def count_gpus(options: Mapping[str, Any]) -> int:
    """How many GPUs the host reserves under these options."""
    actor, ref, engines = _sizes(options)
    if options["train.colocate_all"]:
        return actor
    if options["train.colocate_actor_ref"] or not options["algo.kl.init_coef"]:
        return actor + engines
    return actor + ref + engines


def count_actors(options: Mapping[str, Any]) -> int:
    """How many Ray actors the host starts under these options, and CPUs it reserves at most: one
    each for the trainer, every worker of policy and reference, and every engine."""
    actor, ref, engines = _sizes(options)
    return 1 + actor + engines + (ref if options["algo.kl.init_coef"] else 0)
