"""Images that are opened, sent and encoded once: the same numbers with less work. Ray's object
store is the one thing that is not there; tests/e2e/test_same.py has it."""

from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ray = pytest.importorskip("ray")
from valor_plugin.host.images import (  # noqa: E402
    Encoder,
    GroupImages,
    SentImage,
    encode_once,
    merge_names,
    prepare_once,
)
from valor_plugin.llava_med.parts import train_only  # noqa: E402
from valor_plugin.llava_med.template import templated  # noqa: E402

TEXT = [1, 5, 9, 7]
NO_BOS = {"add_special_tokens": False}


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda array: array)
    monkeypatch.setattr(ray, "get", lambda references: list(references))


@pytest.fixture
def model(tiny_model):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_model)
    train_only(model, ["projector"])
    return model.float()


def sent(name: str, seed: int) -> SentImage:
    return SentImage(name, torch.randn(1, 3, 32, 32, generator=torch.manual_seed(seed)).numpy())


A, B, C = sent("a", 1), sent("b", 2), sent("c", 3)


def logits(model, images: list[SentImage], once: bool) -> torch.Tensor:
    tokens = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    tokens += model.config.vision_feature_select_strategy == "full"
    ids = torch.tensor([[model.config.image_token_id] * tokens + TEXT] * len(images))
    shown = images if once else torch.cat([torch.tensor(image.pixels) for image in images])
    return model(ids, pixel_values=shown).logits


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def encoding_once(model, most: int = 8) -> Encoder:
    """What the seam does to the class, for this model alone."""
    kind = type(model.model)
    encode = encode_once(kind.get_image_features, SimpleNamespace(rollout_images=most))
    model.model.get_image_features = partial(encode, model.model)
    model.model.image_encoder = Encoder(model.model, most)
    return model.model.image_encoder


def calls(model) -> list[int]:
    """How many images each call of the tower had."""
    seen: list[int] = []
    model.model.vision_tower.register_forward_hook(
        lambda _module, given, _found: seen.append(len(given[0]))
    )
    return seen


def test_pixels_are_encoded_as_ever(model):
    wanted = logits(model, [A, B], once=False)
    encoding_once(model)
    assert torch.equal(logits(model, [A, B], once=False), wanted)


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, -1, [-1, -2]])
def test_logits_are_those_of_pixels_for_every_sample(model, layer, strategy):
    model.config.vision_feature_layer = layer
    model.config.vision_feature_select_strategy = strategy
    if isinstance(layer, list):
        model.model.multi_modal_projector = type(model.model.multi_modal_projector)(model.config)
    wanted = logits(model, [A, A, B, A], once=False)
    encoding_once(model)
    for _ in range(2):  # anew, and from memory
        close(logits(model, [A, A, B, A], once=True), wanted)


def test_the_projector_gets_the_gradients_of_pixels_for_every_sample(model):
    def gradients(once: bool) -> list[torch.Tensor]:
        model.zero_grad()
        logits(model, [A, A, B, A], once).log_softmax(-1)[..., 3].sum().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    wanted = gradients(once=False)
    encoding_once(model)
    found = gradients(once=True)
    assert len(found) == 4
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


def test_an_image_goes_through_the_tower_once_however_often_it_comes(model):
    encoding_once(model)
    seen = calls(model)
    for images in ([A, A, B, A], [B, B], [A, C, C, B]):
        logits(model, images, once=True)
    assert seen == [2, 1]


def test_no_more_images_are_remembered_than_a_rollout_has(model):
    wanted = logits(model, [A, B, C], once=False)
    encoder = encoding_once(model, most=2)
    seen = calls(model)
    close(logits(model, [A, B, C], once=True), wanted)
    assert list(encoder.known) == ["b", "c"]
    logits(model, [B], once=True)
    logits(model, [A], once=True)
    assert list(encoder.known) == ["b", "a"]
    assert seen == [3, 1]


def test_under_zero_3_a_process_that_knows_its_images_enters_the_tower_where_another_has_to(
    model, monkeypatch
):
    wanted = logits(model, [A, B], once=False)
    encoding_once(model)
    seen = calls(model)
    next(model.model.vision_tower.parameters()).ds_id = 0
    asked: list[int] = []

    def all_reduce(flag, _operation):
        asked.append(int(flag))
        flag.fill_(1)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for _ in range(2):
        close(logits(model, [A, B], once=True), wanted)
    assert (asked, seen) == ([1, 0], [2, 1])


def test_what_is_remembered_holds_no_memory_of_its_batch(model):
    encoder = encoding_once(model, most=1)
    logits(model, [A, B, C], once=True)
    [features] = encoder.known.values()
    assert features.untyped_storage().nbytes() == features.nbytes


