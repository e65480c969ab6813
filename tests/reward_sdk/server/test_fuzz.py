"""Requests that nobody would send: from the OpenAPI document, valid and not, and made by hand."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.serving import Server

schemathesis = pytest.importorskip("schemathesis")

CODES = {200, 400, 401, 405, 409, 413, 415, 422, 424, 429, 503}
PATHS = ("/v1/score", "/get_reward", "/verify")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    rewards = {"rouge_l": {}, "bleu": {}, "meteor": {}, "findings_f1": {}, "repetition": {},
               "format": {"think": True}}  # fmt: skip
    with Server(tmp_path_factory.mktemp("fuzzed"), rewards) as server:
        yield server


def operations(server):
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [operation.ok() for operation in document.get_all_operations()]


def fuzz(server, examples: int) -> int:
    """Sends so many requests in all; gives how many were scored."""
    scored = 0
    chosen = operations(server)
    assert {operation.path for operation in chosen} > set(PATHS)
    modes = [(o, mode) for o in chosen for mode in schemathesis.GenerationMode]
    for operation, mode in modes:
        cases = operation.as_strategy(generation_mode=mode)
        few = 10 if operation.method.upper() == "GET" else examples // 9

        @settings(max_examples=few, deadline=None, suppress_health_check=list(HealthCheck))
        @given(cases)
        def check(case) -> None:
            nonlocal scored
            response = case.call()
            assert response.status_code in CODES, response.content[:500]
            scored += response.status_code == 200

        try:
            check()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:  # a GET has nothing to be wrong
                raise

    # By hand: values of any kind where the interface has fields, and bytes of any kind.
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=12,
    )
    fields = ["samples", "step", "request_id", "query", "prompts", "labels", "response", "output",
              "responses_create_params", "reference", "image", "view", "id"]  # fmt: skip
    nearly = st.dictionaries(st.sampled_from(fields), anything, max_size=8)
    text = st.text(max_size=300) | st.sampled_from(["<report>", "<report> x </report>", "\ud800"])
    shaped = st.fixed_dictionaries(
        {
            "samples": st.lists(
                st.fixed_dictionaries(
                    {"response": text}, optional={"reference": text, "image": anything}
                ),
                max_size=5,
            ),
            "query": st.lists(text, max_size=3),
            "prompts": st.lists(text, max_size=3),
            "labels": st.lists(text | anything, max_size=3),
            "response": st.fixed_dictionaries({"output": st.lists(nearly | anything, max_size=3)}),
        }
    )
    as_bytes = st.one_of(
        st.binary(max_size=200), (anything | nearly | shaped).map(lambda b: json.dumps(b).encode())
    )
    with httpx.Client(base_url=server.url, timeout=60) as client:

        @settings(max_examples=examples // 3, deadline=None)
        @given(st.sampled_from(PATHS), as_bytes)
        def throw(path, body) -> None:
            nonlocal scored
            headers = {"Content-Type": "application/json"}
            response = client.post(path, content=body, headers=headers)
            assert response.status_code in CODES, response.text[:500]
            scored += response.status_code == 200

        throw()
    return scored


def test_nothing_that_is_sent_breaks_the_server(server):
    assert fuzz(server, 900) > 50
    assert "Traceback" not in server.log()


@pytest.mark.slow
def test_ten_thousand_strange_requests_break_nothing_and_leave_nothing(server):
    psutil = pytest.importorskip("psutil")
    process = psutil.Process(server.process.pid)
    fuzz(server, 2_000)
    before, files = process.memory_info().rss, process.num_fds()
    assert fuzz(server, 10_000) > 500
    assert process.memory_info().rss < 1.2 * before
    assert process.num_fds() <= files + 5
    assert "Traceback" not in server.log()
