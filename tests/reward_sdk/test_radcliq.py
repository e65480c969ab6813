"""RadCliQ-v1 against its three parts, computed anew with transformers and the radgraph package."""

import csv
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_bert import CONFIG, read_bert, write_chexbert, write_tokenizer

from reward_sdk.errors import ConfigError
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.radcliq import RadCliQ, turned_radcliq
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample

CORPUS = [
    "No pleural effusion.",
    "The heart is normal. No edema.",
    "Small left effusion.",
    "Lungs are clear.",
]
PAIRS = [
    ("small left pleural effusion", "left pleural effusion, no edema"),
    ("No pleural effusion. The lungs are clear.", "Lungs are clear."),
    ("mass in the right lung", "Heart size is normal."),
]
NUMBERS = st.floats(0, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The settings that name small weights in the published formats."""
    for package in ("torch", "radgraph", "bert_score"):
        pytest.importorskip(package)
    from support.tiny_radgraph import old_tokenizers, write_radgraph
    from support.tiny_roberta import write_roberta

    folder = tmp_path_factory.mktemp("radcliq")
    tokenizer = write_tokenizer(folder / "bert")
    with old_tokenizers():
        radgraph = write_radgraph(folder / "radgraph", tokenizer, bias=(-0.5, -0.6))
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    return {
        "corpus": str(folder / "corpus.txt"),
        "bertscore": str(write_roberta(folder / "roberta")),
        "chexbert": str(write_chexbert(folder / "chexbert.pth")),
        "chexbert_tokenizer": str(tokenizer),
        "radgraph": str(radgraph),
    }


@pytest.fixture(scope="module")
def rewards(files):
    return RewardSet.from_config({"radcliq": files})


def values(rewards: RewardSet, pairs: list[tuple[str, str]]) -> list[float]:
    scores = rewards.score([Sample(wrap_report(report), reference) for report, reference in pairs])
    assert {score.parts["radcliq"].status for score in scores} == {"ok"}
    return [score.parts["radcliq"].value for score in scores]


def baseline() -> float:
    """What bert-score's file says of F1 at the fifth layer of distilroberta-base."""
    import bert_score

    file = Path(bert_score.__file__).parent / "rescale_baseline/en/distilroberta-base.tsv"
    with file.open() as lines:
        return next(float(row["F"]) for row in csv.DictReader(lines) if row["LAYER"] == "5")


def bertscores(files) -> list[float]:
    import torch
    from transformers import RobertaModel, RobertaTokenizer

    tokenizer = RobertaTokenizer.from_pretrained(files["bertscore"])
    model = RobertaModel.from_pretrained(files["bertscore"]).eval()

    def tokens(text: str) -> list[int]:
        return tokenizer(" " + text)["input_ids"]

    def weight(token: int) -> float:
        return log((len(CORPUS) + 1) / (sum(token in tokens(text) for text in CORPUS) + 1))

    def encoded(text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = tokens(text)
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        vectors = states[5][0].double().numpy()
        weights = np.array([weight(token) for token in ids])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / norms, weights / weights.sum()

    def f1(report: str, reference: str) -> float:
        (a, a_weights), (b, b_weights) = encoded(report), encoded(reference)
        cosines = a @ b.T
        precision, recall = cosines.max(1) @ a_weights, cosines.max(0) @ b_weights
        return 2 * precision * recall / (precision + recall)

    return [(f1(*pair) - baseline()) / (1 - baseline()) for pair in PAIRS]


def sembscores(files) -> list[float]:
    import torch
    from transformers import BertTokenizer

    bert = read_bert(files["chexbert"])
    tokenizer = BertTokenizer.from_pretrained(files["chexbert_tokenizer"])

    def embedding(text: str) -> np.ndarray:
        with torch.no_grad():
            return bert(**tokenizer(text, return_tensors="pt"))[0][0, 0].double().numpy()

    vectors = [(embedding(a), embedding(b)) for a, b in PAIRS]
    return [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in vectors]


def radgraphs(files) -> list[float]:
    from radgraph import RadGraph
    from support.tiny_radgraph import old_tokenizers

    folder = Path(files["radgraph"])
    with old_tokenizers():
        package = RadGraph(model_type="radgraph", model_cache_dir=str(folder.parent), cuda=-1)
        found = package([text.lower() for pair in PAIRS for text in pair])
    graphs = [found[str(i)]["entities"] for i in range(len(found))]

    def entities(graph) -> set:
        return {(entity["tokens"], entity["label"]) for entity in graph.values()}

    def relations(graph) -> set:
        return {
            (entity["tokens"], entity["label"], kind, graph[o]["tokens"], graph[o]["label"])
            for entity in graph.values()
            for kind, o in entity["relations"]
        }

    def f1(a: set, b: set) -> float:
        return 2 * len(a & b) / (len(a) + len(b)) if a & b else 0.0

    return [
        (f1(entities(a), entities(b)) + f1(relations(a), relations(b))) / 2
        for a, b in zip(graphs[::2], graphs[1::2], strict=True)
    ]


def test_the_published_number_is_recovered_from_the_reward(files, rewards):
    inputs = np.array([radgraphs(files), bertscores(files), sembscores(files)]).T
    assert inputs.std(0).min() > 0.01  # the pairs tell the three parts apart
    standard = (inputs - [0.53792312, 0.61757256, 0.76479421]) / [
        0.30282584, 0.22430938, 0.25394391
    ]  # fmt: skip
    published = standard @ [-0.377083683, -0.370300100, -0.252616218]
    found = np.array(values(rewards, PAIRS))
    assert np.log(1 / found - 1) == pytest.approx(published, abs=1e-4)


@given(NUMBERS, NUMBERS, st.floats(-1, 1))
def test_every_input_is_within_the_bounds(radgraph, bertscore, sembscore):
    low, high = RadCliQ.bounds
    assert low <= turned_radcliq(radgraph, bertscore, sembscore) <= high


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 2), st.floats(0.01, 1))
def test_more_of_any_input_earns_more(radgraph, bertscore, sembscore, part, more):
    inputs = [radgraph, bertscore, sembscore]
    less = turned_radcliq(*inputs)
    inputs[part] += more
    assert turned_radcliq(*inputs) > less


