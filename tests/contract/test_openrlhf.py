"""OpenRLHF without the plugin: its own executor fetches rewards, its own code takes them."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from support.serving import Server
from support.stacks import SET, in_process, install, label, of_unscored, samples, write_films

from reward_sdk.adapters import describe

pytestmark = pytest.mark.contract
pytest.importorskip("openrlhf")
EXAMPLE = describe("openrlhf").example


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Where rewards are fetched from, the samples, and what they score."""
    folder = tmp_path_factory.mktemp("openrlhf")
    environment = install(folder / "site")
    films = write_films(folder / "films")
    (folder / "rewards.py").write_text(EXAMPLE)
    (folder / "rewards.yaml").write_text(json.dumps({"rewards": SET}))
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder / "site"))
    patch.chdir(folder)
    batch = samples(films)
    images = ("--images", str(films))
    with Server(folder / "server", SET, *images, environment=environment) as server:
        urls = {"file": "rewards.py", "HTTP": f"{server.url}/get_reward"}
        yield urls, batch, in_process("rewards.yaml", batch)
    patch.undo()


def fetched(endpoint, batch):
    """What a rollout gets, one response at a time and all at once, as OpenRLHF asks."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(remote_rm_url=[endpoint])
    fetch = (
        executor._fetch_rewards_via_func if executor.reward_func
        else executor._fetch_rewards_via_http
    )  # fmt: skip

    async def all_of_them():
        calls = (fetch([f"Read. {s.response}</s>"], ["Read."], [label(s)]) for s in batch)
        return await asyncio.gather(*calls)

    return [reply for [reply] in asyncio.run(all_of_them())]


def experience(reply):
    """OpenRLHF's record of one rollout with this reward."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    response = {
        "observation_tokens": [1, 2, 3], "action_ranges": [(1, 3)], "rollout_log_probs": None,
        "prompt": "Read.", "label": "", "truncated": False, "reward": reply["rewards"],
        "scores": reply["scores"], "extra_logs": reply["extra_logs"],
    }  # fmt: skip
    return SamplesGenerator._process_response_into_experience(
        SimpleNamespace(), response, max_len=8
    )


@pytest.mark.parametrize("way", ["file", "HTTP"])
def test_a_rollout_gets_every_sample_s_total_and_parts(way, study):
    urls, batch, expected = study
    for sample, reply, want in zip(batch, fetched(urls[way], batch), expected, strict=True):
        logs = {key: value for key, [value] in reply["extra_logs"].items()}
        assert of_unscored(logs, reply["rewards"][0]).close_to(want), sample.id
        assert 0.0 <= reply["scores"][0] <= 1.0


@pytest.mark.parametrize("way", ["file", "HTTP"])
def test_its_rollout_code_makes_one_batch_of_all_of_them(way, study):
    import torch
    from openrlhf.trainer.ppo_utils.experience import make_experience_batch

    urls, batch, expected = study
    experiences = [experience(reply) for reply in fetched(urls[way], batch)]
    made = make_experience_batch(experiences)
    assert all(torch.isfinite(torch.stack(list(values))).all() for values in made.info.values())
    unscored = [float(value) for value in torch.stack(list(made.info["unscored"])).flatten()]
    assert unscored == [float(want.total is None) for want in expected]


def test_the_example_is_at_most_five_lines():
    assert len(EXAMPLE.splitlines()) <= 5


def test_it_is_the_version_that_is_named():
    from importlib.metadata import version

    named = describe("openrlhf").facts["Run for real"]
    assert named.startswith(f"openrlhf {version('openrlhf')},")
