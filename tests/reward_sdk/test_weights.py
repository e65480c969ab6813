"""Files that are no weights are refused by whatever reads weights, and nothing of them is run."""

import ast
import json
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_bert import write_tokenizer

from reward_sdk.errors import ConfigError
from reward_sdk.models.folders import check_folder
from reward_sdk.reward_set import RewardSet

torch = pytest.importorskip("torch")
from support import hostile  # noqa: E402
from support.hostile import HOSTILE  # noqa: E402

from reward_sdk.models.weights import Layer, check_weights, read_weights  # noqa: E402

ROOT = Path(__file__).parents[2]
WHY = {
    "TorchScript": r"it holds evil/code/.*a TorchScript archive",
    "pickle": "no file of torch.save's",
    "pickle in a zip": r"it wants (posix|nt)\.system",
    "open in a zip": r"it wants (io|builtins|__builtin__)\.open",
    "pickle in a legacy file": r"it wants (posix|nt)\.system",
    "pickle of protocol 4": r"it wants (posix|nt)\.system",
    "tar": "no file of torch.save's",
    "zip with another record": r"it holds archive/data/0\.py",
    "zip with another folder": r"it holds \.\./escaped",
    "zip with a record twice": "is there twice",
    "zip with a link": "a link, ",
    "zip bomb": "or compressed",
    "storage that lies": r"storage 0 claims 1073741824 numbers of torch\.float32, and its record",
    "tensor that lies": r"out of bounds for storage of size 40",
    "stride that lies": r"Size\(\[1000, 1000\]\) in a storage of 10 numbers",
    "record that lies": "claim more bytes than it has",
    "legacy storage that lies": "claims 1073741824 numbers, and 10 follow",
    "legacy file cut short": "cut short",
    "memo that lies": None,  # which costs nothing here
    "text that lies": "damaged",
    "bytes that lie": "damaged",
    "pipe": "no regular file",
    "link to a pipe": "no regular file",
    "link to a device": "no regular file",
    "folder": "no regular file",
    "link to nothing": "no regular file",
    "LFS pointer": "a Git LFS pointer .* `git lfs pull`",
    "web page": "a web page .* fetch it again",
    "nothing": "no file of torch.save's",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_each_kind_of_hostile_file_is_refused_by_name_at_little_cost(tmp_path, kind):
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    HOSTILE[kind](path, marker)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (why := WHY[kind]) is None:
        assert read_weights(path) is None
    else:
        for read in (read_weights, check_weights):
            with pytest.raises(ConfigError, match=rf"weights .*evil\.pt: .*{why}"):
                read(path)
    assert not marker.exists()
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_the_marker_files_are_programs(tmp_path):
    """Else the tests of this file would prove nothing."""
    for kind in ("TorchScript", "pickle in a zip", "open in a zip", "pickle in a legacy file"):
        path, marker = tmp_path / f"{kind}.pt", tmp_path / kind.replace(" ", "_")
        HOSTILE[kind](path, marker)
        torch.load(path, weights_only=False)
        assert marker.exists()


def image_text(file, folder):
    return {"image_text": {"expert": str(file), "calibration": "none.json"}}


def chexbert(file, folder):
    return {"chexbert_f1": {"model": str(file), "tokenizer": str(folder)}}


def radgraph(file, folder):
    graph = folder / "radgraph"
    (graph / "vocabulary").mkdir(parents=True)
    (graph / "config.json").write_text("{}")
    file.rename(graph / "weights.th")
    if (pipe := file.with_name("pipe")).exists():
        pipe.rename(graph / "pipe")
    return {"radgraph_f1": {"model": str(graph)}}


def bertscore(file, folder):
    write_tokenizer(folder)
    file.rename(folder / "pytorch_model.bin")
    if (pipe := file.with_name("pipe")).exists():
        pipe.rename(folder / "pipe")
    return {"bertscore": {"model": str(folder), "num_layers": 2}}


NEEDS = {
    image_text: "torchxrayvision", chexbert: "transformers", radgraph: "radgraph",
    bertscore: "bert_score",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("reward", NEEDS)
def test_every_reward_refuses_them_before_anything_of_them_is_run(tmp_path, reward, kind):
    pytest.importorskip(NEEDS[reward])
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    HOSTILE[kind](path, marker)
    with pytest.raises(ConfigError):
        RewardSet.from_config(reward(path, tmp_path / "folder"))
    assert not marker.exists()


def command(*arguments):
    path = Path(sys.executable).with_name("reward-sdk")
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def script(tmp_path):
    """The TorchScript archive of the original attack, and what it would write."""
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    HOSTILE["TorchScript"](path, marker)
    return path, marker


def assert_refused(done, marker):
    """The archive, by name, and none of it was executed."""
    assert done.returncode == 2, done.stderr
    assert "refused, because it holds evil/code/" in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()


def test_calibrate_ends_with_2_and_names_the_archive(tmp_path, script):
    pytest.importorskip("torchxrayvision")
    path, marker = script
    (tmp_path / "images.jsonl").write_text("")
    done = command(
        "calibrate", "--expert", path, "--data", tmp_path / "images.jsonl", "--out",
        tmp_path / "calibration.json",
    )  # fmt: skip
    assert_refused(done, marker)


@pytest.mark.parametrize("reward", NEEDS)
def test_score_ends_with_2_and_names_the_archive(tmp_path, script, reward):
    pytest.importorskip(NEEDS[reward])
    path, marker = script
    settings = tmp_path / "set.yaml"
    settings.write_text(json.dumps({"rewards": reward(path, tmp_path / "folder")}))
    (tmp_path / "data.jsonl").write_text('{"id": "a", "response": "", "reference": "Clear."}\n')
    done = command(
        "score", "--set", settings, "--data", tmp_path / "data.jsonl", "--out",
        tmp_path / "scores.jsonl",
    )  # fmt: skip
    assert_refused(done, marker)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
def test_tensors_of_every_kind_are_read_as_torch_reads_them(tmp_path, legacy, mapped):
    matrix = torch.arange(12.0).view(3, 4)
    content = {
        kind: torch.arange(6).to(kind)
        for kind in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
            torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
        )
    }  # fmt: skip
    content = {str(kind): tensor for kind, tensor in content.items()} | {
        "whole": matrix, "transposed": matrix.T, "part": matrix[1:, 2:], "none": torch.empty(0, 3),
        "number": torch.tensor(2.5), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    if not legacy:
        content["float8"] = torch.ones(3).to(torch.float8_e4m3fn)
    path = tmp_path / "w.pt"
    hostile.save({"state": content, "epoch": 3, "note": "é", "tags": {"a"}}, path, legacy)
    found = read_weights(path, mapped=mapped)
    assert (found["epoch"], found["note"], found["tags"]) == (3, "é", {"a"})
    for name, tensor in content.items():
        assert found["state"][name].dtype == tensor.dtype
        assert torch.equal(found["state"][name].float(), tensor.detach().float())
    shared = found["state"]
    assert shared["whole"].data_ptr() == shared["transposed"].data_ptr()


def test_a_link_to_weights_is_read_as_the_weights(tmp_path):
    hostile.save({"a": torch.ones(1)}, tmp_path / "blob")
    (tmp_path / "w.pt").symlink_to("blob")
    assert read_weights(tmp_path / "w.pt")["a"] == 1


def test_numbers_that_are_not_aligned_are_read(tmp_path):
    path = tmp_path / "w.pt"
    for shift in range(4):  # a record in front moves those behind it
        hostile.edited(path, lambda name, c, s=shift: b"3" * s if name.endswith("version") else c)
        assert torch.equal(read_weights(path, mapped=True)["a"], torch.arange(10.0))


def test_copied_tensors_outlive_the_file(tmp_path):
    path = tmp_path / "w.pt"
    hostile.save({"a": torch.ones(4)}, path)
    tensor = read_weights(path)["a"]
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensor, torch.ones(4))


@pytest.mark.parametrize("refused", [eval, getattr, __import__, type, torch.load, torch.hub.load])
@pytest.mark.parametrize("layers", [(), ("torch.nn.modules",)])
def test_no_other_function_can_be_reached(tmp_path, refused, layers):
    hostile.with_pickle(tmp_path / "w.pt", pickle.dumps(refused, protocol=2))
    with pytest.raises(ConfigError, match=rf"refused, because it wants .*{refused.__name__}"):
        read_weights(tmp_path / "w.pt", layers)


LAYER = b"\x80\x02ctorch.nn.modules.linear\nLinear\n"


def test_a_file_cannot_change_the_stand_in_for_later_files(tmp_path):
    path = tmp_path / "w.pt"
    hostile.with_pickle(path, LAYER + b"N}X\x01\x00\x00\x00xK\x01s\x86b.")  # its attribute x = 1
    with pytest.raises(ConfigError, match="it changes what is no layer"):
        read_weights(path, ("torch.nn.modules",))
    assert not hasattr(Layer, "x")


def test_layers_are_taken_from_named_packages_alone(tmp_path):
    path = tmp_path / "w.pt"
    hostile.with_pickle(path, LAYER + b")\x81.")
    assert isinstance(read_weights(path, ("torch.nn",)), Layer)
    for layers in ((), ("torch.nn.modules.lin",), ("torchvision",)):
        with pytest.raises(ConfigError, match=r"it wants torch\.nn\.modules\.linear\.Linear"):
            read_weights(path, layers)


def folder_with(tmp_path, name, content):
    folder = write_tokenizer(tmp_path / "folder")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("modeling.py", "", r"modeling\.py: a model folder that holds Python code"),
        ("below/modeling.py", "", r"modeling\.py: a model folder that holds Python code"),
        ("config.json", '{"a": [{"auto_map": {}}]}', "names Python code under 'auto_map'"),
        ("config.json", '{"a": ' * 100_000, "nested too deeply"),
        ("x.index.json", '{"weight_map": {"a": "../evil.bin"}}', "names '../evil.bin'"),
        ("x.index.json", '{"weight_map": {"a": "evil.dat"}}', "names 'evil.dat'"),
        ("pytorch_model.bin", "import os", "no file of torch.save's"),
        ("below/vocab.pkl", "import os", "no file of torch.save's"),
    ],
)
def test_a_model_folder_that_holds_or_names_code_is_refused(tmp_path, name, content, why):
    folder = folder_with(tmp_path, name, content)
    with pytest.raises(ConfigError, match=why):
        check_folder(folder)


