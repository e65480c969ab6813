"""`reward-sdk list | labels | score | serve | audit | calibrate | bench | stacks`."""

import click

from reward_sdk.commands.audit import audit_set
from reward_sdk.commands.bench import bench
from reward_sdk.commands.boundary import Boundary
from reward_sdk.commands.calibrate import calibrate
from reward_sdk.commands.labels import labels
from reward_sdk.commands.list import list_rewards
from reward_sdk.commands.score import score
from reward_sdk.commands.serve import serve
from reward_sdk.commands.stacks import stacks


@click.group(
    cls=Boundary,
    stopped={"score": "stopped; the same command goes on where it was"},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(
    package_name="valor-rrg", message="%(package)s %(version)s (command `reward-sdk` of reward_sdk)"
)
def main() -> None:
    """Rewards for chest X-ray report generation."""


for command in (list_rewards, labels, score, serve, audit_set, calibrate, bench, stacks):
    main.add_command(command)
