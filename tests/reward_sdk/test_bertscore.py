import json
import sys
from pathlib import Path

import pytest

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

REPORTS = [
    "No effusion.",
    "Lungs are clear. No effusion or edema.",
    "Heart",
    "\u00e9\u2028 \U0001fa7b",
    "\u200b",  # not blank for Python, nothing for the tokenizer
    "no edema " * 11_000,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT with random weights, and a tokenizer that does not say how long a text may be."""
    pytest.importorskip("bert_score")
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    vocabulary += ["no", "effusion", "edema", "lungs", "heart", "are", "clear", "or"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rewards(model):
    return RewardSet.from_config({"bertscore": {"model": model, "num_layers": 2}})


def values(rewards: RewardSet, pairs: list[tuple[str, str]]) -> list[float | None]:
    scores = rewards.score([Sample(wrap_report(report), reference) for report, reference in pairs])
    assert {score.parts["bertscore"].status for score in scores} == {"ok"}
    return [score.total for score in scores]


def test_every_pair_scores_between_0_and_1(rewards):
    pairs = [(report, reference) for report in REPORTS for reference in REPORTS]
    assert all(0 <= value <= 1 for value in values(rewards, pairs))


def test_a_batch_scores_as_its_samples_do_alone(rewards):
    pairs = [(report, REPORTS[1]) for report in REPORTS]
    alone = [value for pair in pairs for value in values(rewards, [pair])]
    assert values(rewards, pairs) == pytest.approx(alone, abs=1e-5)


def test_equal_texts_score_1_and_others_less(rewards):
    equal, other = values(rewards, [(REPORTS[1], REPORTS[1]), (REPORTS[0], REPORTS[1])])
    assert other < equal == pytest.approx(1, abs=1e-5)


def test_blank_texts_do_not_change_the_others(rewards):
    pair = (REPORTS[0], REPORTS[1])
    assert values(rewards, [("Clear.", "\u200b"), pair])[1] == pytest.approx(
        *values(rewards, [pair])
    )


def test_a_model_without_a_default_layer_needs_one(model):
    with pytest.raises(ConfigError, match="name a layer"):
        RewardSet.from_config({"bertscore": {"model": model}})


def test_a_layer_that_the_model_lacks_is_refused(model):
    with pytest.raises(ConfigError, match=r"num_layers: .* between 0 and 2"):
        RewardSet.from_config({"bertscore": {"model": model, "num_layers": 3}})


def test_a_folder_without_a_model_is_refused(tmp_path):
    pytest.importorskip("bert_score")
    with pytest.raises(ConfigError, match="does not load: name the folder of an encoder"):
        RewardSet.from_config({"bertscore": {"model": str(tmp_path), "num_layers": 2}})


def test_without_bert_score_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ConfigError, match=r"pip install 'valor-rrg\[bertscore\]'"):
        RewardSet.from_config({"bertscore": {"model": "bert"}})


def test_weights_that_are_no_numbers_are_refused(model, tmp_path):
    import torch
    from transformers import BertModel

    network = BertModel.from_pretrained(model)
    with torch.no_grad():
        network.encoder.layer[0].output.dense.bias[0] = float("nan")
    for file in Path(model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layer\.0\.output\.dense\.bias: NaN"):
        RewardSet.from_config({"bertscore": {"model": str(tmp_path), "num_layers": 2}})