def test_the_other_reports_of_a_batch_do_not_count(rewards):
    alone = [value for pair in PAIRS for value in values(rewards, [pair])]
    assert values(rewards, PAIRS) == pytest.approx(alone, abs=1e-5)


def test_the_corpus_counts(files, rewards, tmp_path):
    other = tmp_path / "corpus.txt"
    other.write_text("Small effusion.\nLeft edema.")
    changed = RewardSet.from_config({"radcliq": files | {"corpus": str(other)}})
    assert values(changed, PAIRS[:1]) != pytest.approx(values(rewards, PAIRS[:1]), abs=1e-4)


@pytest.mark.parametrize("report", ["\u200b", "é\u2028 \U0001fa7b", ".", "xqzv", "edema " * 600])
def test_odd_texts_have_a_value_within_the_bounds(rewards, report):
    low, high = RadCliQ.bounds
    both = values(rewards, [(report, "Lungs are clear."), ("Lungs are clear.", report)])
    assert all(low <= value <= high for value in both)


def test_a_response_without_a_report_earns_the_lower_bound(rewards):
    (score,) = rewards.score([Sample("<report> </report>", "Lungs are clear.")])
    assert score.total == RadCliQ.bounds[0]


def test_a_run_of_blanks_counts_as_one(rewards):
    ((report, reference), *_) = PAIRS
    wide = (report.replace(" ", "  "), reference.replace(" ", "   "))
    assert values(rewards, [wide]) == pytest.approx(values(rewards, PAIRS[:1]), abs=1e-6)


def test_chexbert_and_radgraph_are_those_of_the_other_rewards(files):
    chexbert = {"model": files["chexbert"], "tokenizer": files["chexbert_tokenizer"]}
    members = RewardSet.from_config(
        {"radcliq": files, "semb_score": chexbert, "radgraph_f1": {"model": files["radgraph"]}}
    ).members
    radcliq, semb_score, radgraph_f1 = (member.reward for member in members)
    assert radcliq._chexbert is semb_score._annotator
    assert radcliq._radgraph is radgraph_f1._annotator


def test_radgraph_xl_is_refused(files):
    with pytest.raises(ConfigError, match="'radgraph-xl' is not the model that RadCliQ is defined"):
        RewardSet.from_config({"radcliq": files | {"radgraph": "radgraph-xl"}})


def test_an_encoder_with_fewer_layers_is_refused(files):
    from transformers import BertConfig, BertModel

    folder = Path(files["chexbert_tokenizer"])
    BertModel(BertConfig(**CONFIG)).save_pretrained(folder.parent / "short")
    for file in folder.iterdir():
        (folder.parent / "short" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="between 0 and 3"):
        RewardSet.from_config({"radcliq": files | {"bertscore": str(folder.parent / "short")}})
