"""What goes wrong under way: processes that are killed, rewards that raise, hang or are slow."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.serving import REPORTS, TEXT, Server, free_port

from reward_sdk.client import AsyncRewardClient, RewardClient
from reward_sdk.errors import ScoringError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample


def in_background(call):
    return ThreadPoolExecutor(1).submit(call)


def test_a_server_that_is_killed_in_the_middle_and_started_again_loses_and_doubles_nothing(
    tmp_path, plugin
):
    port = free_port()
    rewards = {**TEXT, "slow": {"weight": 0.1}}
    some = [
        Sample(f"<report> {REPORTS[i % 5]} sleep 0.002 </report>", REPORTS[i % 3], id=f"s{i}")
        for i in range(640)
    ]
    expected = RewardSet.from_config(TEXT).score(some, 4)
    server = Server(tmp_path / "one", rewards, port=port, environment=plugin)
    with RewardClient(server.url, timeout=100) as client:
        scoring = in_background(lambda: client.score(some, 4))
        Server.until(lambda: server.metric('reward_parts_total{reward="slow",status="ok"}') > 64)
        assert not scoring.done()
        server.kill()
        time.sleep(0.5)
        assert not scoring.done()
        with Server(tmp_path / "two", rewards, port=port, environment=plugin):
            found = scoring.result(100)
    assert len(found) == 640
    names = list(TEXT)
    for one, other in zip(found, expected, strict=True):
        assert [one.parts[n] for n in names] == [other.parts[n] for n in names]


def test_a_request_that_comes_again_under_its_id_is_not_scored_twice(tmp_path, plugin):
    notes = tmp_path / "notes"
    environment = {**plugin, "NOTES": str(notes)}
    with Server(tmp_path, {"noting": {}, "slow": {}}, environment=environment) as server:
        notes.write_text("")
        body = {"samples": [{"response": "sleep 0.5", "id": "s1"}], "request_id": "r1"}
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: server.post("/v1/score", body).json(), range(3)))
        answers.append(server.post("/v1/score", body).json())
        assert answers == [answers[0]] * 4
        assert notes.read_text() == "s1\n"
        other = {**body, "samples": [{"response": "another"}]}
        assert server.post("/v1/score", other).status_code == 409


def test_a_request_that_failed_is_scored_when_it_comes_again(tmp_path, plugin):
    rewards = {"moody": {"on_failure": "raise"}}
    with Server(tmp_path, rewards, environment=plugin) as server:
        body = {"samples": [{"response": "poison"}], "request_id": "r1"}
        for _ in range(2):
            answer = server.post("/v1/score", body)
            assert answer.status_code == 424
            assert "I will not read this" in answer.json()["detail"]
        with RewardClient(server.url) as client, pytest.raises(ScoringError, match="not read this"):
            client.score([Sample("poison")])


def test_a_reward_that_raises_on_a_sample_fails_that_part_alone(tmp_path, plugin):
    rewards = {"moody": {"weight": 1.0}, "rouge_l": {"weight": 1.0}}
    with Server(tmp_path, rewards, environment=plugin) as server:
        good, bad = wrap_report("Clear."), wrap_report("Clear, poison.")
        some = [Sample(text, "Clear.") for text in (good, bad, good, bad)]
        with RewardClient(server.url) as client:
            scores = client.score(some)
        assert [score.parts["moody"].status for score in scores] == ["ok", "failed"] * 2
        assert [score.logs["moody/failed"] for score in scores] == [0.0, 1.0] * 2
        assert [score.total for score in scores[:2]] == [
            2.0, pytest.approx(2 * scores[1].parts["rouge_l"].value)
        ]  # fmt: skip
        assert "I will not read this" in httpx.get(f"{server.url}/").text


def test_a_sample_whose_reward_raises_does_not_stop_others_of_the_same_batch(tmp_path, plugin):
    rewards = {"moody": {"on_failure": "raise"}}
    options = ("--max-wait-ms", "300")
    with Server(tmp_path, rewards, *options, environment=plugin) as server:

        async def ask():
            async with AsyncRewardClient(server.url) as client:
                await client.connect()
                calls = [client.score([Sample(text)]) for text in ("fine", "poison", "fine")]
                return await asyncio.gather(*calls, return_exceptions=True)

        one, two, three = asyncio.run(ask())
        assert one[0].total == three[0].total == 1.0
        assert isinstance(two, ScoringError)


def test_a_reward_past_its_deadline_is_given_up_counted_and_called_again(tmp_path, plugin):
    rewards = {"slow": {"deadline": 0.5}, "format": {}}
    with Server(tmp_path, rewards, environment=plugin) as server:
        hanging = {"samples": [{"response": "sleep 30"}]}
        began = time.monotonic()
        [score] = server.post("/v1/score", hanging).json()["scores"]
        assert time.monotonic() - began < 10
        assert score["parts"]["slow"]["status"] == "failed"
        assert "deadline of 0.5 s" in score["parts"]["slow"]["reason"]
        assert score["parts"]["format"]["status"] == "ok"
        assert server.metric('reward_late_calls{reward="slow"}') == 1
        [score] = server.post("/v1/score", {"samples": [{"response": "quick"}]}).json()["scores"]
        assert score["parts"]["slow"]["status"] == "ok"


def test_a_reward_that_has_stopped_answering_makes_the_server_unready(tmp_path, plugin):
    rewards = {"slow": {"deadline": 0.05}}
    with Server(tmp_path, rewards, environment=plugin) as server:
        for _ in range(16):
            server.post("/v1/score", {"samples": [{"response": "sleep 20"}]})
        answer = httpx.get(f"{server.url}/readyz")
        assert answer.status_code == 503
        assert "16 calls have not come back" in answer.json()["waiting_for"]["slow"]


def test_long_texts_do_not_keep_a_server_from_answering_others(tmp_path):
    with Server(tmp_path, {"findings_f1": {}, "format": {}}) as server:
        long = {"response": f"<report> {'no effusion, ' * 7000} </report>", "reference": "Clear."}
        waiting = in_background(lambda: server.post("/v1/score", {"samples": [long] * 4}))
        end = time.monotonic() + 5
        while not waiting.done() and time.monotonic() < end:
            began = time.monotonic()
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            assert time.monotonic() - began < 2
        query = {"query": ["q " + "<s>" * 100_000 + "x"], "prompts": ["q"], "labels": ["Clear."]}
        began = time.monotonic()
        assert server.post("/get_reward", query).status_code == 200
        assert time.monotonic() - began < 20
        assert waiting.result(60).status_code == 200


def test_get_reward_answers_in_time_whatever_a_reward_does(tmp_path, plugin):
    rewards = {"slow": {"deadline": 1.0}, "moody": {}}
    with Server(tmp_path, rewards, environment=plugin) as server:
        body = {"query": ["q sleep 30", "q poison"], "prompts": ["q"] * 2, "labels": ["", ""]}
        answer = server.post("/get_reward", body)
        assert answer.status_code == 200
        logs = answer.json()["extra_logs"]
        assert logs["slow/failed"] == [1.0, 0.0] or logs["slow/failed"] == [1.0, 1.0]
        assert logs["moody/failed"] == [0.0, 1.0]
        assert all(isinstance(reward, float) for reward in answer.json()["rewards"])


def test_a_full_queue_answers_429_and_clients_come_again(tmp_path, plugin):
    rewards = {"slow": {}}
    options = ("--max-queue", "4", "--max-batch", "1")
    with Server(tmp_path, rewards, *options, environment=plugin) as server:
        body = {"samples": [{"response": "sleep 0.3"}]}
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: server.post("/v1/score", body), range(12)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        refused = answers[codes.index(429)]
        assert refused.headers["retry-after"] == "1"
        assert "4 may" in refused.json()["detail"]

        async def ask():
            async with AsyncRewardClient(server.url, timeout=60) as client:
                return await asyncio.gather(
                    *(client.score([Sample("sleep 0.1")]) for _ in range(16))
                )

        scores = asyncio.run(ask())
        assert [score.total for [score] in scores] == [scores[0][0].total] * 16


def test_get_reward_waits_for_room_instead(tmp_path, plugin):
    options = ("--max-queue", "2", "--max-batch", "1")
    with Server(tmp_path, {"slow": {}}, *options, environment=plugin) as server:
        body = {"query": ["q sleep 0.1"], "prompts": ["q"], "labels": [""]}
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: server.post("/get_reward", body), range(10)))
        assert [answer.status_code for answer in answers] == [200] * 10
        assert [a.json()["extra_logs"]["unscored"] for a in answers] == [[0.0]] * 10


def test_what_was_accepted_is_answered_before_a_server_stops(tmp_path, plugin):
    server = Server(tmp_path, {"slow": {}}, environment=plugin)
    body = {"samples": [{"response": "sleep 2"}]}
    waiting = in_background(lambda: server.post("/v1/score", body))
    Server.until(lambda: server.metric("reward_pending_samples") == 1)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    answer = waiting.result(30)
    stopping.join()
    assert answer.json()["scores"][0]["parts"]["slow"]["status"] == "ok"
    assert server.process.returncode == 0
    assert "stopped" in server.log()


def test_a_client_that_leaves_does_not_disturb_the_others(tmp_path, plugin):
    with Server(tmp_path, {"slow": {}}, environment=plugin) as server:
        for _ in range(5):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{server.url}/v1/score", json={"samples": [{"response": "sleep 0.2"}]},
                    timeout=0.05,
                )  # fmt: skip
        assert server.post("/v1/score", {"samples": [{"response": "x"}]}).status_code == 200
        Server.until(lambda: server.metric("reward_pending_samples") == 0)


@pytest.mark.slow
def test_memory_stays_as_it_is_over_100_000_requests(tmp_path):
    # Responses are all different; references come back, as those of a training set do, of which a
    # server remembers the annotations of 65,536.
    psutil = pytest.importorskip("psutil")
    rewards = {**TEXT, "findings_f1": {"weight": 0.3}}
    with Server(tmp_path, rewards) as server:
        process = psutil.Process(server.process.pid)
        sizes = {}

        async def ask(numbers):
            limits = httpx.Limits(max_connections=32)
            async with httpx.AsyncClient(limits=limits, timeout=60) as client:

                async def one(i):
                    report = wrap_report(f"{REPORTS[i % 5]} Nodule of {i % 977} mm.")
                    sample = {"response": report, "reference": f"{REPORTS[i % 4]} {i // 8 % 1000}"}
                    body = {"samples": [sample], "step": 1, "request_id": str(i)}
                    content = json.dumps(body)
                    headers = {"Content-Type": "application/json"}
                    url = f"{server.url}/v1/score"
                    answer = await client.post(url, content=content, headers=headers)
                    assert answer.status_code == 200

                for start in range(numbers.start, numbers.stop, 500):
                    await asyncio.gather(*map(one, range(start, start + 500)))

        for end in (10_000, 100_000):
            asyncio.run(ask(range(max(sizes, default=0), end)))
            sizes[end] = process.memory_info().rss
        assert sizes[100_000] < 1.05 * sizes[10_000], sizes
