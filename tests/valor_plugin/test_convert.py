"""`openrlhf convert`: exact on a checkpoint of the original code (if it is there), and on random
ones, written here in every layout of the original format, careful."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.shared import DATA

from reward_sdk.errors import ConfigError
from valor_plugin.cli import main
from valor_plugin.llava_med import convert as module
from valor_plugin.llava_med.convert import convert
from valor_plugin.llava_med.plan import plan

FIXTURE = DATA / "llava-med-tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason="shared data is not here")
TOWERS = {"": None, "folder_tower.": str(FIXTURE / "clip-vit-tiny-patch14-56")}
CASES = ("landscape", "portrait", "square", "text_only")


@pytest.fixture(scope="module", params=TOWERS, ids=["checkpoint", "folder"])
def exact(request, tmp_path_factory):
    """The converted fixture: prefix of its expected values, model, processor, expected values."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path_factory.mktemp("exact") / "model"
    convert(FIXTURE / "checkpoint", folder, TOWERS[request.param])
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    cases = json.loads((FIXTURE / "expected.json").read_text())["cases"]
    return request.param, model, processor, cases, load_file(FIXTURE / "expected.safetensors")


def inputs(processor, case):
    """What the model is given for a case, from its messages and the image's file."""
    from PIL import Image

    messages = []
    for i, text in enumerate(case["messages"]):
        image = [{"type": "image"}] if i == 0 and case.get("image") else []
        role = "user" if i % 2 == 0 else "assistant"
        messages.append({"role": role, "content": [*image, {"type": "text", "text": text}]})
    prompt = processor.apply_chat_template(messages, tokenize=False)
    images = [Image.open(FIXTURE / case["image"])] if case.get("image") else None
    return prompt, processor(
        text=prompt, images=images, return_tensors="pt", add_special_tokens=False
    )


@needs_fixture
@pytest.mark.parametrize("name", CASES)
def test_prompts_and_token_ids_are_the_original_s_exactly(name, exact):
    _, model, processor, cases, _ = exact
    case = cases[name]
    prompt, given = inputs(processor, case)
    assert prompt == f"<s>{case['prompt']}"
    image = [model.config.image_token_index] * case.get("num_image_tokens", 0)
    wanted = [[token] if token >= 0 else image for token in case["input_ids"]]
    assert given["input_ids"][0].tolist() == [token for tokens in wanted for token in tokens]


@needs_fixture
@pytest.mark.parametrize("name", ["landscape", "portrait", "square", "gray"])
def test_pixels_are_the_original_s_exactly(name, exact):
    from PIL import Image

    _, _, processor, _, expected = exact
    image = Image.open(FIXTURE / f"images/{name}.png")
    found = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(found, expected[f"{name}.pixel_values"])


@needs_fixture
@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_reports_are_the_original_s(name, exact):
    prefix, model, processor, cases, expected = exact
    case = cases[name]
    _, given = inputs(processor, case)
    if prefix and name == "text_only":
        prefix = ""  # the tower has no part in it, and is recorded once
    with torch.no_grad():
        logits = model(**given).logits[0]
        ids = model.generate(**given, max_new_tokens=12, do_sample=False)[0]
    found = logits[case["logit_positions"], :512]
    assert torch.allclose(found, expected[f"{name}.{prefix}logits"], rtol=0, atol=1e-4)
    wanted = case["folder_tower_generated_ids" if prefix else "generated_ids"]
    assert ids[given["input_ids"].shape[1] :].tolist() == wanted
    assert not (logits.argmax(-1) == model.config.image_token_index).any()


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 8,
          "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
LANGUAGE = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300,
            "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 512,
            "hidden_act": "silu", "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False}  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    """Random weights under the original's names, buffers of old files among them."""
    random = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=random) * 0.1

    hidden, inner, keys = 64, 48, 32
    made = {"model.embed_tokens.weight": tensor(300, hidden), "lm_head.weight": tensor(300, hidden),
            "model.norm.weight": tensor(hidden)}  # fmt: skip
    for i in range(2):
        layer = f"model.layers.{i}"
        made |= {
            f"{layer}.input_layernorm.weight": tensor(hidden),
            f"{layer}.post_attention_layernorm.weight": tensor(hidden),
            f"{layer}.self_attn.q_proj.weight": tensor(hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": tensor(keys, hidden),
            f"{layer}.self_attn.v_proj.weight": tensor(keys, hidden),
            f"{layer}.self_attn.o_proj.weight": tensor(hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": tensor(inner, hidden),
            f"{layer}.mlp.up_proj.weight": tensor(inner, hidden),
            f"{layer}.mlp.down_proj.weight": tensor(hidden, inner),
            f"{layer}.self_attn.rotary_emb.inv_freq": tensor(4),
        }
    made |= {"model.mm_projector.0.weight": tensor(hidden, 16),
             "model.mm_projector.0.bias": tensor(hidden),
             "model.mm_projector.2.weight": tensor(hidden, hidden),
             "model.mm_projector.2.bias": tensor(hidden)}  # fmt: skip
    tower = {f"model.vision_tower.vision_tower.{name}": t for name, t in tower_tensors(1).items()}
    return made | tower


def tower_tensors(seed: int) -> dict[str, torch.Tensor]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    model = CLIPVisionModel(CLIPVisionConfig(**VISION))
    state = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in
             model.state_dict().items()}  # fmt: skip
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> Path:
    """A tokenizer.model of 300 pieces."""
    spm = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    words = ("The heart is enlarged", "no pleural effusion", "clear lungs", "left apex nodule")
    sentences = [f"{a} {b}." for a in words for b in words] * 4
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences), model_prefix=str(prefix), vocab_size=300,
        model_type="bpe", byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return prefix.with_suffix(".model")


