"""`reward-sdk list`."""

import inspect

import click

from reward_sdk.reward import factory, names


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="valor-rrg")
def main() -> None:
    """Rewards for chest X-ray report generation."""


@main.command("list")
def list_rewards() -> None:
    """Shows every reward that a set can name, with its settings."""
    for name in names():
        build = factory(name)
        about = (inspect.getdoc(build) or "").partition("\n")[0]
        parameters = inspect.signature(build).parameters.values()
        settings = ", ".join(str(parameter).replace("'", "") for parameter in parameters)
        click.echo(f"{name:12} {about}")
        if settings:
            click.echo(f"{'':12} settings: {settings}")
