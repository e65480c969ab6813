"""The rollout's executor apart from the host; its work inside of it is tested in tests/e2e."""

import asyncio

import httpx
import pytest
from support.serving import free_port

from reward_sdk.client import AsyncRewardClient
from reward_sdk.errors import ConfigError
from reward_sdk.types import Outcome, Sample, Score

pytest.importorskip("openrlhf")


def test_a_server_that_stays_away_leaves_a_sample_unscored_under_the_same_keys():
    from valor_plugin.host.executor import score_of

    keys = ("rouge_l", "rouge_l/applied", "rouge_l/failed", "rouge_l/not_applicable")
    away = AsyncRewardClient(f"http://127.0.0.1:{free_port()}", timeout=0.3)
    score = asyncio.run(score_of(Sample("<report> Clear. </report>"), 1, away, keys))
    assert score.total is None
    assert score.logs == dict.fromkeys(keys, 0.0) | {"rouge_l/failed": 1.0}


@pytest.mark.parametrize(
    ("parts", "total", "wanted"),
    [
        ([Outcome(1.0)], 1.0, True),
        ([Outcome(1.0), Outcome(None, "not_applicable")], 1.0, True),
        ([Outcome(1.0), Outcome(None, "skipped")], 1.0, True),
        ([Outcome(1.0), Outcome(0.0, "failed")], 1.0, True),  # the set names a value for failures
        ([Outcome(1.0), Outcome(None, "failed")], 1.0, False),
        ([Outcome(None, "not_applicable")], None, False),
    ],
)
def test_what_failed_keeps_a_sample_from_comparison_and_what_does_not_apply_does_not(
    parts, total, wanted
):
    from valor_plugin.host.executor import comparable

    assert comparable(Score(total, dict(enumerate(parts)), {})) is wanted  # type: ignore[arg-type]


def test_a_server_that_refuses_the_token_ends_the_run_and_says_where_a_joined_cluster_has_it():
    from valor_plugin.host.executor import score_of

    refuses = AsyncRewardClient("http://node1:8000")
    answer = httpx.Response(401, json={"detail": "a token is needed"})
    refuses._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))
    with pytest.raises(ConfigError, match=r"401 a token .* nodes must have REWARD_SDK_TOKEN in"):
        asyncio.run(score_of(Sample("<report> Clear. </report>"), 1, refuses, ()))
