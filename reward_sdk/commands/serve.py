"""`reward-sdk serve`: the options of `reward_sdk.server.run`."""

import click

from reward_sdk.commands import set_option
from reward_sdk.config import Source


@click.command()
@set_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--images", multiple=True, type=click.Path(), help="A folder whose images clients may name."
)
@click.option("--token-file", type=click.Path(), help="By default $REWARD_SDK_TOKEN is the token.")
@click.option("--insecure", is_flag=True, help="Serves other machines without a token.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME",
    help="A name by which this server is asked, beside its addresses and the machine's names.",
)  # fmt: skip
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--max-wait-ms", default=5.0, show_default=True, type=click.FloatRange(0, 1000),
    help="How long a batch waits for company.",
)  # fmt: skip
@click.option(
    "--max-queue", default=4096, show_default=True, type=click.IntRange(min=1),
    help="Samples in work; beyond them clients are told to wait.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Logs every request, without its texts.")
def serve(
    rewards: Source,
    host: str,
    port: int,
    images: tuple[str, ...],
    token_file: str | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    max_batch: int,
    max_wait_ms: float,
    max_queue: int,
    verbose: bool,
) -> None:
    """Serves a reward set over HTTP, with the numbers that it gives in process.

    /v1/score for `reward_sdk.client`, /get_reward for OpenRLHF, /verify for NeMo Gym; the page at /
    shows what it does. Ctrl-C or SIGTERM: what was accepted is answered first.

    Exit codes: 0 stopped, 1 the address is taken, 2 the set or an option is wrong.
    """
    from reward_sdk.server.run import run

    run(
        rewards, host, port, images, token_file, insecure, allow_host, verbose,
        max_batch=max_batch, max_wait=max_wait_ms / 1000, max_queue=max_queue,
    )  # fmt: skip
