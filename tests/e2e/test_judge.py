"""The reward `judge` before a real vLLM that answers in the schema, with random weights: what it
counts means nothing, but that the score is that of its counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import tiny_text
from support.hostrun import DEVICE
from support.serving import REPORTS, Server, free_port

from reward_sdk import RewardSet, Sample
from reward_sdk.rewards import judge as module
from reward_sdk.rewards.judge import Counts, judge
from reward_sdk.text import wrap_report
from valor_plugin.host.cpu import ENVIRONMENT

pytestmark = pytest.mark.host

MODEL = "tiny-judge"
SAMPLES = [
    Sample(wrap_report(REPORTS[i]), REPORTS[j], id=f"{i}{j}") for i in range(3) for j in range(2)
]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge")
    port, log = free_port(), folder / "vllm.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(tiny_text.write(folder / "model")), "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", "4096", "--enforce-eager", "--gpu-memory-utilization", "0.1",
        # Where blanks are free, random weights may write nothing else for ever.
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    environment = {
        **os.environ, "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", **(ENVIRONMENT if DEVICE == "cpu" else {}),
    }  # fmt: skip
    with log.open("w") as file:
        vllm = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        base = f"http://127.0.0.1:{port}"
        Server.until(lambda: ready(vllm, base, log), seconds=150)
        yield f"{base}/v1"
    finally:
        os.killpg(vllm.pid, signal.SIGKILL)  # its engine, too
        vllm.wait()


def ready(vllm: subprocess.Popen, base: str, log: Path) -> bool:
    assert vllm.poll() is None, log.read_text(errors="replace")[-4000:]
    return httpx.get(f"{base}/health").status_code == 200


def served(url: str) -> float:
    """How many requests the server has answered."""
    text = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
    lines = (line for line in text.splitlines() if line.startswith("vllm:request_success_total"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


SCHEMA = json.loads(Path(module.__file__).with_name("judge.json").read_text())


def answer(url: str, question: str, schema: dict[str, Any] = SCHEMA) -> str:
    """What the server answers whoever asks it."""
    asked = {
        "model": MODEL, "temperature": 0, "max_tokens": 512,
        "messages": [{"role": "user", "content": question}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    }  # fmt: skip
    reply = httpx.post(f"{url}/chat/completions", json=asked, timeout=60).json()
    return reply["choices"][0]["message"]["content"]


@pytest.fixture
def prompt(tmp_path) -> str:
    """A short question: all that random weights see of a long one is its end."""
    file = tmp_path / "prompt.txt"
    file.write_text("{reference}|{report}")
    return str(file)


def test_the_score_is_that_of_the_counts_that_the_server_answers(url, prompt):
    outcomes = judge(url, MODEL, prompt=prompt)(SAMPLES)
    answers = [
        Counts.model_validate_json(answer(url, f"{one.reference}|{one.report}")) for one in SAMPLES
    ]
    assert [one.value for one in outcomes] == [one.score for one in answers]
    assert len({one.value for one in outcomes}) > 1


def test_a_pair_that_was_scored_makes_no_second_request(url):
    rewards = RewardSet.from_config({"judge": {"url": url, "model": MODEL, "deadline": 60}})
    first = [score.total for score in rewards.score(SAMPLES)]
    assert None not in first
    before = served(url)
    assert [score.total for score in rewards.score(SAMPLES[::-1])] == first[::-1]
    assert served(url) == before > 0


def test_a_schema_of_ones_own_is_kept_to(url, prompt, tmp_path):
    side = {"side": {"enum": ["left"]}, **SCHEMA["properties"]}
    schema = {**SCHEMA, "properties": side, "required": [*side]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    [outcome] = judge(url, MODEL, prompt, str(file))(SAMPLES[:1])
    text = answer(url, f"{SAMPLES[0].reference}|{SAMPLES[0].report}", schema)
    assert text.startswith('{"side": "left"')
    assert outcome.value == Counts.model_validate_json(text).score


def test_an_answer_that_is_cut_off_is_a_failure(url):
    [outcome] = judge(url, MODEL, max_tokens=10)(SAMPLES[:1])
    assert outcome.status == "failed"
    assert "raise max_tokens, 10" in outcome.reason


def test_a_model_that_is_not_served_is_named(url):
    [outcome] = judge(url, "another")(SAMPLES[:1])
    assert outcome.status == "failed"
    assert ": 404 " in outcome.reason
    assert "another" in outcome.reason


def test_a_prompt_that_is_too_long_is_a_failure_without_the_text(url):
    sample = Sample(wrap_report("No effusion. " * 500), "Clear.")
    [outcome] = judge(url, MODEL)([sample])
    assert ": 400 " in outcome.reason
    assert "No effusion" not in outcome.reason
