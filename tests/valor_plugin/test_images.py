"""Images that are opened, sent and encoded once: the same numbers with less work. Ray's object
store is the one thing that is not there; tests/e2e/test_same.py has it."""

from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ray = pytest.importorskip("ray")
from valor_plugin.host.images import Encoder, GroupImage, SentImage, encode_once  # noqa: E402
from valor_plugin.llava_med.parts import train_only  # noqa: E402

TEXT = [1, 5, 9, 7]


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
        gray = images[0].getpixel((0, 0))[0]
        return [1, 2], {"pixel_values": torch.full((1, 3, 4, 4), float(gray))}, images

    return process


def group_image(folder, gray: int) -> GroupImage:
    path = folder / f"{gray}.png"
    Image.new("L", (50, 40), gray).save(path)
    return GroupImage(str(path), "s1")


def test_an_image_is_processed_once_for_its_whole_group(tmp_path):
    times: list[str] = []
    shared = group_image(tmp_path, 7)
    outcomes = [shared.prepared(processing(times), None, "Describe.") for _ in range(3)]
    assert times == ["Describe."]
    ids, inputs, [image] = outcomes[0]
    assert ids == [1, 2]
    assert image is shared.image
    assert inputs["pixel_values"].pixels.shape == (1, 3, 4, 4)
    assert all(outcome is outcomes[0] for outcome in outcomes)


def test_images_are_told_apart_by_their_pixels_and_vllm_takes_their_name(tmp_path):
    prepared = [
        group_image(tmp_path, gray).prepared(processing([]), None, "") for gray in (7, 7, 8)
    ]
    names = [inputs["pixel_values"].name for _, inputs, _ in prepared]
    assert names[0] == names[1] != names[2]
    tag = Image.ExifTags.Base.ImageID
    assert [image.getexif()[tag].hex for *_, [image] in prepared] == names


def test_an_image_that_cannot_be_read_is_blank_and_says_so(tmp_path, caplog):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    broken = GroupImage(str(path), "s7")
    assert not broken.readable
    assert broken.image.getextrema() == ((0, 0),) * 3
    assert "study s7: " in caplog.text
