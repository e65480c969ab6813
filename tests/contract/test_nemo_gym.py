"""NeMo Gym's own server runs the shipped recipe, and NeMo Gym's own client calls it."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.serving import Server, free_port

from reward_sdk.adapters import describe
from reward_sdk.reward_set import RewardSet
from reward_sdk.types import Sample

pytestmark = pytest.mark.contract
pytest.importorskip("nemo_gym")
RECIPE = Path(__file__).parents[2] / "recipes/nemo_gym"
ROWS = [json.loads(line) for line in (RECIPE / "data/example.jsonl").read_text().splitlines()]
RESPONSES = [
    "<report> The heart is enlarged. </report>",
    "<report> Left pleural effusion. </report>",
    "The lungs are clear.",
    "<report> Right pneumothorax. </report>",
    "<report> The lungs are clear. </report>",
]


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    """A client of the server that `app.py` starts, in the environment that NeMo Gym gives it."""
    from nemo_gym.config_types import BaseServerConfig
    from nemo_gym.server_utils import ServerClient, request
    from omegaconf import OmegaConf

    folder = tmp_path_factory.mktemp("gym") / "report_rewards"
    shutil.copytree(RECIPE, folder)
    config = OmegaConf.load(folder / "configs/report_rewards.yaml")
    server = config.report_rewards.resources_servers.report_rewards
    server.host, server.port = "127.0.0.1", free_port()
    head = {"host": "127.0.0.1", "port": free_port()}
    config.head_server, config.dry_run = head, False
    patch = pytest.MonkeyPatch()  # the client reads them, too
    patch.setenv("NEMO_GYM_CONFIG_DICT", OmegaConf.to_yaml(config))
    patch.setenv("NEMO_GYM_CONFIG_PATH", "report_rewards")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=folder, stdout=log, stderr=log)
    client = ServerClient(head_server_config=BaseServerConfig(**head), global_config_dict=config)

    async def ask(path, row, url):
        if url is None:
            answer = await client.post("report_rewards", path, json=row)
        else:  # NeMo Gym's own request function, which its client calls
            answer = await request("POST", f"{url}{path}", json=row)
        answer.raise_for_status()
        return await answer.json()

    def there():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        return "Uvicorn running" in (folder / "log").read_text()

    with asyncio.Runner() as runner:
        Server.until(there)
        yield lambda path, row, url=None: runner.run(ask(path, row, url))
    patch.undo()
    process.terminate()
    process.wait(timeout=60)


def response(text):
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed",
               "content": content}  # fmt: skip
    return {
        "id": "r", "created_at": 0, "model": "policy", "object": "response", "output": [message],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    }  # fmt: skip


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_an_example_row_gets_the_set_s_total_in_components(i, gym):
    row = ROWS[i]
    assert gym("/seed_session", row) == {}
    answer = gym("/verify", {**row, "response": response(RESPONSES[i])})
    rewards = RewardSet.from_config(RECIPE / "rewards.yaml")
    [score] = rewards.score([Sample(RESPONSES[i], row["reference"], id=row["id"])])
    assert answer["reward"] == pytest.approx(score.total)
    assert answer["reward"] == sum(answer["reward_components"].values())
    assert score.logs.items() <= answer.items()
    assert answer["id"] == row["id"]


def test_its_client_gets_the_same_from_the_standalone_server(gym, tmp_path):
    from omegaconf import OmegaConf

    rewards = OmegaConf.to_container(OmegaConf.load(RECIPE / "rewards.yaml"))["rewards"]
    row = {**ROWS[0], "response": response(RESPONSES[0])}
    with Server(tmp_path, rewards) as server:
        served = gym("/verify", row, server.url)
        assert gym("/seed_session", ROWS[0], server.url) == {}
    own = gym("/verify", row)
    for key in ("reward", "reward_components", "rouge_l", "format/applied"):
        assert served[key] == pytest.approx(own[key])


def test_a_row_that_cannot_be_scored_is_kept_out_by_gym_s_own_key(gym):
    from nemo_gym.rollout_collection import NG_FAILURE_CLASS_KEY

    nothing = {**response("x"), "output": []}
    answer = gym("/verify", {**ROWS[0], "response": nothing})
    assert answer[NG_FAILURE_CLASS_KEY] == "reward_failed"
    assert "no message" in answer["_ng_failure_reason"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": 5, "view": 3, "image": 5}, None),  # no reward looks at the image
        ({"reference": 3}, "a reference is a text or None, not int"),
        ({"reference": ["a"]}, "not list"),
    ],
)
def test_an_odd_row_is_scored_or_its_failure_says_why(row, says, gym):
    answer = gym("/verify", {**ROWS[0], **row, "response": response(RESPONSES[0])})
    assert answer["unscored"] == float(says is not None)
    assert (says or "") in answer.get("_ng_failure_reason", "")


def test_gym_aggregates_every_component(gym):
    answers = [
        {**gym("/verify", {**ROWS[i], "response": response(RESPONSES[i])}),
         "_ng_task_index": i, "_ng_rollout_index": 0}
        for i in range(4)
    ]  # fmt: skip
    found = gym("/aggregate_metrics", {"verify_responses": answers})
    text = json.dumps(found)
    assert all(name in text for name in ("rouge_l", "findings_f1", "format"))


def test_the_example_of_the_docstring_is_the_recipe_s():
    code = [line for line in describe("nemo_gym").example.splitlines() if not line.startswith("#")]
    app = (RECIPE / "app.py").read_text().split('"""')[2].split("\n")
    assert code == [line for line in app if line]
    assert len(describe("nemo_gym").example.splitlines()) <= 5


def test_it_is_the_version_that_is_named():
    from importlib.metadata import version

    assert describe("nemo_gym").facts["Run for real"].startswith(f"nemo-gym {version('nemo-gym')},")
