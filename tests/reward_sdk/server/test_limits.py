"""What a server holds at a time, and what it says when its machine is out of something."""

import asyncio
import base64
import io
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import httpx
import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from support.serving import Server

from reward_sdk.errors import ExhaustedError
from reward_sdk.reward_set import RewardSet
from reward_sdk.server import intake, service
from reward_sdk.server.intake import Intake
from reward_sdk.server.security import open_wire_image
from reward_sdk.server.service import RewardServer
from reward_sdk.types import Outcome
from reward_sdk.wire import MAX_BODY, ImageBytes, WireSample

NO_EFFUSION = "<report> No effusion. </report>"


def memory(server, key):
    """Of the server's process, in MB: "VmRSS" now, "VmHWM" the most since `clear_refs`."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1000
    raise AssertionError(key)


def bomb(width, height):
    """A WebP of a few bytes with very many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "WEBP", lossless=True)
    return {"base64": base64.b64encode(file.getvalue()).decode()}


def test_images_of_few_bytes_and_many_pixels_take_little_memory_and_time(served):
    server = served.server
    some = [{"response": NO_EFFUSION, "image": bomb(5000, 5000 - i)} for i in range(8)]
    before = memory(server, "VmRSS")
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    answer = server.post("/v1/score", {"samples": some, "step": 1})
    parts = [score["parts"]["image_text"] for score in answer.json()["scores"]]
    assert {part["status"] for part in parts} == {"ok"}
    assert memory(server, "VmHWM") - before < 900
    assert answer.elapsed.total_seconds() < 30


@pytest.mark.parametrize("size", [(5001, 5000), (60, 500_000)])
def test_an_image_of_more_pixels_than_any_detector_has_is_refused(served, size):
    Image.new("1", size).save(served.images / "large.png")
    image = {"path": str(served.images / "large.png")}
    answer = served.server.post(
        "/v1/score", {"samples": [{"response": "x", "image": image}], "step": 1}
    )
    assert answer.status_code == 422
    assert "more than the limit of 25,000,000" in answer.json()["detail"]


class Looks:
    name, bounds, needs = "looks", (0.0, 1.0), frozenset({"image"})

    def __call__(self, samples):
        return [Outcome(1.0) for _ in samples]


def test_an_image_that_many_ask_for_at_once_is_opened_once(monkeypatch):
    opened = []

    def slowly(image, folders):
        opened.append(image)
        time.sleep(0.05)
        return open_wire_image(image, folders)

    monkeypatch.setattr(service, "open_wire_image", slowly)
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    wire = WireSample(
        response="x", image=ImageBytes(base64=base64.b64encode(file.getvalue()).decode())
    )

    async def ask():
        server = RewardServer(RewardSet([(Looks(), entry)]))
        samples = await asyncio.gather(*(server._sample(wire) for _ in range(40)))
        return {id(sample.image) for sample in samples}

    from reward_sdk.config import Entry

    entry = Entry()
    assert len(asyncio.run(ask())) == len(opened) == 1


@contextmanager
def without_files(server):
    """The server has no file left to open."""
    there = {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}
    limits = prlimit(server.process.pid, RLIMIT_NOFILE)
    free = next(i for i in count() if i not in there)
    prlimit(server.process.pid, RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        prlimit(server.process.pid, RLIMIT_NOFILE, limits)


def test_a_server_out_of_files_says_so_and_scores_when_it_has_some_again(served, tmp_path):
    server = served.server
    film = str(served.images / "film1.png")
    body = {"samples": [{"response": NO_EFFUSION, "image": {"path": film}}], "step": 1}
    before = server.metric("exhausted")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/healthz").status_code == 200
        with without_files(server):
            answer = client.post("/v1/score", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "Too many open files" in answer.json()["detail"]
        assert client.post("/v1/score", json=body).status_code == 200
    assert server.metric("exhausted") == before + 1
    assert "Too many open files" in server.log()


def test_get_reward_waits_until_there_are_files_again(served):
    server = served.server
    label = json.dumps({"report": "No effusion.", "image": str(served.images / "film1.png")})
    body = {"query": [f"q {NO_EFFUSION}"], "prompts": ["q"], "labels": [label]}
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/healthz").status_code == 200
        with without_files(server):
            waiting = pool.submit(client.post, "/get_reward", json=body)
            time.sleep(0.5)
            assert not waiting.done()
        logs = waiting.result().json()["extra_logs"]
    assert logs["image_text/failed"] == logs["unscored"] == [0.0]


def test_a_server_that_cannot_keep_an_upload_says_why(tmp_path):
    upload = {"image": ("film.png", bytes(3 << 20))}  # so large that it goes to disk
    with Server(tmp_path, {"format": {}}) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/healthz").status_code == 200
        with without_files(server):
            answer = client.post("/try", data={"response": "x"}, files=upload)
        assert answer.status_code == 503
        assert "Too many open files" in answer.json()["detail"]


def test_connections_beyond_the_limit_of_files_are_told_to_come_again(tmp_path):
    with Server(tmp_path, {"format": {}}, files=160) as server, ExitStack() as stack:
        assert "at most 32 connections at a time" in server.log()
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        for _ in range(40):
            stack.enter_context(socket.create_connection(address))
        answer = httpx.get(f"{server.url}/healthz")
        assert answer.status_code == 503
        stack.close()
        Server.until(lambda: httpx.get(f"{server.url}/healthz").status_code == 200)
        assert "connections: the limit is reached" in server.log()
        assert server.metric("http_connections") == 1


def test_a_body_that_stays_half_sent_does_not_keep_a_server_from_stopping(tmp_path):
    server = Server(tmp_path, {"format": {}})
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        head = "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        time.sleep(0.3)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        assert b" 408 " in connection.recv(100)


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch):
    monkeypatch.setattr(intake, "_GRACE", 0.2)
    told = []

    async def app(scope, receive, send):
        try:
            while (await receive())["more_body"]:
                pass
        except HTTPException as error:
            told.append(error.status_code)

    async def drop():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "headers": [(b"content-length", b"100")]}
    began = time.monotonic()
    asyncio.run(intake.IntakeMiddleware(app, Intake(), None)(scope, drop, None))  # type: ignore
    assert told == [408]
    assert time.monotonic() - began < 2


