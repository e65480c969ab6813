"""The commands of `reward-sdk`, one file each: its options and its work. What they raise becomes a
message and an exit code in `reward_sdk.commands.boundary`."""

from pathlib import Path
from typing import Any

import click

from reward_sdk.config import Source


class SetType(click.ParamType):
    """A YAML file, or names of rewards."""

    name = "set"

    def convert(self, value: Any, param: object, ctx: object) -> Source:
        words = str(value).split(",")
        is_file = Path(value).suffix in (".yaml", ".yml") or Path(value).exists()
        return Path(value) if is_file else [word.strip() for word in words]


set_option = click.option(
    "--set",
    "rewards",
    required=True,
    type=SetType(),
    metavar="FILE|NAMES",
    help="The set's YAML, or names of rewards with commas between them.",
)
