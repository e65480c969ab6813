"""verl's own reward loop, with Ray, loads the function that its configuration names."""

import json
import os

import pytest
from support.stacks import SET, in_process, install, of_unscored, of_verl, samples, write_films

from reward_sdk.adapters import describe

pytestmark = pytest.mark.contract
verl = pytest.importorskip("verl")


def write_tokenizer(folder, texts):
    """A byte-level tokenizer, which gives every text back."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=["<pad>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder with the set's file, the samples, and what they score."""
    import ray

    folder = tmp_path_factory.mktemp("verl")
    environment = install(folder / "site")
    batch = samples(write_films(folder / "films"))
    (folder / "rewards.yaml").write_text(json.dumps({"rewards": SET}))
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder / "site"))
    patch.chdir(folder)
    path = os.pathsep.join([environment["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield folder, batch, in_process(str(folder / "rewards.yaml"), batch)
    ray.shutdown()
    patch.undo()


def config(folder, manager, name, rewards):
    """verl's configuration with the options of the example, as its command reads them."""
    from hydra import compose, initialize_config_dir

    example = describe("verl").example
    assert len(example.splitlines()) <= 5
    example = example.replace("rewards.yaml", rewards).replace("name=compute_score", f"name={name}")
    overrides = [
        *example.splitlines(), "reward.num_workers=2", f"reward.reward_manager.name={manager}",
        f"actor_rollout_ref.model.path={folder / 'tokenizer'}",
    ]  # fmt: skip
    default = os.path.join(os.path.dirname(verl.__file__), "trainer/config")
    with initialize_config_dir(default, version_base=None):
        return compose("ppo_trainer", overrides)


def rollout(folder, batch):
    """The samples as verl holds them after generation."""
    import numpy as np
    import torch
    from verl import DataProto

    tokenizer = write_tokenizer(folder / "tokenizer", [sample.response for sample in batch])
    responses = tokenizer(
        [sample.response for sample in batch], padding=True, return_tensors="pt",
        padding_side="right",
    )  # fmt: skip
    prompts = torch.zeros(len(batch), 1, dtype=torch.long)
    rows = [of_verl(sample) for sample in batch]
    array = {
        "data_source": [row["data_source"] for row in rows],
        "reward_model": [{"ground_truth": row["ground_truth"]} for row in rows],
        "extra_info": [row["extra_info"] for row in rows],
    }
    return DataProto.from_dict(
        tensors={
            "prompts": prompts,
            "responses": responses["input_ids"],
            "attention_mask": torch.cat([prompts + 1, responses["attention_mask"]], dim=1),
        },
        non_tensors={key: np.array(value, dtype=object) for key, value in array.items()},
    )


@pytest.mark.parametrize(
    ("manager", "name"), [("naive", "compute_score"), ("remote", "compute_score_sync")]
)
def test_its_reward_loop_gives_every_sample_its_total_and_the_same_keys(manager, name, study):
    from verl.experimental.reward_loop.reward_loop import RewardLoopManager

    folder, batch, expected = study
    data = rollout(folder, batch)
    loop = RewardLoopManager(config(folder, manager, name, str(folder / "rewards.yaml")))
    found = loop.compute_rm_score(data)
    totals = found.batch["rm_scores"].sum(dim=1).tolist()
    keys = found.meta_info["reward_extra_keys"]
    assert {"score", "unscored", *(f"{name}/failed" for name in SET)} <= set(keys)
    for i, want in enumerate(expected):
        logs = {key: float(found.non_tensor_batch[key][i]) for key in keys}
        assert logs["score"] == pytest.approx(totals[i], abs=1e-6)
        assert of_unscored(logs, logs["score"]).close_to(want), batch[i].id


def test_it_is_the_version_that_is_named():
    from importlib.metadata import version

    assert describe("verl").facts["Run for real"].startswith(f"verl {version('verl')},")
