"""TRL's own GRPOTrainer trains a tiny LLaVA with a set's rewards."""

import json
import math
from functools import partial

import pytest
from support.stacks import SET, install, write_films

from reward_sdk.adapters import describe

pytestmark = pytest.mark.contract
trl = pytest.importorskip("trl")
pytest.importorskip("torch")
STEPS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    """What the example of the docstring logs, a reward of the set counting on every second step."""
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path_factory.mktemp("trl")
    patch = pytest.MonkeyPatch()
    install(folder / "site")
    patch.syspath_prepend(str(folder / "site"))
    films = write_films(folder / "films")
    rewards = {**SET, "findings_f1": {"weight": 0.3, "every": 2}, "format": {"weight": 0.1}}
    (folder / "rewards.yaml").write_text(json.dumps({"rewards": rewards}))
    patch.chdir(folder)
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read."}]}]
    references = ["No pleural effusion.", "The heart is enlarged.", None, "Lungs are clear."]
    rows = {
        "prompt": [question] * 16,
        "image": [Image.open(films / f"film{i % 4}.png").convert("RGB") for i in range(16)],
        "reference": [references[i % 4] for i in range(16)],
        "view": ["PA"] * 16,
        "id": [f"s{i}" for i in range(16)],
    }
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tiny_model)
    seen = []

    config, grpo = trl.GRPOConfig, trl.GRPOTrainer
    short = partial(
        config, max_steps=STEPS, max_completion_length=16, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip

    def trainer(model, funcs, args, dataset):
        """TRL's, with the processor that it would find on the hub; remembered."""
        seen.append(grpo(model, funcs, args, train_dataset=dataset, processing_class=processor))
        return seen[0]

    example = describe("trl").example
    patch.setattr(trl, "GRPOConfig", short)
    patch.setattr(trl, "GRPOTrainer", trainer)
    exec(example, {"model": model, "dataset": Dataset.from_dict(rows)})
    patch.undo()
    assert len(example.splitlines()) <= 5
    return seen[0]


def test_it_trains_for_as_many_steps_as_it_was_told(run):
    assert run.state.global_step == STEPS


@pytest.mark.parametrize("name", [*SET, "findings_f1", "format", "missing_parts"])
def test_every_component_is_logged(name, run):
    logged = [log for log in run.state.log_history if f"rewards/{name}/mean" in log]
    assert len(logged) == STEPS


def test_the_set_s_weights_are_the_trainer_s(run):
    wanted = [entry["weight"] for entry in SET.values()] + [0.3, 0.1, 1.0]
    assert run.reward_weights.tolist() == pytest.approx(wanted)


def test_images_reach_the_rewards_that_look(run):
    bright = [log["rewards/brightness/mean"] for log in run.state.log_history[:STEPS]]
    assert all(0.3 < value < 0.7 for value in bright)


def test_a_reward_of_a_schedule_counts_on_its_steps_only(run):
    means = [log["rewards/findings_f1/mean"] for log in run.state.log_history[:STEPS]]
    assert [mean is None or math.isnan(mean) for mean in means] == [True, False, True, False]


def test_shares_of_failures_are_logged(run):
    for key in ("rewards/moody/failed", "rewards/moody/not_applicable"):
        assert all(key in log for log in run.state.log_history[:STEPS])
    assert run.state.log_history[0]["rewards/moody/failed"] == 0.0


def test_it_is_the_version_that_is_named():
    assert describe("trl").facts["Run for real"].startswith(f"trl {trl.__version__},")
