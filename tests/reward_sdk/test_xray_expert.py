"""Weights are random, the file format is torchxrayvision's own."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.shared import DATA

from reward_sdk.errors import ConfigError, ScoringError

xrv = pytest.importorskip("torchxrayvision")
import torch  # noqa: E402

from reward_sdk.models.xray_expert import load_expert  # noqa: E402

NIH = DATA / "nih-cxr14"
CHEX = "densenet121-res224-chex"


def small_densenet(targets=("Effusion", "Edema", "", "Mass", "Pneumonia"), thresholds=None):
    """A randomly initialised DenseNet of torchxrayvision's class, 32 x 32."""
    torch.manual_seed(0)
    model = xrv.models.DenseNet(
        growth_rate=4, block_config=(2, 3), num_init_features=8, bn_size=2,
        num_classes=len(targets), op_threshs=torch.tensor(thresholds or [0.3] * len(targets)),
    )  # fmt: skip
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    model.features.norm0.running_var.fill_(1e6)  # inputs reach 1024
    model.targets = list(targets)
    model.input_resolution = 32
    return model.eval()


def saved(model, path, zipped=True):
    torch.save(model, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def noise_images(n, size=(40, 36)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(n)]


def encode(expert, images):
    """The evidence."""
    return expert.encode([expert.prepare(image) for image in images])[0]


def upstream_inputs(images, resolution):
    crop, resize = xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(resolution)
    arrays = [xrv.utils.normalize(np.asarray(image), 255)[None] for image in images]
    return torch.from_numpy(np.stack([resize(crop(array)) for array in arrays]))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_evidence_equals_torchxrayvision_bit_for_bit(tmp_path, zipped):
    model = small_densenet()
    images = noise_images(4)  # one pass: torch rounds batches of other sizes otherwise
    with torch.no_grad():
        expected = 2 * model(upstream_inputs(images, 32)).numpy() - 1
    expert = load_expert(saved(model, tmp_path / "w.pt", zipped))
    evidence, _ = expert.encode(upstream_inputs(images, 32).numpy())
    assert np.array_equal(evidence, expected[:, [0, 1, 4]])
    assert evidence.std(axis=0).min() > 0
    np.testing.assert_allclose(encode(expert, images), evidence, atol=1e-6)


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    return load_expert(saved(small_densenet(), tmp_path_factory.mktemp("expert") / "w.pt"))


RANGES = st.sampled_from([(0, 255), (0, 120), (130, 255), (200, 200)])  # below grey, above it, flat


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), RANGES, st.integers(0, 9))
def test_a_film_of_any_size_is_prepared_as_by_torchxrayvision(expert, width, height, values, seed):
    low, high = values
    pixels = np.random.default_rng(seed).integers(low, high + 1, (height, width), dtype=np.uint8)
    image = Image.fromarray(pixels)
    prepared, [expected] = expert.prepare(image), upstream_inputs([image], 32).numpy()
    assert (prepared.shape, prepared.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(prepared, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("resolution", [112, 224])
def test_a_large_film_is_prepared_as_by_torchxrayvision_at_other_resolutions(tmp_path, resolution):
    model = small_densenet()
    model.input_resolution = resolution
    [image] = noise_images(1, size=(1500, 1237))
    prepared = load_expert(saved(model, tmp_path / "w.pt")).prepare(image)
    np.testing.assert_allclose(prepared, upstream_inputs([image], resolution)[0], rtol=0, atol=1e-3)


def test_a_published_name_is_read_from_the_cache_folder_and_equals_upstream(tmp_path, monkeypatch):
    monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: f"{tmp_path}/")
    torch.manual_seed(0)
    url = xrv.models.model_urls[CHEX]["weights_url"]
    model = xrv.models.DenseNet(num_classes=18)
    model.features.norm0.running_var.fill_(1e6)
    saved(model, tmp_path / Path(url).name)
    images = noise_images(2, size=(224, 224))
    upstream = xrv.models.DenseNet(weights=CHEX)
    with torch.no_grad():
        expected = 2 * upstream(upstream_inputs(images, 224)).numpy() - 1
    trained = [i for i, label in enumerate(upstream.targets) if label]
    expert = load_expert(CHEX)
    assert expert.weights.startswith(f"{CHEX} sha256:")
    assert len(expert.findings) == 11
    assert np.array_equal(encode(expert, images), expected[:, trained])
    assert np.abs(expected).max() > 0.01


def test_a_missing_published_file_says_which_where_and_from_where(tmp_path, monkeypatch):
    monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: f"{tmp_path}/")
    with pytest.raises(ConfigError) as error:
        load_expert(CHEX)
    assert f"{tmp_path}/chex-densenet121" in str(error.value)
    assert xrv.models.model_urls[CHEX]["weights_url"] in str(error.value)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=f"did you mean '{CHEX}'"):
        load_expert("densenet121-res224-chexpert")


def test_findings_are_the_trained_outputs_under_their_chexpert_names(tmp_path):
    targets = ("Effusion", "", "Mass", "Edema", "Fracture", "No Finding")
    model = small_densenet(targets, [0.3, 0.3, 0.3, 0.3, float("nan"), 0.3])
    expert = load_expert(saved(model, tmp_path / "w.pt"))
    assert expert.findings == ("Pleural Effusion", "Edema")


