"""The client against real servers."""

import asyncio
import json
import signal
import threading
import time
from collections import Counter
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.serving import REPORTS, TEXT, Server, free_port, samples

from reward_sdk import client as module
from reward_sdk.client import AsyncRewardClient, RewardClient
from reward_sdk.errors import ConfigError, ServerError, TokenError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample
from reward_sdk.wire import ServedSet

CLEAR = Sample(wrap_report("Clear."), "Clear.")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two servers of one set."""
    folder = tmp_path_factory.mktemp("pair")
    with Server(folder / "a", TEXT) as a, Server(folder / "b", TEXT) as b:
        yield a, b


def scored(server):
    return server.metric('reward_parts_total{reward="rouge_l",status="ok"}')


def test_work_is_shared_among_servers_and_order_is_kept(pair):
    before = [scored(server) for server in pair]
    some = [Sample(wrap_report(f"Clear {i}."), "Clear 7.") for i in range(1000)]
    with RewardClient([server.url for server in pair]) as client:
        found = client.score(some, 1)
    assert [s.total for s in found] == [s.total for s in RewardSet.from_config(TEXT).score(some, 1)]
    assert all(scored(server) - b >= 200 for server, b in zip(pair, before, strict=True))


def test_one_text_with_commas_names_servers_too(pair):
    with RewardClient(f"{pair[0].url}, {pair[1].url}/") as client:
        assert client.score([CLEAR], 1)[0].total == pytest.approx(1.0)


def test_a_server_that_dies_is_left_out(tmp_path):
    a, b = Server(tmp_path / "a", TEXT), Server(tmp_path / "b", TEXT)
    with b, RewardClient([a.url, b.url], timeout=30) as client:
        client.connect()
        a.kill()
        began = time.monotonic()
        assert len(client.score([CLEAR] * 640, 1)) == 640
        assert time.monotonic() - began < 10


def test_a_client_waits_for_a_server_that_is_not_there_yet(tmp_path):
    port = free_port()
    found = []

    def ask():
        with RewardClient(f"http://127.0.0.1:{port}", timeout=60) as client:
            found.extend(client.score([CLEAR], 1))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    with Server(tmp_path, TEXT, port=port):
        asking.join(60)
    assert found[0].total == pytest.approx(1.0)


def test_a_client_that_nobody_answers_gives_up_when_its_time_is_over():
    url = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with RewardClient(url, timeout=1.5) as client, pytest.raises(ServerError, match="ConnectError"):
        client.score([CLEAR], 1)
    assert 1 < time.monotonic() - began < 5


def test_a_server_that_hangs_ends_the_call_in_time(tmp_path, plugin):
    with (
        Server(tmp_path, {"slow": {}}, environment=plugin) as server,
        RewardClient(server.url, timeout=1.0) as client,
    ):
        client.connect()
        with pytest.raises(ServerError, match="it did not answer"):
            client.score([Sample("sleep 3")])


def test_servers_of_different_sets_are_not_mixed(pair, tmp_path):
    other = {**TEXT, "rouge_l": {"weight": 0.5}}
    with (
        Server(tmp_path, other) as server,
        RewardClient([pair[0].url, server.url]) as client,
        pytest.raises(ConfigError, match="one set everywhere"),
    ):
        client.score([CLEAR] * 640, 1)


@pytest.mark.parametrize(
    "urls", ["", [], "node1:8000", ["ftp://x"], "http://a,,http://b", "http://user:secret@a"]
)
def test_what_is_no_url_or_holds_a_password_is_refused(urls):
    with pytest.raises(ConfigError, match="no URLs"):
        RewardClient(urls)


def test_a_refusal_is_an_error_at_once(pair):
    with RewardClient(pair[0].url) as client:
        began = time.monotonic()
        with pytest.raises(ConfigError, match="must say its policy step"):
            client.score([CLEAR])
        with pytest.raises(ConfigError, match="counted from 1"):
            client.score([CLEAR], 0)
        assert time.monotonic() - began < 5


def test_the_token_comes_from_the_environment(tmp_path, monkeypatch):
    with Server(tmp_path, TEXT, environment={"REWARD_SDK_TOKEN": "abc"}) as server:
        with RewardClient(server.url) as client, pytest.raises(TokenError, match="401 a token"):
            client.score([CLEAR], 1)
        monkeypatch.setenv("REWARD_SDK_TOKEN", "abc")
        with RewardClient(server.url) as client:
            assert client.score([CLEAR], 1)[0].total == pytest.approx(1.0)


class Other(ThreadingHTTPServer):
    """Some other server: it answers with what is given for a path, text or code and headers."""

    def __init__(self, answers):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                other.asked[self.path] += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = answers.get(self.path, "hello")
                code, headers, text = (200, {}, answer) if isinstance(answer, str) else answer
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        other, self.asked = self, Counter()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def test_something_else_than_a_reward_server_is_told_apart():
    with (
        Other({}) as other,
        RewardClient(other.url) as client,
        pytest.raises(ConfigError, match="no answer of a reward server"),
    ):
        client.connect()


def logs(value: str = "1", failed: int = 0, apart: int = 0) -> str:
    keys = ("rouge_l", "rouge_l/applied", "rouge_l/failed", "rouge_l/not_applicable")
    pairs = zip(keys, (value, 1, failed, apart), strict=True)
    return "{" + ", ".join(f'"{key}": {number}' for key, number in pairs) + "}"


LIES = [
    ("total", "NaN"), ("total", "Infinity"), ("total", "1e300"), ("total", '"nan"'),
    ("total", "1.5"),
    ("value", "NaN"), ("value", "-0.1"), ("value", "null"), ("value", '"0.5"'), ("value", "true"),
    ("logs", "{}"), ("logs", logs("NaN")), ("logs", logs(failed=7)), ("logs", logs("0.5")),
    ("logs", logs(apart=1)), ("total", "null"), ("status", '"not_applicable"'),
    ("status", '"skipped"'), ("status", '"weird"'),
    ("name", '"another"'), ("bounds", "[0, Infinity]"), ("bounds", "[NaN, 1]"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "lie"), [(None, None), *LIES])
def test_what_no_reward_server_would_say_is_not_believed(what, lie):
    rewards = RewardSet.from_config({"rouge_l": {}})
    info = json.dumps(asdict(ServedSet(**vars(rewards.info), image_folders=())))
    true = {"total": "1", "value": "1", "name": '"rouge_l"', "bounds": "[0, 1]",
            "status": '"ok"', "logs": logs()}  # fmt: skip
    said = true | ({what: lie} if what else {})
    info = info.replace(
        '"bounds": [0.0, 1.0], "needs": [', f'"bounds": {said["bounds"]}, "needs": [', 1
    )
    outcome = f'{{"value": {said["value"]}, "status": {said["status"]}, "reason": ""}}'
    part = f"{said['name']}: {outcome}"
    reply = (
        f'{{"set": "{rewards.digest}", "request_id": null, "scores": [{{"total": {said["total"]}, '
        f'"parts": {{{part}}}, "logs": {said["logs"]}}}]}}'
    )
    with (
        Other({"/v1/rewards": info, "/v1/score": reply}) as other,
        RewardClient(other.url) as client,
    ):
        if what is None:
            assert client.score([CLEAR])[0].total == 1
        else:
            with pytest.raises((ServerError, ConfigError), match=other.url):
                client.score([CLEAR])


def test_an_answer_without_an_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPLY", 1 << 20)
    with (
        Other({"/readyz": "x" * (2 << 20)}) as other,
        RewardClient(other.url) as client,
        pytest.raises(ServerError, match="more than 1,048,576 bytes"),
    ):
        client.connect()


@pytest.mark.parametrize("wait", ["nan", "-5", "0", "inf", "1e-9", "soon", ""])
def test_however_soon_a_server_wants_to_be_asked_again_there_is_a_rest(wait):
    with (
        Other({"/readyz": (503, {"Retry-After": wait}, "")}) as other,
        RewardClient(other.url, timeout=1.0) as client,
    ):
        with pytest.raises(ServerError, match="503"):
            client.connect()
        assert other.asked["/readyz"] < 12


def test_a_server_that_was_stopped_is_noticed_and_another_one_answers(
    tmp_path, plugin, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_SILENCE", 0.3)
    monkeypatch.setattr(module, "_ALIVE", 0.5)
    a, b = (Server(tmp_path / name, TEXT, environment=plugin) for name in "ab")
    with a, b, RewardClient([a.url, b.url], timeout=60) as client:
        client.connect()
        a.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert len(client.score([CLEAR] * 640, 1)) == 640
            assert time.monotonic() - began < 20
        finally:
            a.process.send_signal(signal.SIGCONT)
    assert f"{a.url}: silent" in caplog.text


def test_a_server_that_works_long_is_not_taken_for_one_that_was_stopped(
    tmp_path, plugin, monkeypatch
):
    monkeypatch.setattr(module, "_SILENCE", 0.1)
    with (
        Server(tmp_path, {"slow": {}}, environment=plugin) as server,
        RewardClient(server.url, timeout=60) as client,
    ):
        assert client.score([Sample("sleep 2")])[0].total is not None
        assert server.metric('reward_parts_total{reward="slow",status="ok"}') == 2  # and a warm-up


def test_many_threads_may_share_one_client(pair):
    with RewardClient(pair[0].url) as client:
        totals = []
        calls = [
            threading.Thread(target=lambda: totals.append(client.score([CLEAR], 1)[0].total))
            for _ in range(16)
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
    assert Counter(totals) == {totals[0]: 16}


def test_images_go_by_path_where_the_server_has_them_and_in_the_request_elsewhere(served, tmp_path):
    here = tmp_path / "film.png"
    here.write_bytes((served.images / "film2.png").read_bytes())
    some = [
        Sample(wrap_report(REPORTS[0]), image=image)
        for image in (ImageRef(str(served.images / "film2.png")), ImageRef(str(here)))
    ]
    from reward_sdk.wire import ImageBytes, ImageFile, chunks

    with RewardClient(served.server.url) as client:
        [chunk] = chunks(some, client.connect())
        one, other = client.score(some, 1)
    assert [type(sample.image) for sample in chunk] == [ImageFile, ImageBytes]
    assert one.parts["image_text"].value == other.parts["image_text"].value is not None


def test_requests_are_cut_to_the_size_that_a_server_takes(served, tmp_path):
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000), dtype=np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(noise).save(path)  # 4 MB
    some = [Sample(wrap_report(REPORTS[0]), image=ImageRef(str(path)))] * 24
    with RewardClient(served.server.url) as client:
        scores = client.score(some, 1)
    assert len({score.parts["image_text"].value for score in scores}) == 1
    assert scores[0].parts["image_text"].status == "ok"


def test_no_samples_are_no_scores(served):
    with RewardClient(served.server.url) as client:
        assert client.score([], 1) == []


def test_an_async_client_scores_many_calls_at_once(served):
    some = samples(served.images, 48)

    async def ask():
        async with AsyncRewardClient(served.server.url, concurrency=8) as client:
            return await asyncio.gather(*(client.score([sample], 2) for sample in some))

    found = asyncio.run(ask())
    statuses = Counter(score.parts["image_text"].status for [score] in found)
    assert statuses == {"ok": 36, "not_applicable": 8, "failed": 4}


def test_failures_of_one_outage_count_once_and_rests_stay_short():
    from reward_sdk.client import _Replica

    replica = _Replica("http://x")
    for _ in range(2000):
        replica.failed(asked=0.5)
    assert replica.failures == 1
    for _ in range(2000):
        replica.failed(asked=time.monotonic())
    assert replica.failures == 2001
    assert 0 < replica.rests_until - time.monotonic() <= 5


def test_calls_that_wait_for_the_first_connection_share_their_time():
    url = f"http://127.0.0.1:{free_port()}"

    async def ask():
        async with AsyncRewardClient(url, timeout=1.0) as client:
            calls = [client.score([CLEAR], 1) for _ in range(8)]
            return await asyncio.gather(*calls, return_exceptions=True)

    began = time.monotonic()
    assert all(isinstance(error, ServerError) for error in asyncio.run(ask()))
    assert time.monotonic() - began < 4


def test_a_client_that_is_closed_ends_the_calls_of_other_threads(tmp_path, plugin):
    with Server(tmp_path, {"slow": {}}, environment=plugin) as server:
        client = RewardClient(server.url)
        client.connect()
        errors = []

        def ask():
            try:
                client.score([Sample("sleep 5")])
            except ServerError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        client.close()
        client.close()
        asking.join(5)
        assert len(errors) == 1
        with pytest.raises(ServerError, match="closed"):
            client.score([CLEAR])


def test_a_set_that_is_not_the_one_expected_is_refused(pair):
    async def ask():
        async with AsyncRewardClient(pair[0].url, expected="another") as client:
            await client.score([CLEAR], 1)

    with pytest.raises(ConfigError, match="the run began with another"):
        asyncio.run(ask())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "I;16", "I", "1", "P", "LA", "F"])
def test_pixels_of_every_kind_score_as_in_process(served, mode):
    from PIL import Image

    gray = Image.linear_gradient("L")
    image = gray.convert("I").convert(mode) if mode == "I;16" else gray.convert(mode)
    sample = Sample(wrap_report(REPORTS[0]), REPORTS[0], ImageRef(pixels=image))
    with RewardClient(served.server.url) as client:
        [found] = client.score([sample], 1)
    [expected] = RewardSet.from_config(served.rewards).score([sample], 1)
    one, other = found.parts["image_text"], expected.parts["image_text"]
    assert (one.status, one.value) == (other.status, other.value)


@pytest.mark.parametrize("kind", ["empty", "missing", "bomb", "nul", "circle", "folder", "huge"])
def test_an_image_that_cannot_travel_fails_its_own_part_alone(served, tmp_path, kind):
    from PIL import Image

    path = tmp_path / "film.png"
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "bomb":
            Image.new("1", (9000, 9000)).save(path)
        case "circle":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
        case "huge":
            with path.open("wb") as file:
                file.truncate(40 << 20)
    image = ImageRef(f"{path}\0" if kind == "nul" else str(path))
    good = ImageRef(str(served.images / "film0.png"))
    some = [Sample(wrap_report(REPORTS[0]), REPORTS[0], i) for i in (image, good)]
    with RewardClient(served.server.url) as client:
        bad, fine = client.score(some, 1)
    assert bad.parts["image_text"].status == "failed"
    assert bad.total is not None
    assert fine.parts["image_text"].status == "ok"
