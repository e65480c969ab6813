"""What this plugin saves must not show: the same run, from the same seed, with and without it.
Too slow for `make test`."""

from pathlib import Path

import pytest
from hostrun import WITHOUT, Chain, openrlhf, scalars, write_films
from safetensors.torch import load_file
from serving import misbehaving

pytestmark = [pytest.mark.slow, pytest.mark.host]
pytest.importorskip("openrlhf")
pytest.importorskip("vllm")

RECIPE = """
name: same
stage: grpo
model: {{path: {model}, train: projector}}
data: {{train: {root}/studies.jsonl}}
rewards:
  slow: {{weight: 1.0}}  # the length of the response, whatever it says
openrlhf:
  train.full_determinism_enable: true
  train.num_episodes: 2
  algo.kl.init_coef: 0.05
  algo.kl.use_loss: true
  actor.adam.lr: 1.0e-3
  actor.num_gpus_per_node: 1
  ref.num_gpus_per_node: 1
  vllm.num_engines: 1
  rollout.batch_size: 4
  rollout.n_samples_per_prompt: 4
  rollout.micro_batch_size: 8
  rollout.max_new_tokens: 16
  data.max_len: 160
  train.batch_size: 16
  train.micro_batch_size: 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    """Four policy steps with nothing, or something, left out of the plugin in every process."""
    done: dict[str | None, tuple[Chain, dict]] = {}

    def run(without: str | None = None) -> tuple[Chain, dict]:
        if without not in done:
            done[without] = start(tmp_path_factory.mktemp("same"), tiny_model, without)
        return done[without]

    return run


def start(root: Path, model: Path, without: str | None) -> tuple[Chain, dict]:
    write_films(root)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root, model=model))
    environment = misbehaving(root / "site")
    if without is not None:  # Python runs it in every process that it starts
        (root / "site" / "sitecustomize.py").write_text(WITHOUT[without])
    recipe, out = str(root / "recipe.yaml"), str(root / "out")
    ran = openrlhf("train", "--recipe", recipe, "--out", out, "--device", "cpu", **environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return Chain(root, {}), load_file(root / "out/model/model.safetensors")


def test_a_shared_reference_is_the_separate_one_to_the_last_bit(run):
    (shared, weights), (separate, others) = run(), run("reference")
    assert "ReferenceModelActor" not in shared.log("out")
    assert "ReferenceModelActor" in separate.log("out")
    kl = scalars(shared, "out")["train/kl"]
    assert kl[0] == 0
    assert kl[-1] > 1e-3
    assert kl == scalars(separate, "out")["train/kl"]
    assert all(weights[name].equal(others[name]) for name in weights)


def test_images_that_are_encoded_once_give_what_the_hosts_own_way_gives(run):
    (once, weights), (each, others) = run(), run("images")
    found, wanted = scalars(once, "out"), scalars(each, "out")
    assert found["train/reward"] == wanted["train/reward"]  # of the same reports, step by step
    # Gradients are added up in another order, in bfloat16, of which Adam makes whole steps.
    for series, error in (("actor_grad_norm", 2e-3), ("policy_loss", 1e-4), ("kl", 2e-4)):
        assert found[f"train/{series}"] == pytest.approx(wanted[f"train/{series}"], abs=error)
    assert wanted["train/kl"][-1] > 5e-3
    for name in weights:
        assert weights[name].float().sub(others[name].float()).abs().max() < 1e-3
