"""What this plugin saves must not show: the same run, from the same seed, with and without it.
Too slow for `make test`."""

import pytest
from safetensors.torch import load_file
from support.hostrun import Chain, scalars, train_on_films

pytestmark = [pytest.mark.slow, pytest.mark.host]
pytest.importorskip("openrlhf")
pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    """Four policy steps with nothing, or something, left out of the plugin in every process."""
    done: dict[str | None, tuple[Chain, dict]] = {}

    def run(without: str | None = None) -> tuple[Chain, dict]:
        if without not in done:
            root = tmp_path_factory.mktemp("same")
            chain = train_on_films(
                root, tiny_model, "projector", without, train__full_determinism_enable="true",
                train__num_episodes=2, algo__kl__init_coef=0.05, algo__kl__use_loss="true",
                algo__advantage__is_correction_level="null", rollout__micro_batch_size=8,
            )  # fmt: skip
            done[without] = chain, load_file(root / "out/model/model.safetensors")
        return done[without]

    return run


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