def test_a_tower_that_trains_gets_gradients_and_is_asked_again(model):
    train_only(model, ["tower", "projector"])
    wanted = logits(model, [A, A, B], once=False)
    encoder = encoding_once(model)
    seen = calls(model)
    for _ in range(2):
        found = logits(model, [A, A, B], once=True)
    close(found, wanted)
    found.sum().backward()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.any()
    assert seen == [2, 2]
    assert not encoder.known


def processing(times: list[str]):
    def process(_processor, prompt, images):
        times.append(prompt)
        grays = [float(image.getpixel((0, 0))[0]) for image in images]
        pixels = torch.tensor(grays).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        return [1, 2], {"pixel_values": pixels}, images

    return process


def group_images(folder, *grays: int) -> GroupImages:
    paths = [str(folder / f"{gray}.png") for gray in grays]
    for gray, path in zip(grays, paths, strict=True):
        Image.new("L", (50, 40), gray).save(path)
    return GroupImages(paths, "s1")


def test_images_are_processed_once_for_their_whole_group(tmp_path):
    times: list[str] = []
    shared = group_images(tmp_path, 7, 9)
    outcomes = [shared.prepared(processing(times), None, "Describe.") for _ in range(3)]
    assert times == ["Describe."]
    ids, inputs, images = outcomes[0]
    assert ids == [1, 2]
    assert images is shared.images
    assert [sent.pixels.shape for sent in inputs["pixel_values"]] == [(1, 3, 4, 4)] * 2
    assert [sent.pixels[0, 0, 0, 0] for sent in inputs["pixel_values"]] == [7, 9]
    assert all(outcome is outcomes[0] for outcome in outcomes)


def test_images_are_told_apart_by_their_pixels_and_vllm_takes_their_name(tmp_path):
    shared = [group_images(tmp_path, 7, 7), group_images(tmp_path, 7, 8)]
    prepared = [images.prepared(processing([]), None, "") for images in shared]
    names = [[sent.name for sent in inputs["pixel_values"]] for _, inputs, _ in prepared]
    assert names[0] == [names[1][0]] * 2
    assert names[1][0] != names[1][1]
    tag = Image.ExifTags.Base.ImageID
    assert [[image.getexif()[tag].hex for image in images] for *_, images in prepared] == names


@pytest.mark.parametrize("broken", [0, 1])
def test_an_image_that_cannot_be_read_is_blank_and_says_so_whichever_of_a_study_it_is(
    tmp_path, caplog, broken
):
    Image.new("L", (50, 40), 7).save(tmp_path / "film.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["film.png", "film.png"]
    names[broken] = "broken.png"
    shared = GroupImages([str(tmp_path / name) for name in names], "s7")
    assert not shared.readable
    assert shared.images[broken].getextrema() == ((0, 0),) * 3
    assert shared.images[1 - broken].getextrema() == ((7, 7),) * 3
    assert "study s7: " in caplog.text


def test_samples_of_one_and_of_several_images_have_the_log_probabilities_of_transformers(
    tmp_path, tiny_model, model
):
    """From files to log-probabilities as a rollout and the policy go, against the processor and
    the model alone."""
    processor = transformers.AutoProcessor.from_pretrained(tiny_model)

    def process(processor, prompt, images):
        found = processor(text=[prompt], images=images, return_tensors="pt", **NO_BOS)
        return found["input_ids"][0].tolist(), {"pixel_values": found["pixel_values"]}, images

    prepare = prepare_once(process, None)
    prompts, samples, pictures = [], [], []
    for grays in ((30, 200), (90,), (200, 30, 90)):
        shared = group_images(tmp_path, *grays)
        pictures.append(shared.images)
        prompts.append(templated(processor, "Lungs are clear.", len(grays)))
        samples.append(prepare(processor, prompts[-1], shared))
    wanted = processor(text=prompts, images=pictures, return_tensors="pt", padding=True, **NO_BOS)
    for row, mask, (ids, *_) in zip(
        wanted["input_ids"], wanted["attention_mask"], samples, strict=True
    ):
        assert row[mask.bool()].tolist() == ids
    merged = merge_names(None, None)([[inputs] for _, inputs, _ in samples], None)
    assert len(merged["pixel_values"]) == 6
    sequences = {key: wanted[key] for key in ("input_ids", "attention_mask")}
    plain = model(**sequences, pixel_values=wanted["pixel_values"]).logits.log_softmax(-1)
    encoding_once(model)
    seen = calls(model)
    found = model(**sequences, pixel_values=merged["pixel_values"]).logits.log_softmax(-1)
    close(found, plain)
    assert seen == [3]  # films, of six that are shown


def test_the_order_of_a_samples_images_is_kept(model):
    tokens = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = torch.tensor([[model.config.image_token_id] * tokens * 2 + TEXT])
    encoding_once(model)
    one, other = (model(ids, pixel_values=images).logits for images in ([A, B], [B, A]))
    assert not torch.allclose(one, other, atol=1e-3)
