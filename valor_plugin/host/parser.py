"""The host's own argument parser, and the checks that it makes of what was parsed.

OpenRLHF has both under `if __name__ == "__main__"`. Only that part of the installed file is
executed here, so that neither Ray nor vLLM is imported.
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
    "data.max_images_per_prompt": "data",
    "ckpt.output_dir": "--out",
    "ckpt.path": "--out",
    "ckpt.load_enable": "--out",
    "logger.tensorboard_dir": "--out",
    "logger.wandb.run_name": "name",
}
"""Options that the recipe or the command line of this plugin says in its own words."""


class HostParser:
    """The installed host's parser and its checks of what was parsed, for one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        spec = find_spec("openrlhf")  # its __init__ is empty: nothing heavy is imported
        assert spec is not None  # `check_host` was asked before
        assert spec.origin is not None
        self._package = Path(spec.origin).parent
        path = self._package / "cli" / "train_ppo_ray.py"
        main = ast.parse(path.read_text(encoding="utf-8")).body[-1]
        if not isinstance(main, ast.If):
            raise ConfigError(f"{path} does not end in the command line that this plugin knows")
        self._body = main.body
        namespace: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
        _execute(self._body[: self._position("parse_args(")], namespace)
        self._parser: argparse.ArgumentParser = namespace["parser"]
        self._parser.error = self._refuse

    def _position(self, call: str) -> int:
        """Index of the statement that makes this call."""
        return next(i for i, one in enumerate(self._body) if call in ast.unparse(one))

    def _refuse(self, message: str) -> NoReturn:
        raise self._recipe.error(f"OpenRLHF refuses an option: {message}")

    def check_names(self) -> None:
        """That the host knows the recipe's options, and that none is said elsewhere."""
        spellings = {name for action in self._parser._actions for name in action.option_strings}
        known = {name[2:] for name in spellings if name.startswith("--")} - {"help"}
        for name in self._recipe.openrlhf:
            if name in OURS:
                raise self._recipe.error(f"openrlhf.{name} is set from the recipe's {OURS[name]!r}")
            if name not in known:
                raise self._recipe.error(f"OpenRLHF has no option {name!r}: {nearest(name, known)}")

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """All options: dotted name -> value."""
        return vars(self._parser.parse_args(argv))

    def validate(self, options: Mapping[str, Any]) -> None:
        """The host's own checks, which it makes after parsing."""
        config = runpy.run_path(str(self._package / "utils" / "config.py"))
        mine = argparse.Namespace(
            **deepcopy(dict(options))
        )  # the checks also change what they read
        namespace = {"args": config["hierarchize"](mine)}
        start, end = self._position("hierarchize(args)") + 1, self._position("args.use_ms")
        try:
            with redirect_stdout(StringIO()):  # its recommendations come again when it starts
                _execute(self._body[start:end], namespace)
        except AssertionError as error:
            raise self._recipe.error(f"OpenRLHF refuses these options together: {error}") from None


def _execute(statements: list[ast.stmt], namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module(statements, []), "the host's command line", "exec"), namespace)


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