@pytest.mark.parametrize("reward", [chexbert, radgraph, bertscore])
def test_tokenizers_and_encoders_with_code_are_refused(tmp_path, reward):
    pytest.importorskip(NEEDS[reward])
    hostile.save({"model_state_dict": {}}, tmp_path / "w.pt")
    settings = reward(tmp_path / "w.pt", tmp_path / "folder")
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder/modeling.py").write_text("")
    [(name, options)] = settings.items()
    if reward is radgraph:
        config = {
            "dataset_reader": {"token_indexers": {"bert": {"model_name": "bert"}}},
            "model": {"modules": {}, "embedder": {"token_embedders": {}}},
        }
        config["model"]["embedder"]["token_embedders"]["bert"] = {"model_name": "bert"}
        (tmp_path / "folder/radgraph/config.json").write_text(json.dumps(config))
        options["tokenizer"] = str(tmp_path / "folder")
    with pytest.raises(ConfigError, match="holds Python code"):
        RewardSet.from_config({name: options})


def test_links_of_the_hub_s_cache_are_followed(tmp_path):
    blobs = write_tokenizer(tmp_path / "blobs")
    hostile.save({"a": torch.ones(1)}, blobs / "abc")
    folder = tmp_path / "snapshots/1"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").symlink_to("../../blobs/abc")
    (folder / "config.json").symlink_to("../../blobs/config.json")
    check_folder(folder)


