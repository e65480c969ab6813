"""The same application as a Ray Serve deployment: a real, local Ray."""

import json
import os
import subprocess
import sys

import pytest
from support.serving import TEXT, free_port

pytest.importorskip("ray.serve")
protobuf = pytest.importorskip("google.protobuf")

# In a process of its own, because Ray leaves threads, hooks and a cluster behind.
CODE = """
import json, sys
import ray
from ray import serve
from reward_sdk.client import RewardClient
from reward_sdk.reward_set import RewardSet
from reward_sdk.server.ray import build
from reward_sdk.types import Sample

set_file, port = sys.argv[1], int(sys.argv[2])
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(set_file, replicas=2, cpus=0.1), name="rewards")
samples = [Sample(f"<report> Clear {i}. </report>", "Clear 3.") for i in range(200)]
with RewardClient(f"http://127.0.0.1:{port}", timeout=120) as client:
    found = client.score(samples, 4)
same = found == RewardSet.from_config(set_file).score(samples, 4)
serve.shutdown()
ray.shutdown()
print(json.dumps({"same": same, "scored": len(found)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    int(protobuf.__version__.partition(".")[0]) >= 7, reason="Ray Serve 2.55.0 needs protobuf < 7"
)
def test_two_replicas_behind_ray_serve_give_the_scores_of_the_set(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text(json.dumps({"rewards": TEXT}))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path), str(free_port())],
        capture_output=True, text=True, timeout=280, env=dict(os.environ), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"same": True, "scored": 200}


def test_the_server_does_not_need_ray():
    code = "import sys; sys.modules['ray'] = None; import reward_sdk.server.run, reward_sdk.client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
