"""RadGraph against the radgraph package: its annotations, its rewards."""

import json
import tarfile
import time

import pytest
from support.annotations import read_annotation
from support.shared import DATA
from support.tiny_bert import write_tokenizer

from reward_sdk.errors import ConfigError
from reward_sdk.rewards.clinical import graphs_f1

pytest.importorskip("radgraph")
from support.tiny_radgraph import old_tokenizers, write_radgraph

from reward_sdk.models import dygie, radgraph
from reward_sdk.models.radgraph import MODELS, load_radgraph

LEVELS = ("simple", "partial", "complete")
REPORTS = [
    "no pleural effusion .",
    "small left pleural effusion. the heart is enlarged.",
    "the lungs are clear, heart size is normal; no pneumothorax (or effusion).",
    "possible pneumonia / edema in the right lower lobe, 50 % of the lung.",
    "xqzv",
    "the lungs are clear and the heart is normal. " * 56,
    "no pleural effusion .",
    "clear lungs and/. left effusion /? \u200b normal",  # words read as others, or as nothing
]


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    with old_tokenizers():
        return write_radgraph(tmp_path / request.param, write_tokenizer(tmp_path / "bert"))


def by_the_package(folder, texts):
    from radgraph import RadGraph

    with old_tokenizers():
        package = RadGraph(model_type=folder.name, model_cache_dir=str(folder.parent), cuda=-1)
        annotations = package(texts)
    return [read_annotation(annotations[str(i)]) for i in range(len(texts))]


def relations(graphs):
    return sum(len(entity.relations) for graph in graphs for entity in graph)


def test_a_batch_gets_the_annotations_that_the_package_gives_one_by_one(folder):
    expected = by_the_package(folder, REPORTS)
    assert all(expected[:5])
    assert relations(expected)
    found = load_radgraph(str(folder))(REPORTS)
    differing = [i for i, graph in enumerate(found) if graph != expected[i]]
    assert not differing  # rather than a difference of thousands of entities


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("bias", "least"), [((0.3, 0.3), 130), ((-0.5, -0.6), 30)])
def test_few_or_many_entities_have_the_relations_that_the_package_gives(
    tmp_path, model, bias, least
):
    tokenizer = write_tokenizer(tmp_path / "bert")
    with old_tokenizers():
        folder = write_radgraph(tmp_path / model, tokenizer, hidden=60, bias=bias)
    expected = by_the_package(folder, REPORTS[:4])
    assert relations(expected) >= least
    assert load_radgraph(str(folder))(REPORTS[:4]) == expected


def test_single_reports_get_the_graphs_of_the_batch_and_case_does_not_matter(folder):
    extract = load_radgraph(str(folder))
    short = REPORTS[:4]
    assert [extract([text.upper()])[0] for text in short] == extract(short)


def test_a_report_without_words_has_no_entities(folder):
    extract = load_radgraph(str(folder))
    assert extract(["", " \n", "effusion , left"])[:2] == [(), ()]
    assert extract([" "]) == [()]
    assert extract([]) == []


def test_a_report_of_what_the_package_takes_out_has_no_entities(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "bert")
    with old_tokenizers():
        folder = write_radgraph(tmp_path / "radgraph-xl", tokenizer)
    assert load_radgraph(str(folder))(["\\n"]) == [()]  # the two characters


def test_of_a_long_text_the_first_words_are_read(folder, monkeypatch):
    extract = load_radgraph(str(folder))
    monkeypatch.setattr(radgraph, "_LONGEST", 5)
    assert extract(["small left effusion , clear lungs"]) == extract(
        ["small left effusion , clear"]
    )


def test_of_endless_words_the_first_characters_are_read(folder, monkeypatch):
    extract = load_radgraph(str(folder))
    monkeypatch.setattr(radgraph, "_WIDEST", 12)
    assert extract(["no effusion <<<<<"]) == extract(["no effusion "])


def test_entities_are_paired_in_parts_with_the_same_relations(folder, monkeypatch):
    extract = load_radgraph(str(folder))
    whole = extract(REPORTS[:4])
    monkeypatch.setattr(dygie, "_PAIRS", 20)
    assert extract(REPORTS[:4]) == whole
    assert relations(whole)


