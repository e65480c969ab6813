"""`reward-sdk list`: what a set can name."""

import inspect
import re
from typing import get_type_hints

import click

from reward_sdk.errors import ConfigError
from reward_sdk.models import published
from reward_sdk.registry import factory, names


@click.command("list")
def list_rewards() -> None:
    """Shows every reward that a set can name: its range, what it needs, its settings, and whether
    the published weights that it can use are there."""
    files = published.of_rewards()
    for name in names():
        try:
            build = factory(name)
        except ConfigError as error:
            click.echo(f"{name:20} {error}")
            continue
        click.echo(f"{name:20} {(inspect.getdoc(build) or '').partition(chr(10))[0]}")
        try:
            hints = get_type_hints(build)
        except NameError:  # of a factory of another distribution
            hints = {}
        needs = getattr(hints.get("return"), "needs", None)
        if isinstance(needs, frozenset) and needs:
            click.echo(f"{'':20}   needs: {', '.join(sorted(needs))}")
        for key, parameter in inspect.signature(build).parameters.items():
            kind = re.sub(r"typing\.|<class |[<>]", "", str(hints.get(key, "any"))).strip("'")
            default = parameter.default
            default = "" if default is parameter.empty else f", by default {default!r}"
            click.echo(f"{'':20}   {key}: {kind}{default}")
        for weight, file in files.get(name, {}).items():
            state = f"found: {file.path}" if file.there else f"missing: {file.path} ({file.source})"
            click.echo(f"{'':20}   weights {weight}, {state}")
