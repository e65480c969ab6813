"""How a run's own Ray is closed to others; that it is, in a run, is tested in tests/e2e."""

import socket

import psutil
import pytest
from support.serving import free_port

from valor_plugin.host import cluster
from valor_plugin.host.failures import failure, lost_a_port


@pytest.fixture
def closed(monkeypatch) -> dict[str, str]:
    """What `close_to_strangers` adds to an empty environment; it is that of this process."""
    environment: dict[str, str] = {}
    monkeypatch.setattr(cluster.os, "environ", environment)
    cluster.close_to_strangers()
    return environment


def test_a_run_closes_its_ray_with_a_token_that_no_other_run_has(closed):
    first = closed.copy()
    closed.clear()
    cluster.close_to_strangers()
    assert first["RAY_AUTH_MODE"] == closed["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != closed["RAY_AUTH_TOKEN"]


def test_rules_for_ray_that_a_user_has_set_stand(closed):
    closed |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}
    cluster.close_to_strangers()
    assert closed["RAY_AUTH_TOKEN"] == "mine"


def test_a_run_listens_on_the_loopback_interface_whatever_is_said_of_other_clusters(closed):
    closed["VLLM_HOST_IP"] = "10.0.0.1"  # Ray's node would have another address
    cluster.close_to_strangers()
    assert closed["VLLM_HOST_IP"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, None),
        ({"RAY_ADDRESS": ""}, None),
        ({"RAY_ADDRESS": "local"}, None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "10.0.0.1:6379"),
        ({"RAY_ADDRESS": "auto"}, "auto"),
    ],
)
def test_a_cluster_is_joined_where_its_address_is_set(monkeypatch, variables, address):
    monkeypatch.setattr(cluster.os, "environ", variables)
    assert cluster.joined() == address


def store(host: str, port: int):
    """The master's store of a group of one."""
    distributed = pytest.importorskip("torch.distributed")
    make = cluster.listen_on_loopback(distributed.TCPStore, settings=None)  # type: ignore[arg-type]
    return make(host_name=host, port=port, world_size=1, is_master=True)


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("localhost", False)])
def test_torchs_store_is_on_the_loopback_interface_if_that_is_its_address(host, alone):
    port = free_port()
    made = store(host, port)
    sockets = psutil.Process().net_connections("tcp")
    listening = {each.laddr.ip for each in sockets if each.laddr.port == port and not each.raddr}
    made.set("key", "value")
    assert made.get("key") == b"value"
    assert (listening == {"127.0.0.1"}) is alone


def test_a_store_whose_port_was_taken_says_so_as_a_run_expects_it():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(OSError, match="in use") as caught,
    ):
        store("127.0.0.1", other.getsockname()[1])
    assert lost_a_port(failure("policy", caught.value))
