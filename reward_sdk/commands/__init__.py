"""The commands of `reward-sdk`, one file each: its options and its work. What they raise becomes a
message and an exit code in `reward_sdk.commands.boundary`."""

from pathlib import Path
from typing import Any

import click

from reward_sdk.config import Source
from reward_sdk.registry import names


class SetType(click.ParamType):
    """A YAML file, or names of rewards."""

    name = "set"

    def convert(self, value: Any, param: object, ctx: object) -> Source:
        words = [word.strip() for word in str(value).split(",")]
        named = any(word in names() or ".py" in word for word in words)
        is_file = Path(value).suffix in (".yaml", ".yml") or (not named and Path(value).exists())
        return Path(value) if is_file else words


set_option = click.option(
    "--set",
    "rewards",
    required=True,
    type=SetType(),
    metavar="FILE|NAMES",
    help="The set's YAML, or names of rewards with commas between them.",
)