def test_only_one_module_reads_pickles():
    reads = set()
    for file in [*ROOT.glob("reward_sdk/**/*.py"), *ROOT.glob("valor_plugin/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.keyword(arg="weights_only") | ast.alias(name="pickle"):
                    reads.add(file.name)
                case ast.Attribute(attr="load", value=ast.Name(id="torch")):
                    reads.add(file.name)
                case ast.Attribute(attr="jit" | "hub", value=ast.Name(id="torch")):
                    reads.add(file.name)
    assert reads == {"weights.py"}


@pytest.mark.parametrize("state", [(0, (1 << 30,), (1,)), {"requires_grad": True}])
def test_a_file_cannot_change_a_tensor_that_it_holds(tmp_path, state):
    class Changed:
        def __reduce__(self):
            return torch._utils._rebuild_parameter, (torch.arange(4.0), False, {}), state

    torch.save({"a": Changed()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="it changes what is no layer"):
        read_weights(tmp_path / "w.pt")


def test_a_file_cannot_change_what_a_dictionary_that_it_holds_can_do(tmp_path):
    from collections import OrderedDict

    made = OrderedDict(a=torch.arange(4.0))
    made.values = set  # type: ignore[method-assign]
    torch.save(made, tmp_path / "w.pt")
    assert torch.equal(next(iter(read_weights(tmp_path / "w.pt").values())), torch.arange(4.0))
