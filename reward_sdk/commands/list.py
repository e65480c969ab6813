"""`reward-sdk list`: what a set can name."""

import re

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
        click.echo(f"{name:20} {build.summary}")
        if needs := build.needs:
            click.echo(f"{'':20}   needs: {', '.join(sorted(needs))}")
        try:
            settings = build.settings
        except NameError as error:  # in foreign code
            click.echo(f"{'':20}   its settings have no readable types: {error}")
            continue
        for key, setting in settings.items():
            kind = re.sub(r"typing\.|<class |[<>]", "", str(setting.kind)).strip("'")
            default = "" if setting.wanted else f", by default {setting.default!r}"
            click.echo(f"{'':20}   {key}: {kind}{default}")
        for weight, file in files.get(name, {}).items():
            state = f"found: {file.path}" if file.there else f"missing: {file.path} ({file.source})"
            click.echo(f"{'':20}   weights {weight}, {state}")