def broken(folder, name, content):
    (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("name", ["config.json", "weights.th"])
def test_a_broken_file_is_refused_by_name(folder, name):
    with pytest.raises(ConfigError, match=rf"weights .*radgraph.*{name}"):
        load_radgraph(broken(folder, name, b"{"))


def test_weights_of_another_shape_are_refused(folder):
    import torch

    tensors = torch.load(folder / "weights.th", weights_only=True)
    name = next(name for name in tensors if "relation" in name)
    del tensors[name]
    torch.save(tensors, folder / "weights.th")
    with pytest.raises(ConfigError, match=name):
        load_radgraph(str(folder))


def test_spans_that_depend_on_coreference_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["modules"]["coref"]["coref_prop"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"RadGraph weights .*coreference"):
        load_radgraph(str(folder))


def changed(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    return broken(folder, "config.json", json.dumps(config).encode())


def test_a_configuration_cannot_call_what_it_names(folder, tmp_path):
    command = {"type": "subprocess.Popen", "args": ["touch", str(tmp_path / "marker")]}
    regularizer = {"regexes": [[".*", command]]}
    model = changed(folder, lambda c: c["model"]["modules"]["ner"].update(regularizer=regularizer))
    with pytest.raises(ConfigError, match=r"config\.json: refused, because 'modules'"):
        load_radgraph(model)
    time.sleep(0.2)  # a program of its own would need it
    assert not (tmp_path / "marker").exists()


def test_the_bert_that_is_checked_is_the_only_one_that_is_named(folder):
    def change(config):
        config["dataset_reader"]["token_indexers"]["bert"]["model_name"] = "other"

    with pytest.raises(ConfigError, match="name different BERTs"):
        load_radgraph(changed(folder, change))


def test_a_vocabulary_that_is_an_archive_is_not_unpacked(folder, tmp_path):
    (folder / "vocabulary").rename(tmp_path / "words")
    with tarfile.open(folder / "vocabulary", "w") as archive:
        archive.add(tmp_path / "words/non_padded_namespaces.txt", "../escaped")
    with pytest.raises(ConfigError, match="vocabulary missing"):
        load_radgraph(str(folder))
    assert not list(tmp_path.rglob("escaped"))


def test_nothing_is_written_through_a_link_in_the_folder(folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (folder / "vocabulary/.lock").unlink(missing_ok=True)
    (folder / "vocabulary/.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"\.lock: a link"):
        load_radgraph(str(folder))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_missing_file_a_foreign_folder_and_no_tokenizer_say_what_to_do(folder, tmp_path):
    (folder / "weights.th").rename(tmp_path / "weights.th")
    with pytest.raises(ConfigError, match=r"weights\.th missing: get radgraph.*\.tar\.gz"):
        load_radgraph(str(folder))
    with pytest.raises(ConfigError, match=r"known: radgraph, radgraph-xl|did you mean"):
        load_radgraph(str(tmp_path / "elsewhere"))
    (tmp_path / "weights.th").rename(folder / "weights.th")
    with pytest.raises(ConfigError, match=r"nowhere.*vocab\.txt and config\.json"):
        load_radgraph(str(folder), str(tmp_path / "nowhere"))


@pytest.mark.skipif(not DATA.exists(), reason="shared data absent")
def test_the_rewards_of_stored_annotations_are_those_of_the_package():
    stored = json.loads((DATA / "radgraph-tests/expected_processed_annotations.json").read_text())
    graphs = [
        read_annotation(row["processed_annotations"]["radgraph_annotations"]["0"]) for row in stored
    ]
    golden = json.loads((DATA / "golden/radgraph_rewards.json").read_text())
    for pair in golden["pairs"]:
        for level, expected in zip(LEVELS, pair["simple_partial_complete"], strict=True):
            value = graphs_f1(graphs[pair["hyp"]], graphs[pair["ref"]], level)
            assert value == pytest.approx(expected)