def pieces(path: Path) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()


LAYOUTS = ("safetensors", "sharded safetensors", "bin", "sharded bin")


def write(folder: Path, tokenizer: Path, layout="safetensors", drop="", **changed) -> Path:
    """A checkpoint in the original format; `drop` leaves out tensors that begin with it."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    size = pieces(tokenizer)
    config = {
        "model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"], **LANGUAGE,
        "vocab_size": size, "mm_vision_tower": "clip", "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "image_aspect_ratio": "pad", **changed,
    }  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, checkpoint / "tokenizer.model")
    made = {n: t for n, t in tensors().items() if not (drop and n.startswith(drop))}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        made[name] = made[name][:size].clone()
    suffix = "safetensors" if "safetensors" in layout else "bin"
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = sorted(made)
    parts = [names[0::2], names[1::2]] if "sharded" in layout else [names]
    index = {}
    for i, part in enumerate(parts, 1):
        sharded = f"{stem}-{i:05}-of-{len(parts):05}.{suffix}"
        file = sharded if len(parts) > 1 else f"{stem}.{suffix}"
        content = {name: made[name] for name in part}
        if suffix == "safetensors":
            save_file(content, checkpoint / file)
        else:
            torch.save(content, checkpoint / file)
        index |= dict.fromkeys(part, file)
    if len(parts) > 1:
        (checkpoint / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    clip = folder / "clip"
    clip.mkdir()
    (clip / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **VISION}))
    save_file(tower_tensors(2), clip / "model.safetensors")
    return checkpoint


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder: name -> digest."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def renamed(name: str) -> str:
    """Where the original's tensor belongs, by vLLM's and transformers' names for files."""
    for old, new in {
        "model.mm_projector.0": "multi_modal_projector.linear_1",
        "model.mm_projector.2": "multi_modal_projector.linear_2",
        "model.vision_tower.vision_tower": "vision_tower",
        "lm_head": "language_model.lm_head",
        "model": "language_model.model",
    }.items():
        if name.startswith(f"{old}."):
            return name.replace(old, new, 1)
    raise AssertionError(name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_every_tensor_once_and_unchanged(layout, tmp_path, sentencepiece_model):
    from transformers import AutoModelForImageTextToText

    source = write(tmp_path, sentencepiece_model, layout)
    convert(source, tmp_path / "out")
    found, given = weights(tmp_path / "out"), tensors()
    size = pieces(sentencepiece_model)
    given = {name: tensor for name, tensor in given.items() if "inv_freq" not in name}
    assert {renamed(name) for name in given} == found.keys()
    for name, tensor in given.items():
        assert torch.equal(found[renamed(name)][:size], tensor[:size]), name
    _, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())


def test_the_tower_of_the_folder_is_taken_when_asked_for_or_when_there_is_no_other(
    tmp_path, sentencepiece_model
):
    source = write(tmp_path / "a", sentencepiece_model)
    key = "vision_tower.vision_model.embeddings.class_embedding"
    own, other = tower_tensors(1), tower_tensors(2)
    report = convert(source, tmp_path / "own")
    assert "vision tower: from the checkpoint" in report
    assert torch.equal(weights(tmp_path / "own")[key], own[key.removeprefix("vision_tower.")])
    convert(source, tmp_path / "other", str(tmp_path / "a/clip"))
    assert torch.equal(weights(tmp_path / "other")[key], other[key.removeprefix("vision_tower.")])
    bare = write(tmp_path / "b", sentencepiece_model, drop="model.vision_tower")
    report = convert(bare, tmp_path / "only")
    assert f"vision tower: from {tmp_path / 'b/clip'}" in report
    assert torch.equal(weights(tmp_path / "only")[key], other[key.removeprefix("vision_tower.")])


