"""`reward-sdk list | score | serve | audit | calibrate | bench | stacks`."""

import sys
from typing import Any

import click

from reward_sdk.commands.audit import audit_set
from reward_sdk.commands.bench import bench
from reward_sdk.commands.calibrate import calibrate
from reward_sdk.commands.list import list_rewards
from reward_sdk.commands.score import score
from reward_sdk.commands.serve import serve
from reward_sdk.commands.stacks import stacks
from reward_sdk.errors import ConfigError, ScoringError


class _Boundary(click.Group):
    """Where errors of the commands become a line on screen and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has enough; click ends in silence
            raise
        except ConfigError as error:
            message, code = str(error), 2
        except OSError as error:  # an output names a folder, cannot be written, finds no room
            message, code = f"{error.filename or 'the output'}: {error.strerror or error}", 2
        except ScoringError as error:
            message, code = str(error), 1
        click.secho("error: ", fg="red", nl=False, err=True)
        click.echo(message, err=True)
        sys.exit(code)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="valor-rrg")
def main() -> None:
    """Rewards for chest X-ray report generation."""


for command in (list_rewards, score, serve, audit_set, calibrate, bench, stacks):
    main.add_command(command)
