"""The commands of `reward-sdk`, one file each: its options and its work. What they raise becomes a
message and an exit code in `reward_sdk.commands.boundary`."""

import click

set_option = click.option(
    "--set", "rewards", required=True, type=click.Path(), help="The set's YAML."
)
