"""`reward-sdk serve`: from options to a running process."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Sequence
from socket import socket

import uvicorn
from fastapi import FastAPI

from reward_sdk.config import Source
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.routes import create_app
from reward_sdk.server.security import check_address, check_folders, read_token
from reward_sdk.server.service import LIMIT

logger = logging.getLogger(__name__)

_OTHER_FILES = 128  # ours: files kept for images, weights and logs
_IDLE = 75  # ours: seconds that an idle connection is kept, longer than most clients keep theirs


def run(
    source: Source,
    host: str,
    port: int,
    images: Sequence[str],
    token_file: str | None,
    insecure: bool,
    names: Sequence[str],
    verbose: bool,
    **queue: int | float,
) -> None:
    """Serves until SIGINT or SIGTERM; what was accepted by then is answered.

    Args:
        source: the set: a YAML file, a mapping or a list of names.
        host: address to listen on.
        port: port to listen on; 0 for any that is free, which is logged.
        images: folders of images that clients may name by path.
        token_file: file with the secret that clients must send; None takes that of
            $REWARD_SDK_TOKEN, without which everyone is let in.
        insecure: whether the server may be reachable from other machines without a token.
        names: host names by which the server may be asked, beside addresses, "localhost" and the
            machine's own names.
        verbose: whether to log every request, without its texts.
        queue: `max_batch`, `max_wait` and `max_queue`, as `BatchedSet` takes them.

    Raises:
        ConfigError: the set, an address, a folder or a token cannot be used; nothing was served.
        ScoringError: the address cannot be listened on, as where it is taken.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("reward_sdk").setLevel(logging.DEBUG if verbose else logging.INFO)
    token = read_token(token_file)
    check_address(host, token, insecure)
    folders = check_folders(images)
    rewards = RewardSet.from_config(source)
    if "image" in rewards.needs and not folders:
        logger.info("no --images: images are taken from requests, in base64, and from no path")
    if rewards.needs_step:
        logger.warning("a schedule: /get_reward and /verify bring no step, every reward counts")
    # One connection per sample of a rollout, as OpenRLHF does it, are more than 1,024 files.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    connections = max(1, files - _OTHER_FILES)
    app = create_app(rewards, token, folders, names, **queue)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        limit_concurrency=connections,
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
        logger.info("at most %s connections at a time (ulimit -n)", f"{connections:,}")
        words = ", ".join(rewards.names)
        logger.info("set %s (%s) on http://%s:%d", rewards.digest, words, address, port)
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn drains on these, and then raises them anew to whoever had them before.
            signal.signal(number, lambda *_: None)
        _Server(config, app).run([listening])
    logger.info("stopped")


class _Server(uvicorn.Server):
    """uvicorn's, with what it does not do itself."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._state = app.state
        self._state.server.telemetry.watch_connections(lambda: len(self.server_state.connections))
        logging.getLogger("uvicorn.error").addFilter(self._is_news)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Ends bodies that are under way before it waits for what is in work."""
        self._state.intake.drain()
        await super().shutdown(sockets)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Whether a record of uvicorn's is to be logged: not one line for every connection that it
        refuses, which are counted instead."""
        if record.msg == "Exceeded concurrency limit.":
            self._state.server.telemetry.exhausted("connections: the limit is reached (ulimit -n)")
        elif record.msg == "Invalid HTTP request received.":
            self._state.server.telemetry.problem("connections", "no HTTP")
        else:
            return True
        return False
