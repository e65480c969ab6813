"""`reward-sdk serve`: from options to a running process."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.routes import create_app
from reward_sdk.server.security import check_address, check_folders, read_token
from reward_sdk.server.service import LIMIT

logger = logging.getLogger(__name__)

_IDLE = 75  # ours: seconds that an idle connection is kept, longer than most clients keep theirs


def run(
    set_file: Path,
    host: str,
    port: int,
    images: Sequence[str],
    token_file: str | None,
    insecure: bool,
    verbose: bool,
    **queue: int | float,
) -> None:
    """Serves until SIGINT or SIGTERM; what was accepted by then is answered.

    Args:
        set_file: the set's YAML.
        host: the address.
        port: the port; 0 for any that is free, which is logged.
        images: image folders.
        token_file: see `read_token`.
        insecure: see `check_address`.
        verbose: logs every request, without its texts.
        queue: see `create_app`.

    Raises:
        ConfigError: before anything is served.
        ScoringError: the address cannot be had.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("reward_sdk").setLevel(logging.DEBUG if verbose else logging.INFO)
    token = read_token(token_file)
    check_address(host, token, insecure)
    folders = check_folders(images)
    rewards = RewardSet.from_file(set_file)
    if "image" in rewards.needs and not folders:
        logger.info("no --images: images are taken from requests, in base64, and from no path")
    if rewards.needs_step:
        logger.warning("a schedule: /get_reward and /verify bring no step, every reward counts")
    # One connection per sample of a rollout, as OpenRLHF does it, are more than 1,024 files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = uvicorn.Config(
        create_app(rewards, token, folders, **queue),
        host=host,
        port=port,
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(LIMIT) + 10,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn's, after it has logged why
        raise ScoringError(f"{host}:{port} cannot be served, see above") from None
    with listening:
        address, port = listening.getsockname()[:2]
        address = f"[{address}]" if ":" in address else address
        logger.info("set %s of %s on http://%s:%d", rewards.digest, set_file, address, port)
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn drains on these, and then raises them anew to whoever had them before.
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run([listening])
    logger.info("stopped")
