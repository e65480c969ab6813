"""ms-swift's own command trains a tiny LLaVA with a set's rewards, loaded as a plugin."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.stacks import SET, install, write_films

from reward_sdk.adapters import describe

pytestmark = pytest.mark.contract
pytest.importorskip("swift")
STEPS = 4
EXAMPLE = describe("swift").example
PLUGIN = "\n".join(line for line in EXAMPLE.splitlines() if not line.startswith("#"))


def options():
    """The command's options that the example's comments name."""
    comments = " ".join(line.lstrip("# ") for line in EXAMPLE.splitlines() if line[0] == "#")
    return shlex.split(comments[comments.index("--external_plugins") :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """A training set with images, a plugin file and a tiny model."""
    folder = tmp_path_factory.mktemp("swift")
    install(folder / "site")
    films = write_films(folder / "films")
    references = ["No pleural effusion.", "The heart is enlarged.", None, "Lungs are clear."]
    rows = [
        {
            "messages": [{"role": "user", "content": "<image>Read."}],
            "images": [str(films / f"film{i % 4}.png")],
            "reference": references[i % 4],
            "view": "PA",
            "id": f"s{i}",
        }
        for i in range(16)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(PLUGIN)
    (folder / "model").symlink_to(tiny_model)
    return folder


def train(folder, rewards, given):
    """The command's exit code, its output, and what it logged."""
    (folder / "rewards.yaml").write_text(json.dumps({"rewards": rewards}))
    command = [
        str(Path(sys.executable).with_name("swift")), "rlhf", "--rlhf_type", "grpo",
        "--model", "model", "--model_type", "llava1_5_hf", "--template", "llava1_5_hf",
        "--dataset", "data.jsonl", "--max_steps", str(STEPS), "--num_generations", "4",
        "--per_device_train_batch_size", "4", "--max_completion_length", "16",
        "--tuner_type", "full", "--use_vllm", "false", "--torch_dtype", "float32",
        "--logging_steps", "1", "--save_strategy", "no", "--output_dir", "out",
        "--report_to", "none", "--check_model", "false",
        "--split_dataset_ratio", "0", "--use_cpu", "true", *given,
    ]  # fmt: skip
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    files = sorted((folder / "out").glob("*/logging.jsonl"))
    lines = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
    return done.returncode, done.stdout + done.stderr, [log for log in lines if "reward" in log]


def test_the_example_trains_and_logs_every_component(folder):
    rewards = {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}
    code, output, logs = train(folder, rewards, options())
    assert code == 0, output[-3000:]
    assert len(logs) == STEPS
    assert all("rewards/format/mean" in log for log in logs)
    assert any("rewards/rouge_l/mean" in log for log in logs)
    assert len(EXAMPLE.splitlines()) <= 5


