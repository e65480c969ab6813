"""The host's own command line: which options exist, and a recipe turned into one.

OpenRLHF builds its parser under `if __name__ == "__main__"`. Only that part of the installed file
is executed here, so checking a recipe imports neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import ast
import runpy
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import datetime
from importlib.util import find_spec
from io import StringIO
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
    "ckpt.load_enable": "--out",
    "logger.tensorboard_dir": "--out",
    "logger.wandb.run_name": "name",
}
"""Options that the recipe or the command line of this plugin says in its own words."""


def _main() -> tuple[Path, list[ast.stmt]]:
    """The installed host's package folder and the statements of its command line."""
    spec = find_spec("openrlhf")  # its __init__ is empty: nothing heavy is imported
    if spec is None or spec.origin is None:
        raise ConfigError("OpenRLHF is not installed")
    package = Path(spec.origin).parent
    path = package / "cli" / "train_ppo_ray.py"
    main = ast.parse(path.read_text(encoding="utf-8")).body[-1]
    if not isinstance(main, ast.If):
        raise ConfigError(f"{path} does not end in the command line that this plugin knows")
    return package, main.body


def _run(statements: list[ast.stmt], namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module(statements, []), "the host's command line", "exec"), namespace)


def _position(statements: list[ast.stmt], call: str) -> int:
    """Index of the statement that makes this call."""
    return next(i for i, one in enumerate(statements) if call in ast.unparse(one))


def parser() -> argparse.ArgumentParser:
    """The installed host's argument parser."""
    _, body = _main()
    namespace: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    _run(body[: _position(body, "parse_args(")], namespace)
    return namespace["parser"]


def validate(argv: list[str], where: str) -> None:
    """Runs the host's own checks of a complete command line, which it makes after parsing.

    Raises:
        ConfigError: with the host's words.
    """
    package, body = _main()
    hierarchize = runpy.run_path(str(package / "utils" / "config.py"))["hierarchize"]
    namespace = {"args": hierarchize(parser().parse_args(argv))}
    checks = body[_position(body, "hierarchize(args)") + 1 : _position(body, "args.use_ms")]
    try:
        with redirect_stdout(StringIO()):  # its recommendations come again when it starts
            _run(checks, namespace)
    except AssertionError as error:
        raise ConfigError(f"{where}: OpenRLHF refuses these options together: {error}") from None


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
