"""Where the errors of commands become a paragraph on screen and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from reward_sdk.errors import RewardSDKError


class Boundary(click.Group):
    """A group of commands that simply raise. Exit codes: that of a `RewardSDKError`, 2 for a file
    that cannot be read or written, 130 after Ctrl-C.

    Args:
        stopped: command -> what a Ctrl-C leaves.
        options: of `click.Group`.
    """

    def __init__(self, *, stopped: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._stopped = stopped or {}

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has enough; click ends in silence
            raise
        except RewardSDKError as error:
            message, code = str(error), error.exit_code
        except OSError as error:  # an output names a folder, cannot be written, finds no room
            message, code = f"{error.filename or 'the output'}: {error.strerror or error}", 2
        except KeyboardInterrupt:
            message, code = self._stopped.get(ctx.invoked_subcommand or "", "stopped"), 130
        click.secho("error: ", fg="red", nl=False, err=True)
        click.echo(message, err=True)
        sys.exit(code)
