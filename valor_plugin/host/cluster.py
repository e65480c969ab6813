"""The Ray of a run: one that it starts for itself, closed to everybody else, or one that is joined.

Ray writes its runtime environment into logs, so no secret may stand there. Processes of a Ray that
a run starts inherit the driver's environment, and with it $REWARD_SDK_TOKEN and $WANDB_API_KEY; a
cluster that is joined (RAY_ADDRESS) has them in the environment of its nodes, and its own rules.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valor_plugin.host.settings import HostSettings

HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Where a worker of Ray finds the name of the function that it calls first. Ray sets it from the
runtime environment; workers that are started in advance have none."""

_LOOPBACK = "127.0.0.1"
_ON_LOOPBACK = {
    # Ray's own address is then 127.0.0.1, as it is on other systems than Linux. There is no other
    # way in Ray 2.55: `_node_ip_address` of `ray.init` is replaced where it names the loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "VLLM_HOST_IP": _LOOPBACK,
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


def joined() -> str | None:
    """The address of the cluster that a run joins; None where it starts its own."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def close_to_strangers() -> None:
    """Sets in this process's environment, before Ray is imported, what closes the Ray that it will
    start: everything listens on the loopback interface, and Ray answers nobody without a token,
    which is another in every run. Where RAY_AUTH_MODE is set, its user's rules stand."""
    os.environ.update(_ON_LOOPBACK)
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})


def listen_on_loopback(store: Callable[..., Any], settings: HostSettings) -> Callable[..., Any]:
    """For torch's `TCPStore`, where the processes of a group find each other and which anybody may
    read and write: it listens on every interface, even if its address is of one machine only."""

    def listen(**options: Any) -> Any:
        if options["is_master"] and options["host_name"] == _LOOPBACK:
            listener = socket.create_server((_LOOPBACK, options["port"]))
            options["master_listen_fd"] = listener.detach()
        return store(**options)

    return listen