def test_a_tower_that_transformers_saved_is_read_and_old_bin_files_are(
    tmp_path, sentencepiece_model
):
    source = write(tmp_path, sentencepiece_model, "bin", drop="model.vision_tower")
    old = torch.load(source / "pytorch_model.bin")
    torch.save(old, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    tower = {n.removeprefix("vision_model."): t for n, t in tower_tensors(2).items()}
    save_file(tower, tmp_path / "clip/model.safetensors")
    convert(source, tmp_path / "out")
    key = "vision_tower.vision_model.embeddings.class_embedding"
    found = weights(tmp_path / "out")
    assert torch.equal(found[key], tower["embeddings.class_embedding"])
    assert torch.equal(found["language_model.model.norm.weight"], old["model.norm.weight"])


def test_a_pickle_that_would_run_code_is_not_run(tmp_path, sentencepiece_model):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    source = write(tmp_path, sentencepiece_model, "bin")
    torch.save({"lm_head.weight": Bad()}, source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="nothing of it was executed"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("ratio", "pads"), [("pad", True), ("square", False), (None, False)])
def test_images_are_padded_where_the_original_pads(ratio, pads, tmp_path, sentencepiece_model):
    source = write(tmp_path, sentencepiece_model)
    config = json.loads((source / "config.json").read_text())
    config.pop("image_aspect_ratio")
    if ratio:
        config["image_aspect_ratio"] = ratio
    (source / "config.json").write_text(json.dumps(config))
    assert plan(source).processor.image_processor.do_pad is pads


def test_what_generates_is_told_to_leave_the_image_token_out(tmp_path, sentencepiece_model):
    convert(write(tmp_path, sentencepiece_model, mm_vision_select_layer=-1), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["suppress_tokens"] == [config["image_token_index"]]
    assert (config["vision_feature_layer"], config["dtype"]) == (-1, "float32")


def test_the_image_token_s_logit_is_the_mean_of_all_and_never_the_largest(
    tmp_path, sentencepiece_model
):
    source = write(tmp_path, sentencepiece_model)
    convert(source, tmp_path / "out")
    head = weights(tmp_path / "out")["language_model.lm_head.weight"]
    states = torch.randn(200, head.shape[1])
    logits = states @ head.T
    assert torch.allclose(logits[:, -1], logits[:, :-1].mean(1), atol=1e-5)
    assert (logits.argmax(1) != len(head) - 1).all()


def test_it_goes_on_where_it_was_stopped_and_ends_with_the_same_files(
    tmp_path, sentencepiece_model, monkeypatch
):
    source = write(tmp_path, sentencepiece_model, "sharded safetensors")
    convert(source, tmp_path / "straight")
    written = []
    save = module.save_file

    def no_room_for_the_second(content, path, metadata):
        if written:
            Path(path).write_bytes(b"half")
            raise SafetensorError("IoError: No space left on device (os error 28)")
        written.append(path)
        save(content, path, metadata=metadata)

    monkeypatch.setattr(module, "save_file", no_room_for_the_second)
    with pytest.raises(ConfigError, match=r"No space left.*goes on from here"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    first = next((tmp_path / "out.partial").glob("*00001-of*"))
    before = first.stat().st_mtime_ns
    convert(source, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "straight")
    assert (tmp_path / "out" / first.name).stat().st_mtime_ns == before


def test_too_little_room_is_said_before_a_shard_is_written(
    tmp_path, sentencepiece_model, monkeypatch
):
    source = write(tmp_path, sentencepiece_model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ConfigError, match="1 MB are free"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["weights", "configuration"])
def test_a_source_that_changed_in_between_is_not_mixed_with_what_is_there(
    what, tmp_path, sentencepiece_model, monkeypatch
):
    source = write(tmp_path, sentencepiece_model, "sharded safetensors")
    monkeypatch.setattr(module, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    if what == "weights":
        shard = sorted(source.glob("model-*"))[0]
        save_file({n: t + 1 for n, t in load_file(shard).items()}, shard)
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    with pytest.raises(ConfigError, match="another conversion: remove it"):
        convert(source, tmp_path / "out")


def test_two_at_once_do_not_write_into_one_another(tmp_path, sentencepiece_model, monkeypatch):
    source = write(tmp_path, sentencepiece_model)
    said = []

    def second(*_):
        with pytest.raises(ConfigError, match="another conversion is writing"):
            convert(source, tmp_path / "out")
        said.append(1)

    finish = module._finish
    monkeypatch.setattr(module, "_finish", lambda *a: (second(), finish(*a)))
    convert(source, tmp_path / "out")
    assert said
    assert not (tmp_path / "out/conversion.json").exists()


def test_another_conversion_s_rest_is_not_taken_for_this_one_s(tmp_path, sentencepiece_model):
    source = write(tmp_path, sentencepiece_model)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/model-00001-of-00001.safetensors").write_text("")
    with pytest.raises(ConfigError, match="another conversion: remove it"):
        convert(source, tmp_path / "out")


def broken(source: Path, how: str) -> None:
    """Damages a checkpoint of two shards."""
    shard = sorted(source.glob("model-*"))[0]
    index = source / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    config = json.loads((source / "config.json").read_text())
    match how:
        case "truncated shard":
            shard.write_bytes(shard.read_bytes()[:-100])
        case "missing shard":
            shard.unlink()
        case "missing index entry":
            listed["weight_map"].pop("lm_head.weight")
        case "index entry without a tensor":
            listed["weight_map"]["model.layers.7.mlp.up_proj.weight"] = shard.name
        case "no index, no weights":
            index.unlink()
        case "index is no JSON":
            index.write_text("{")
        case "wrong architecture":
            config["model_type"] = "llava"
        case "wrong projector":
            config["mm_projector_type"] = "linear"
        case "more layers than tensors":
            config["num_hidden_layers"] = 3
        case "other shapes":
            config["intermediate_size"] = 64
        case "no tokenizer":
            (source / "tokenizer.model").unlink()
        case "broken tokenizer":
            (source / "tokenizer.model").write_bytes(b"no model")
        case "no config":
            (source / "config.json").unlink()
            return
        case "unknown tower":
            config["mm_vision_tower"] = "someone/some-tower"
        case "fewer rows than words":
            content = load_file(shard)
            name = next(n for n in ("lm_head.weight", "model.embed_tokens.weight") if n in content)
            save_file({**content, name: content[name][:-9].clone()}, shard)
        case "integers":
            content = load_file(shard)
            name = next(n for n in content if n.endswith("_proj.weight"))
            save_file({**content, name: content[name].to(torch.int8)}, shard)
        case "a file elsewhere":
            listed["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
        case "no map of weights":
            listed["weight_map"] = ["lm_head.weight"]
        case "a word for a number":
            config["num_hidden_layers"] = "two"
        case "no tower's name":
            config["mm_vision_tower"] = None
        case "unknown tensor":
            content = load_file(shard)
            save_file({**content, "model.resampler.weight": torch.zeros(2)}, shard)
            listed["weight_map"]["model.resampler.weight"] = shard.name
    (source / "config.json").write_text(json.dumps(config))
    if index.exists() and how != "index is no JSON":
        index.write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated shard", "damaged or cut short"),
        ("missing shard", "the index names this file"),
        ("missing index entry", "does not list 'lm_head.weight'"),
        ("index entry without a tensor", "the file lacks 'model.layers.7"),
        ("no index, no weights", "no weights"),
        ("index is no JSON", "is no JSON"),
        ("wrong architecture", "this one is 'llava'"),
        ("wrong projector", "mm_projector_type 'linear'"),
        ("more layers than tensors", "9 tensors are missing"),
        ("other shapes", r"of the shape \(48, 64\), .* wants floating point of \(64, 64\)"),
        ("no tokenizer", "no tokenizer.model"),
        ("broken tokenizer", "tokenizer.model is damaged"),
        ("no config", "cannot read"),
        ("unknown tower", "pass --tower FOLDER"),
        ("fewer rows than words", "the configuration wants floating point of"),
        ("integers", "torch.int8"),
        ("a file elsewhere", "no file of weights beside it"),
        ("no map of weights", "the name of a file here"),
        ("a word for a number", "a value that does not work"),
        ("no tower's name", "no mm_vision_tower"),
        ("unknown tensor", "'model.resampler.weight' is none of LLaVA-Med"),
    ],
)
def test_a_bad_checkpoint_is_an_error_that_says_what_and_leaves_no_model(
    how, says, tmp_path, sentencepiece_model
):
    source = write(tmp_path, sentencepiece_model, "sharded safetensors")
    broken(source, how)
    with pytest.raises(ConfigError, match=says):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, sentencepiece_model):
    source = write(tmp_path, sentencepiece_model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        convert(source, tmp_path / "out")
    assert content(tmp_path / "out").keys() == {"mine.txt"}


def test_a_released_tower_is_known_by_its_name(tmp_path, sentencepiece_model):
    source = write(
        tmp_path, sentencepiece_model, mm_vision_tower="openai/clip-vit-large-patch14-336"
    )
    with pytest.raises(ConfigError, match="tensors are missing, among them 'vision_tower"):
        plan(source)  # the tower inside is smaller than that


def test_the_command_says_what_it_did_and_ends_with_2_on_bad_input(tmp_path, sentencepiece_model):
    source = write(tmp_path, sentencepiece_model)
    done = CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "projector    4 tensors          5,248 parameters" in done.output
    again = CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "there already" in again.output
