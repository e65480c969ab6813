"""The reward `judge` before servers that answer well, badly, late or never; tests/e2e/test_judge.py
asks a real vLLM."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
from support.serving import free_port

from reward_sdk import RewardSet, Sample
from reward_sdk.errors import ConfigError
from reward_sdk.rewards import judge as module
from reward_sdk.rewards.judge import Counts, judge
from reward_sdk.text import wrap_report

NONE = dict.fromkeys(
    ("false_finding", "missing_finding", "wrong_location", "wrong_severity", "false_comparison",
     "missing_comparison"), 0,
)  # fmt: skip
PAIR = Sample(wrap_report("Left effusion."), "Small left effusion.")


def counts(matched: int = 0, significant: int = 0, insignificant: int = 0) -> dict[str, Any]:
    return {
        "matched_findings": matched,
        "significant_errors": {**NONE, "missing_finding": significant},
        "insignificant_errors": {**NONE, "wrong_severity": insignificant},
    }


def completion(text: str | None, ended: str = "stop") -> tuple[int, dict[str, str], Any]:
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": ended}]}


def error(status: int, message: str = "not today", **headers: str) -> tuple[int, dict, Any]:
    return status, headers, {"error": {"message": message}}


GOOD = completion(json.dumps(counts(matched=3, significant=1)))


class Server:
    """Plays a judge: gives each answer once, the last one for ever.

    Attributes:
        answers: (status, headers, JSON or bytes), or what waits before it gives them.
        asked: the requests' bodies.
        headers: the requests' headers.
        most: how many requests were open at a time.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = [GOOD]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._open = 0
        self._lock = Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = server._take(self.path, body, dict(self.headers))
                status, headers, content = answer() if callable(answer) else answer
                with server._lock:
                    server._open -= 1
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _take(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        with self._lock:
            self.asked.append({**body, "path": path})
            self.headers.append(headers)
            self._open += 1
            self.most = max(self.most, self._open)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def question(self) -> str:
        return self.asked[-1]["messages"][0]["content"]


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST", 0.01)
    server = Server()
    Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def later(seconds: float) -> Callable[[], Any]:
    def wait() -> Any:
        time.sleep(seconds)
        return GOOD

    return wait


def reason(server: Server, **settings: Any) -> str:
    [outcome] = judge(server.url, "m", **settings)([PAIR])
    assert outcome.status == "failed"
    assert outcome.value is None
    return outcome.reason


@pytest.mark.parametrize(
    ("matched", "significant", "insignificant", "score"),
    [
        (3, 0, 0, 1.0),
        (3, 1, 0, 0.75),
        (3, 0, 5, 1.0),
        (0, 2, 0, 0.0),
        (0, 0, 1, 0.0),
        (0, 0, 0, 1.0),  # two normal reports; GREEN gives 0
        (20, 120, 120, 1 / 7),
    ],
)
def test_the_score_is_greens_formula_over_the_counts(matched, significant, insignificant, score):
    assert Counts(**counts(matched, significant, insignificant)).score == score


@pytest.mark.parametrize("category", NONE)
def test_a_significant_error_of_each_category_lowers_the_score(category):
    found = {**counts(matched=1), "significant_errors": {**NONE, category: 1}}
    assert Counts(**found).score == 0.5


def test_a_set_asks_the_server_for_a_reward(server):
    rewards = RewardSet.from_config({"judge": {"url": server.url, "model": "m", "deadline": 20}})
    [score] = rewards.score([PAIR])
    assert score.total == 0.75


def test_the_question_has_both_texts_and_the_answer_a_schema(server):
    judge(server.url + "/", "a-model")([PAIR])
    [body] = server.asked
    assert body["path"] == "/v1/chat/completions"
    assert body["model"] == "a-model"
    assert body["temperature"] == 0
    assert "<reference>\nSmall left effusion.\n</reference>" in server.question
    assert "<report>\nLeft effusion.\n</report>" in server.question
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["matched_findings"]["maximum"] == 20


def test_a_pair_is_asked_for_once(server):
    reward = judge(server.url, "m")
    other = Sample(PAIR.response, "Clear.")
    assert [one.value for one in reward([PAIR, PAIR, other])] == [0.75] * 3
    reward([other, PAIR])
    assert len(server.asked) == 2


def test_the_oldest_answers_are_forgotten(server, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 2)
    reward = judge(server.url, "m")
    for reference in ("a", "b", "a", "c", "a", "b"):
        reward([Sample(PAIR.response, reference)])
    assert len(server.asked) == 4


def test_a_failure_is_not_remembered(server):
    server.answers = [completion("no JSON"), GOOD]
    reward = judge(server.url, "m")
    assert [reward([PAIR])[0].status for _ in range(2)] == ["failed", "ok"]


def test_requests_run_side_by_side_up_to_the_limit(server):
    server.answers = [later(0.1)]
    reward = judge(server.url, "m", concurrency=3)
    reward([Sample(PAIR.response, str(i)) for i in range(9)])
    assert server.most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_has_no_answer_yet_is_asked_again(server, status):
    server.answers = [error(status), error(status), GOOD]
    [outcome] = judge(server.url, "m")([PAIR])
    assert outcome.value == 0.75
    assert len(server.asked) == 3


def test_a_server_that_says_when_is_asked_then(server):
    server.answers = [error(429, Retry_After="1"), GOOD]
    start = time.monotonic()
    judge(server.url, "m")([PAIR])
    assert time.monotonic() - start >= 1


def test_a_server_that_fails_is_given_up_after_the_retries(server):
    server.answers = [error(500, "out of order")]
    assert reason(server, retries=2).endswith(": 3 attempts; last: 500 out of order")
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_final(server, status):
    server.answers = [error(status, "no model m")]
    assert reason(server) == f"judge {server.url}: {status} no model m"
    assert len(server.asked) == 1


def test_a_server_that_is_none_of_the_kind_makes_the_url_suspect(server):
    server.answers = [(404, {}, b'{"detail": "Not Found"}')]
    assert "vLLM's ends in /v1" in reason(server)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (completion("Three findings match."), "does not fit the schema: Invalid JSON"),
        (completion("[]"), "does not fit the schema"),
        (completion('{"matched_findings": 1}'), "significant_errors: Field required"),
        (
            completion(json.dumps(counts(significant=-1))),
            "significant_errors.missing_finding: Input should be greater than or equal to 0",
        ),
        (
            completion(json.dumps({**counts(), "matched_findings": "3"})),
            "matched_findings: Input should be a valid integer",
        ),
        (completion('{"matched', "length"), "raise max_tokens, 512"),
        (completion(None, "content_filter"), "ended with 'content_filter'"),
        (completion(None), "the answer has no text"),
        ((200, {}, b"<html>"), "no chat completion"),
        ((200, {}, {"choices": []}), "no chat completion"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_failure_that_says_where(server, answer, problem):
    server.answers = [answer]
    assert problem in reason(server)


def test_one_answer_that_does_not_fit_leaves_the_others(server):
    server.answers = [completion("{}"), GOOD]
    samples = [Sample(PAIR.response, str(i)) for i in range(4)]
    outcomes = judge(server.url, "m", concurrency=1)(samples)
    assert [one.status for one in outcomes] == ["failed", "ok", "ok", "ok"]


def test_no_report_and_no_answer_is_repeated_at_length(server):
    server.answers = [completion("secret " * 300)]
    assert "secret" not in reason(server)
    server.answers = [error(400, "secret " * 300)]
    assert len(reason(server)) < 300


def test_a_server_that_hangs_is_waited_for_in_vain_once(server):
    server.answers = [later(1)]
    assert "no answer within 0.2 s" in reason(server, timeout=0.2)
    assert len(server.asked) == 1


def test_a_set_is_built_before_its_judge_is_up(monkeypatch):
    monkeypatch.setattr(module, "_FIRST", 0.01)
    url = f"http://127.0.0.1:{free_port()}/v1"
    rewards = RewardSet.from_config({"judge": {"url": url, "model": "m"}})
    [score] = rewards.score([PAIR])
    assert score.parts["judge"].status == "failed"
    assert f"judge {url}: 4 attempts" in score.parts["judge"].reason
    assert "is the server up" in score.parts["judge"].reason


def test_calls_that_a_deadline_cut_share_the_answers_that_come(server):
    server.answers = [later(1.7)]
    entry = {"url": server.url, "model": "m", "deadline": 3}  # alone after half of it
    rewards = RewardSet.from_config({"judge": entry})
    scores = rewards.score([Sample(PAIR.response, str(i)) for i in range(6)])
    assert [score.total for score in scores] == [0.75] * 6
    assert len(server.asked) == 6


def test_a_fork_asks_for_itself(server):
    reward = judge(server.url, "m")
    reward([PAIR])
    child = get_context("fork").Process(target=lambda: sys.exit(reward([PAIR])[0].value != 0.75))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert len(server.asked) == 2


def test_the_key_is_read_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k3y\n")
    judge(server.url, "m", api_key_env="JUDGE_KEY")([PAIR])
    assert server.headers[0]["Authorization"] == "Bearer k3y"


def test_no_key_is_sent_where_none_is_named(server):
    judge(server.url, "m")([PAIR])
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(("key", "problem"), [(None, "is not set"), ("a b", "one word")])
def test_a_key_that_is_none_is_told_and_not_shown(monkeypatch, key, problem):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if key:
        monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ConfigError, match=problem) as raised:
        judge("http://node1/v1", "m", api_key_env="JUDGE_KEY")
    assert "a b" not in str(raised.value)


def test_a_prompt_of_ones_own_is_filled_once(server, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text('{"a": {}} {reference} | {report}')
    sample = Sample(wrap_report("It says {reference}."), "It says {report}.")
    judge(server.url, "m", prompt=str(prompt))([sample])
    assert server.question == '{"a": {}} It says {report}. | It says {reference}.'


@pytest.mark.parametrize("text", ["{report}", "{reference}"])
def test_a_prompt_without_one_of_the_texts_is_refused(tmp_path, text):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text)
    with pytest.raises(ConfigError, match=r"has no \{re"):
        judge("http://node1/v1", "m", prompt=str(prompt))


def schema_file(folder: Path, change: Callable[[Any], object]) -> str:
    schema = json.loads(module._SCHEMA.read_text())
    change(schema)
    file = folder / "schema.json"
    file.write_text(json.dumps(schema))
    return str(file)


def test_a_schema_may_ask_for_more_than_the_counts(server, tmp_path):
    rationale = {"rationale": {"type": "string", "maxLength": 500}}
    file = schema_file(tmp_path, lambda s: s.update(properties=rationale | s["properties"]))
    server.answers = [completion(json.dumps({"rationale": "why", **counts(matched=1)}))]
    [outcome] = judge(server.url, "m", schema=file)([PAIR])
    assert outcome.value == 1.0
    sent = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert [*sent["properties"]][:2] == ["rationale", "matched_findings"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda s: s["required"].remove("matched_findings"), "matched_findings"),
        (lambda s: s["properties"].pop("insignificant_errors"), "insignificant_errors"),
        (
            lambda s: s["properties"]["significant_errors"]["properties"].pop("false_finding"),
            "significant_errors.false_finding",
        ),
        (
            lambda s: s["properties"]["matched_findings"].update(type="number"),
            "matched_findings must be one of the properties, of type integer",
        ),
        (lambda s: s["properties"].update(significant_errors=3), "significant_errors"),
    ],
)
def test_a_schema_without_a_count_is_refused_with_its_place(tmp_path, change, place):
    with pytest.raises(ConfigError, match=place):
        judge("http://node1/v1", "m", schema=schema_file(tmp_path, change))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "node1:8000"}, "url: 'node1:8000'; write one such as"),
        ({"url": "http://me:secret@node1/v1"}, "url: not shown"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"prompt": "missing.txt"}, "prompt: cannot read missing.txt"),
        ({"schema": "missing.json"}, "schema: cannot read missing.json"),
        ({"schema": str(module._PROMPT)}, "is not JSON"),
    ],
)
def test_a_setting_that_is_none_is_told_when_the_set_is_built(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        judge(**{"url": "http://node1/v1", "model": "m", **settings})


def test_what_the_model_counted_is_explained_without_asking_again(server):
    server.answers = [completion(json.dumps(counts(matched=3, significant=1, insignificant=2)))]
    reward = judge(server.url, "m")
    reward([PAIR])
    found = [(one.finding, one.response, one.agrees) for one in reward.explain(PAIR)]
    assert found == [
        ("matched findings", "3", None),
        ("missing finding", "1 significant, 0 insignificant", False),
        ("wrong severity", "0 significant, 2 insignificant", None),
    ]
    assert len(server.asked) == 1
