"""CheXbert against the labels of the real f1chexbert, see `tests/golden/make_chexbert.py`."""

import json
from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_bert import VOCABULARY, read_bert, write_chexbert, write_tokenizer

from reward_sdk.errors import ConfigError
from reward_sdk.observations import OBSERVATIONS
from reward_sdk.reward_set import RewardSet
from reward_sdk.rewards.clinical import embeddings_similarity
from reward_sdk.types import Sample

torch = pytest.importorskip("torch")
from reward_sdk.models.chexbert import load_chexbert  # noqa: E402

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/chexbert.json").read_text("utf-8"))
REPORTS = GOLDEN["reports"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The settings that name small weights in the published format."""
    folder = tmp_path_factory.mktemp("chexbert")
    return {
        "model": str(write_chexbert(folder / "chexbert.pth")),
        "tokenizer": str(write_tokenizer(folder / "bert")),
    }


@pytest.fixture(scope="module")
def chexbert(files):
    return load_chexbert(**files)


def golden(label):
    return None if label == "" else label


def test_the_labels_are_those_of_the_f1chexbert_package(chexbert):
    expected = [[golden(label) for label in row] for row in GOLDEN["labels"]]
    assert [[labels[name] for name in OBSERVATIONS] for labels in chexbert(REPORTS)] == expected


def test_single_reports_get_the_labels_of_the_batch(chexbert):
    assert [chexbert([report])[0] for report in REPORTS] == chexbert(REPORTS)


def test_no_reports_give_no_labels(chexbert):
    assert chexbert([]) == []


@settings(max_examples=30)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_any_text_gets_14_labels(chexbert, texts):
    for labels in chexbert(texts):
        assert tuple(labels) == OBSERVATIONS
        assert set(labels.values()) <= {1, 0, -1, None}
        assert labels["No Finding"] in (1, None)


def test_a_report_of_100_kb_is_cut_and_labeled(chexbert):
    cut, whole = chexbert(["effusion " * 510, "effusion " * 11_000])
    assert cut == whole


def test_bfloat16_agrees_on_nearly_every_label(files, chexbert):
    exact, fast = chexbert(REPORTS), load_chexbert(**files, precision="bfloat16")(REPORTS)
    pairs = [(a[name], b[name]) for a, b in zip(exact, fast, strict=True) for name in OBSERVATIONS]
    assert sum(a == b for a, b in pairs) >= 0.98 * len(pairs)  # random heads have small margins


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_gives_the_labels_that_a_cpu_gives(files, chexbert):
    assert load_chexbert(**files, device="cuda")(REPORTS) == chexbert(REPORTS)


def changed(tmp_path, files, change):
    content = torch.load(files["model"], weights_only=True)
    change(content)
    path = tmp_path / "changed.pth"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["model_state_dict"].pop("module.linear_heads.3.bias"),
            r"linear_heads\.3\.bias",
        ),
        (lambda c: c["model_state_dict"].update(extra=torch.zeros(1)), "extra"),
        (
            lambda c: c["model_state_dict"].pop("module.bert.pooler.dense.bias"),
            r"pooler\.dense\.bias",
        ),
        (lambda c: c.clear(), "model_state_dict"),
        (
            lambda c: c["model_state_dict"].update(
                {"module.linear_heads.0.weight": torch.zeros(3, 128)}
            ),
            "size mismatch",
        ),
    ],
)
def test_a_checkpoint_that_is_not_exactly_chexbert_is_refused(tmp_path, files, change, message):
    path = changed(tmp_path, files, change)
    with pytest.raises(ConfigError, match=rf"changed\.pth: not a CheXbert checkpoint.*{message}"):
        load_chexbert(path, files["tokenizer"])


def test_weights_that_are_no_numbers_are_refused(tmp_path, files):
    def spoil(content):
        content["model_state_dict"]["module.linear_heads.2.bias"][0] = float("nan")

    with pytest.raises(ConfigError, match=r"linear_heads\.2\.bias: NaN"):
        load_chexbert(changed(tmp_path, files, spoil), files["tokenizer"])


def test_position_ids_of_old_transformers_are_no_fault(tmp_path, files, chexbert):
    def add(content):
        name = "module.bert.embeddings.position_ids"
        content["model_state_dict"][name] = torch.arange(512)[None]

    assert load_chexbert(changed(tmp_path, files, add), files["tokenizer"])(REPORTS) == chexbert(
        REPORTS
    )


def test_a_pickle_with_code_is_refused(tmp_path, files):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"model_state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil\.pth: refused, because it wants .*getattr"):
        load_chexbert(str(tmp_path / "evil.pth"), files["tokenizer"])
    assert not (tmp_path / "touched").exists()


def test_missing_weights_are_named_with_their_source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"chexbert/chexbert\.pth: no such file.*RRG_scorers"):
        load_chexbert()


def test_a_tokenizer_that_is_none_or_another_is_refused(tmp_path, files):
    with pytest.raises(ConfigError, match=r"nowhere.*vocab\.txt"):
        load_chexbert(files["model"], str(tmp_path / "nowhere"))
    other = write_tokenizer(tmp_path / "other")
    (other / "vocab.txt").write_text("\n".join([*VOCABULARY, "more"]))
    with pytest.raises(ConfigError, match="entries"):
        load_chexbert(files["model"], str(other))


def test_an_unknown_device_is_named(files):
    with pytest.raises(ConfigError, match="device 'cuda:9'"):
        load_chexbert(**files, device="cuda:9")


def test_the_rewards_of_a_set_share_one_model_and_what_it_has_read(files, monkeypatch):
    from reward_sdk.models.chexbert import CheXbert

    seen = []
    original = CheXbert.read

    def spy(self, texts):
        seen.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(CheXbert, "read", spy)
    rewards = RewardSet.from_config(
        {"chexbert_f1": files, "chexbert_similarity": files, "semb_score": files}
    )
    group = [Sample(f"<report>Edema {i % 3}.</report>", "Mass in the left lung.") for i in range(8)]
    assert all(score.total is not None for score in rewards.score(group))
    rewards.score(group)
    assert sorted(seen) == ["Edema 0.", "Edema 1.", "Edema 2.", "Mass in the left lung."]


def test_micro_f1_over_14_of_the_package_follows_from_our_labels(chexbert):
    labels = [{n for n in OBSERVATIONS if row[n] in (1, -1)} for row in chexbert(REPORTS)]
    pairs = list(pairwise(labels))
    common = sum(len(a & b) for a, b in pairs)
    size = sum(len(a) + len(b) for a, b in pairs)
    assert 2 * common / size == pytest.approx(GOLDEN["neighbours"]["micro_f1_14"])


def test_the_sembscore_is_the_cosine_of_what_transformers_gives_for_cls(files):
    from transformers import BertTokenizer

    reports = [report for report in REPORTS if report.strip()]
    bert, tokenizer = read_bert(files["model"]), BertTokenizer.from_pretrained(files["tokenizer"])
    with torch.no_grad():
        vectors = [
            bert(**tokenizer(report, return_tensors="pt", truncation=True, max_length=512))[0][0, 0]
            for report in reports
        ]
    rewards = RewardSet.from_config({"semb_score": files})
    scores = rewards.score([Sample(f"<report>{a}</report>", b) for a, b in pairwise(reports)])
    expected = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairwise(vectors)]
    assert [score.total for score in scores] == pytest.approx(expected, abs=1e-5)


def test_an_embedding_that_is_no_number_has_no_cosine(chexbert):
    (reading,) = chexbert.read(["Edema."])
    broken = replace(reading, embedding=reading.embedding * float("nan"))
    assert isnan(embeddings_similarity(broken, reading))


@settings(max_examples=30)
@given(st.lists(st.text(max_size=100), min_size=2, max_size=2))
def test_the_cosine_of_any_two_texts_is_within_its_range_and_1_for_equal_ones(chexbert, texts):
    a, b = chexbert.read(texts)
    assert -1 <= embeddings_similarity(a, b) <= 1
    assert embeddings_similarity(a, a) == pytest.approx(1, abs=1e-6)