def test_without_weights_it_stops_and_names_the_options_that_work(folder):
    rewards = {**SET, "findings_f1": {"weight": 0.3, "every": 2}}
    plugin = ["--external_plugins", "rewards.py"]
    names = [*rewards, "missing_parts"]
    code, output, _ = train(folder, rewards, [*plugin, "--reward_funcs", *names])
    assert code != 0
    found = re.search(r"(--reward_funcs .* --reward_weights [\d. -]+)", output)
    assert found, output[-3000:]
    code, output, logs = train(folder, rewards, [*plugin, *found[1].split()])
    assert code == 0, output[-3000:]
    assert [0.3 < float(log["rewards/brightness/mean"]) < 0.7 for log in logs] == [True] * STEPS
    # ms-swift leaves a function out of a step's log that gave None for every sample.
    scheduled = ["rewards/findings_f1/mean" in log for log in logs]
    assert scheduled[0::2] == [False] * (STEPS // 2)
    assert any(scheduled[1::2])


def test_a_function_of_the_set_that_is_left_out_stops_it(folder):
    rewards = {"rouge_l": {"weight": 0.9}, "format": {"weight": 0.1}}
    given = "--external_plugins rewards.py --reward_funcs rouge_l format --reward_weights .9 .1"
    code, output, _ = train(folder, rewards, given.split())
    assert code != 0
    assert "--reward_funcs rouge_l format missing_parts --reward_weights 0.9 0.1 1" in output


def registered(weights=(2.0, 1.0), rewards=None, **more):
    """The functions of a set, built as the trainer builds them."""
    from types import SimpleNamespace

    from swift.rewards import orms

    from reward_sdk.adapters.swift import register
    from reward_sdk.reward_set import RewardSet

    rewards = rewards or {"rouge_l": {"weight": 2.0}}
    register(RewardSet.from_config(rewards))
    args = SimpleNamespace(**{
        "reward_weights": list(weights), "steps_per_generation": 1, "num_iterations": 1,
        "gradient_accumulation_steps": 1, "scale_rewards": "group", **more,
    })  # fmt: skip
    names = [*rewards, "missing_parts"][: len(weights)]
    return [orms[name](args=args) for name in names]


COMPLETIONS = ["<report> a b </report>"] * 6
COLUMNS = {
    "reference": ["a b", "b", None, "b", "b", None], "prompt_id": ["the same prompt"] * 6,
    "id": ["s1", "s1", "s1", "s2", "s2", "s3"], "images": [[]] * 6,
}  # fmt: skip


def test_a_sample_without_any_score_gets_the_mean_of_its_study_and_not_zero():
    # ms-swift names prompts by their text, which studies share: a group is told by its study.
    rouge_l, missing = registered()
    columns = {**COLUMNS, "reference": ["a b", "a b", "a b", "b", "b", "b"]}
    poisoned = [*COMPLETIONS[:2], "<report> a b </report>", *COMPLETIONS[3:]]
    found = rouge_l(poisoned, **columns)
    assert missing(poisoned, **columns) == [0.0] * 6
    columns["reference"] = COLUMNS["reference"]
    found = rouge_l(list(COMPLETIONS), **columns)
    assert [value is None for value in found] == [False, False, True, False, False, True]
    completions = list(COMPLETIONS)
    rouge_l(completions, **columns)
    totals = [2.0 * value for value in found if value is not None]
    neutral = missing(completions, **columns)
    # s3 has no scored mate here, nor has the row without a reference: the mean of the batch.
    assert neutral[2] == neutral[5] == pytest.approx(sum(totals) / 4)


def test_a_failing_reward_s_sample_gets_the_mean_of_its_own_study():
    class Moody:
        name, bounds, needs = "moody", (0.0, 1.0), frozenset()

        def __call__(self, samples):
            from reward_sdk.types import Outcome

            return [
                Outcome(None, "failed") if "bad" in s.response else Outcome(float(s.response))
                for s in samples
            ]

    from types import SimpleNamespace

    from swift.rewards import orms

    from reward_sdk.adapters.swift import register
    from reward_sdk.config import Entry
    from reward_sdk.reward_set import RewardSet

    register(RewardSet([(Moody(), Entry())]))
    args = SimpleNamespace(reward_weights=[1.0, 1.0], steps_per_generation=1, num_iterations=1,
                           gradient_accumulation_steps=1, scale_rewards="group")  # fmt: skip
    moody, missing = (orms[name](args=args) for name in ("moody", "missing_parts"))
    completions = ["0.9", "0.8", ".1", ".1", ".2", "bad"]
    columns = {"prompt_id": ["p"] * 6, "id": ["a", "a", "b", "b", "b", "b"]}
    moody(completions, **columns)
    assert missing(completions, **columns)[5] == pytest.approx(0.4 / 3)


@pytest.mark.parametrize(
    ("rewards", "weights", "more", "fits"),
    [
        ({"rouge_l": {"weight": 1 / 3}, "format": {"weight": 2 / 3}}, (1 / 3, 2 / 3, 1), {}, True),
        ({"rouge_l": {"weight": 1 / 3}, "format": {"weight": 2 / 3}}, (2 / 3, 1 / 3, 1), {}, False),
        ({"rouge_l": {}}, (1.0,), {}, False),
        ({"rouge_l": {}}, (1.0,), {"scale_rewards": "gdpo"}, True),
        ({"rouge_l": {}}, (1.0, 1.0), {"scale_rewards": "gdpo"}, False),
    ],
)
def test_functions_and_weights_must_be_the_set_s(rewards, weights, more, fits):
    from reward_sdk.errors import ConfigError

    first, *_ = registered(weights, rewards, **more)
    first, *_ = registered(weights, rewards, **more)  # a second trainer in the same process
    completions = ["<report> a </report>"]
    columns = {"reference": ["a"], "prompt_id": ["p"]}
    if fits:
        assert first(completions, **columns) == [1.0]
    else:
        with pytest.raises(ConfigError, match="--reward_weights"):
            first(completions, **columns)


def test_it_is_the_version_that_is_named():
    from importlib.metadata import version

    assert describe("swift").facts["Run for real"].startswith(f"ms-swift {version('ms-swift')},")
