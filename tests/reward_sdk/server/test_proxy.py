"""The proxy file of the docs, with a real nginx, where there is one."""

import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from support.serving import REPORTS, Server, free_port

from reward_sdk.client import RewardClient
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

CONFIG = Path(__file__).parents[3] / "docs/nginx.conf"
NGINX = shutil.which("nginx")
TEXT = {"rouge_l": {}, "format": {}}

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx here")


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """The port of nginx, and its certificate; timeouts are a tenth of those in the file."""
    folder = tmp_path_factory.mktemp("proxied")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-keyout", folder / "rewards.key", "-out", folder / "rewards.pem",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    with Server(folder / "server", TEXT) as server:
        text = CONFIG.read_text().replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        text = text.replace("listen 8443", f"listen 127.0.0.1:{port}").replace(" 10s;", " 1s;")
        text = re.sub(r"(rewards\.(?:pem|key)|nginx\.pid);", rf"{folder}/\1;", text)
        (folder / "nginx.conf").write_text(text)
        (folder / "logs").mkdir()
        nginx = subprocess.Popen(
            [str(NGINX), "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]
        )
        try:
            with socket.socket() as probe:
                Server.until(lambda: probe.connect_ex(("127.0.0.1", port)) == 0)
            yield port, folder / "rewards.pem"
        finally:
            nginx.terminate()
            nginx.wait()


def test_a_client_scores_through_it_over_tls(proxied, monkeypatch):
    port, certificate = proxied
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    some = [Sample(wrap_report(REPORTS[i % 5]), REPORTS[i % 3]) for i in range(640)]
    with RewardClient(f"https://localhost:{port}") as client:
        totals = [score.total for score in client.score(some)]
    assert totals == [score.total for score in RewardSet.from_config(TEXT).score(some)]


def connected(proxied):
    port, certificate = proxied
    context = ssl.create_default_context(cafile=str(certificate))
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"
    )


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
             b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"],
    ids=["nothing", "half a header", "half a body"],
)  # fmt: skip
def test_what_stays_half_sent_is_closed(proxied, sent):
    with connected(proxied) as connection:
        connection.sendall(sent)
        connection.settimeout(5)
        began = time.monotonic()
        while connection.recv(1000):  # nginx may say why before it closes
            pass
        assert 0.5 < time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("head", "code"),
    [(f"X: {'x' * 40_000}", 400), (f"Content-Length: {65 << 20}", 413), ("Y: y", 200)],
    ids=["header", "body", "neither"],
)
def test_headers_and_bodies_have_a_largest_size(proxied, head, code):
    with connected(proxied) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        assert f" {code} ".encode() in connection.recv(100)