def test_connections_that_announce_much_and_send_nothing_lock_nobody_out(tmp_path):
    with Server(tmp_path, {"format": {}}) as server, ExitStack() as stack:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY}\r\n\r\n{{"
        for _ in range(3):
            stack.enter_context(socket.create_connection(address)).sendall(head.encode())
        time.sleep(0.3)
        began = time.monotonic()
        body = {"samples": [{"response": "<report> Clear. </report>"}]}
        assert server.post("/v1/score", body).status_code == 200
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward", "/verify"])
@pytest.mark.parametrize(
    "text", ['{"samples": [' + "[]," * 200_000 + "[]]}", '{"x": [' + "[]," * 200_000 + "[]]}",
             "{" + ",".join(f'"{i}":0' for i in range(100_000)) + "}"],
    ids=["lists", "others", "keys"],
)  # fmt: skip
def test_a_body_of_very_many_values_is_refused_before_it_is_read(served, path, text):
    answer = httpx.post(
        served.server.url + path, content=text, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["detail"] == "more than 100,000 keys and values"


def test_texts_of_any_punctuation_are_no_values(served):
    text = '[{,:"' * 10_000
    some = [{"response": f"<report> {text} </report>", "reference": text + "\\"}] * 8
    answer = served.server.post("/v1/score", {"samples": some, "step": 1})
    assert answer.status_code == 200


def test_a_body_that_trickles_has_little_time_left_once_the_server_stops(monkeypatch):
    monkeypatch.setattr(intake, "_LAST", 0.2)

    async def drop():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def ask():
        bodies = Intake()
        bodies.drain()
        for _ in range(100):
            await bodies.arrival(drop, asyncio.get_running_loop().time() + 60)

    with pytest.raises(HTTPException):
        asyncio.run(ask())


def test_bodies_wait_for_room_among_those_in_work(monkeypatch):
    monkeypatch.setattr(intake, "_WAIT", 0.3)

    async def ask():
        bodies, most, now = Intake(), 0, 0

        async def work(size, seconds):
            nonlocal most, now
            await bodies.take(size)
            now += size
            most = max(most, now)
            await asyncio.sleep(seconds)
            now -= size
            bodies.give_back(size)

        await asyncio.gather(*(work(MAX_BODY // 2, 0.05) for _ in range(12)))
        assert most == 2 * MAX_BODY
        with pytest.raises(ExhaustedError, match="bytes of requests are in work"):
            await asyncio.gather(*(work(MAX_BODY, 1) for _ in range(3)))

    asyncio.run(ask())


@pytest.mark.parametrize("hanging", [[1], [0, 3, 9, 15, 21, 31]])
def test_samples_that_hang_fail_alone_among_those_of_their_batch(tmp_path, plugin, hanging):
    with Server(tmp_path, {"slow": {"deadline": 1.0}}, environment=plugin) as server:
        texts = ["sleep 30" if i in hanging else "quick" for i in range(32)]
        answer = server.post("/v1/score", {"samples": [{"response": text} for text in texts]})
        statuses = [score["parts"]["slow"]["status"] for score in answer.json()["scores"]]
    assert [i for i, status in enumerate(statuses) if status == "failed"] == hanging
