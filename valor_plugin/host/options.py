"""The host's own command line: which options exist, and a recipe turned into one.

OpenRLHF builds its parser under `if __name__ == "__main__"`. Only that part of the installed file
is executed here, so checking a recipe imports neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError, nearest

MODULE = "openrlhf.cli.train_ppo_ray"

OURS = {
    "actor.model_name_or_path": "model.path",
    "actor.freeze_visual_encoder": "model.train",
    "data.prompt_dataset": "data.train",
    "train.seed": "seed",
    "train.agent_func_path": "rewards",
    "reward.remote_url": "rewards",
    "data.input_key": "data",
    "data.label_key": "data",
    "data.image_key": "data",
    "data.apply_chat_template": "data",
    "data.max_images_per_prompt": "data",
    "ckpt.output_dir": "--out",
    "ckpt.path": "--out",
    "logger.tensorboard_dir": "--out",
    "logger.wandb.run_name": "name",
}
"""Options that the recipe or the command line of this plugin says in its own words."""


def parser() -> argparse.ArgumentParser:
    """The installed host's argument parser."""
    spec = find_spec("openrlhf")  # its __init__ is empty: nothing heavy is imported
    if spec is None or spec.origin is None:
        raise ConfigError("OpenRLHF is not installed")
    path = Path(spec.origin).parent / "cli" / "train_ppo_ray.py"
    main = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    if not isinstance(main, ast.If):
        raise ConfigError(f"{path} does not end in the command line that this plugin knows")
    statements = []
    for statement in main.body:
        if "parse_args" in ast.unparse(statement):
            break
        statements.append(statement)
    namespace: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(statements, []), str(path), "exec"), namespace)
    return namespace["parser"]


def check(options: Mapping[str, Any], where: str) -> None:
    """Checks a recipe's `openrlhf` section against the installed host.

    Raises:
        ConfigError: for an option that the host does not know, one that the recipe says elsewhere,
            or a value that the host refuses.
    """
    host = parser()
    spellings = {name for action in host._actions for name in action.option_strings}
    known = {name[2:] for name in spellings if name.startswith("--")} - {"help"}
    for name in options:
        if name in OURS:
            raise ConfigError(f"{where}: openrlhf.{name} is set from the recipe's {OURS[name]!r}")
        if name not in known:
            raise ConfigError(f"{where}: OpenRLHF has no option {name!r}: {nearest(name, known)}")

    def refuse(message: str) -> None:
        raise ConfigError(f"{where}: OpenRLHF refuses an option: {message}")

    host.error = refuse  # type: ignore[method-assign, assignment]
    host.parse_args(arguments(options))


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
