"""`reward-sdk stacks`: the documentation of the adapters."""

import click

from reward_sdk.adapters import page


@click.command()
def stacks() -> None:
    """Prints how other RL stacks use a reward set, as Markdown."""
    click.echo(page(), nl=False)