def test_evidence_is_zero_at_the_decision_point(tmp_path):
    model = small_densenet()
    image = noise_images(1)
    model.op_threshs = None
    with torch.no_grad():
        model.op_threshs = torch.sigmoid(model(upstream_inputs(image, 32)))[0]
    evidence = encode(load_expert(saved(model, tmp_path / "w.pt")), image)
    np.testing.assert_allclose(evidence, 0, atol=1e-6)


def test_no_images_give_no_rows(tmp_path):
    assert load_expert(saved(small_densenet(), tmp_path / "w.pt")).encode([])[0].shape == (0, 3)


def test_many_images_go_through_in_chunks_with_the_same_result(tmp_path):
    expert = load_expert(saved(small_densenet(), tmp_path / "w.pt"))
    images = noise_images(40)
    one_by_one = np.concatenate([encode(expert, [image]) for image in images])
    np.testing.assert_allclose(encode(expert, images), one_by_one, atol=1e-5)


def test_convolutions_are_not_rounded_on_a_gpu_and_other_networks_are_left_alone(tmp_path):
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:
        pytest.skip("torch before 2.9")
    seen, before = [], convolutions.fp32_precision
    expert = load_expert(saved(small_densenet(), tmp_path / "w.pt"))
    expert._model.features.register_forward_pre_hook(
        lambda *_: seen.append(convolutions.fp32_precision)
    )
    encode(expert, noise_images(1))
    assert seen == ["ieee"]
    assert convolutions.fp32_precision == before


def test_the_same_file_has_the_same_identity_wherever_it_lies(tmp_path):
    first = saved(small_densenet(), tmp_path / "w.pt")
    second = tmp_path / "copy.pt"
    second.write_bytes(Path(first).read_bytes())
    assert load_expert(first).weights == load_expert(str(second)).weights
    assert load_expert(first).weights.startswith("sha256:")


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_weight_file_is_refused_by_name_and_does_not_run(tmp_path, zipped):
    model = small_densenet()
    model.attack = Attack(tmp_path / "ran")
    path = saved(model, tmp_path / "w.pt", zipped)
    with pytest.raises(ConfigError, match=rf"w\.pt: refused, .*{os.system.__module__}\.system"):
        load_expert(path)
    assert not (tmp_path / "ran").exists()


def test_a_state_dict_is_no_model(tmp_path):
    path = saved(small_densenet().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="not a torchxrayvision DenseNet"):
        load_expert(path)


def test_a_tensor_too_many_is_an_error(tmp_path):
    model = small_densenet()
    model.features.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"features\.extra\.weight"):
        load_expert(saved(model, tmp_path / "w.pt"))


def test_a_small_file_that_claims_large_layers_takes_no_memory(tmp_path):
    model = small_densenet()
    many = 40_000  # squared, they would be 6 GB
    model.features.conv0.weight = torch.nn.Parameter(torch.zeros(many, 1, 1, 1))
    first = model.features.denseblock1.denselayer1
    first.conv1.weight = torch.nn.Parameter(torch.zeros(many, 1, 1, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="not a torchxrayvision DenseNet"):
        load_expert(saved(model, tmp_path / "w.pt"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_model_without_thresholds_is_an_error(tmp_path):
    model = small_densenet()
    model.op_threshs = None
    with pytest.raises(ConfigError, match="a threshold in `op_threshs`"):
        load_expert(saved(model, tmp_path / "w.pt"))


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="device 'nowhere'"):
        load_expert(saved(small_densenet(), tmp_path / "w.pt"), device="nowhere")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_gives_the_evidence_that_a_cpu_gives(tmp_path):
    path = saved(small_densenet(), tmp_path / "w.pt")
    images = noise_images(40)
    expected, found = (encode(load_expert(path, device), images) for device in ("cpu", "cuda"))
    assert np.abs(expected - found).max() < 1e-4  # rounded to TF32, it would be more


def test_outputs_that_are_no_numbers_are_a_scoring_error(tmp_path):
    model = small_densenet()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ScoringError, match="NaN"):
        encode(load_expert(saved(model, tmp_path / "w.pt")), noise_images(1))


@pytest.mark.skipif(not NIH.is_dir(), reason="shared data absent")
def test_real_x_rays_go_through_as_through_torchxrayvision(tmp_path):
    model = small_densenet()
    model.input_resolution = 112
    paths = sorted(NIH.glob("original/*.png"))[:2] + sorted(NIH.glob("thumb64/*.png"))[:2]
    arrays = [xrv.utils.load_image(str(path)) for path in paths]
    crop, resize = xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(112)
    with torch.no_grad():
        outputs = model(torch.from_numpy(np.stack([resize(crop(array)) for array in arrays])))
    expert = load_expert(saved(model, tmp_path / "w.pt"))
    evidence = encode(expert, [Image.open(path) for path in paths])
    np.testing.assert_allclose(evidence, 2 * outputs.numpy()[:, [0, 1, 4]] - 1, atol=1e-6)


@pytest.mark.skipif(not NIH.is_dir(), reason="shared data absent")
def test_real_x_rays_are_prepared_as_by_torchxrayvision(expert):
    for path in sorted(NIH.glob("original/*.png"))[:3]:  # 32 times the resolution
        image = Image.open(path).convert("L")
        expected = upstream_inputs([image], 32)[0]
        np.testing.assert_allclose(expert.prepare(image), expected, rtol=0, atol=1e-3)
