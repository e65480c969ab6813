"""The properties are checked on simulated experts, and once on a DenseNet trained on the spot."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from time import sleep

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.models.calibration import (
    Calibration,
    Features,
    fit_calibration,
    prepared,
    read_calibration,
)
from reward_sdk.registry import factory
from reward_sdk.rewards.image_text import ImageText, report_polarity, similarity
from reward_sdk.text import wrap_report
from reward_sdk.types import ImageRef, Sample

FINDINGS = (
    "Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Lung Opacity",
)  # fmt: skip


def studies(prevalence, separation, n=4000, seed=0):
    """Truth (n, 7) in {0, 1} and calibrated evidence of a classifier with the given d'."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, len(FINDINGS))) < prevalence
    signal = separation * truth + rng.normal(size=truth.shape)
    odds = prevalence / (1 - prevalence)
    p = 1 / (1 + np.exp(-separation * (signal - separation / 2)) / odds)
    calibrated = np.where(
        p <= prevalence, p / (2 * prevalence), 1 - (1 - p) / (2 * (1 - prevalence))
    )
    return truth.astype(float), 2 * calibrated - 1


def reference_polarity(truth, seed=0):
    """All findings and 2 to 4 of the negatives; all negatives where nothing is found."""
    rng = np.random.default_rng(seed)
    polarity = truth.copy()
    for row, found in zip(polarity, truth, strict=True):
        absent = np.flatnonzero(found == 0)
        stated = rng.integers(2, 5) if found.any() else len(absent)
        row[rng.permutation(absent)[:stated]] = -1
    return polarity


# Findings at 5 % leave 70 % of the studies normal; separations 1.5, 2 and 4 are AUC .86, .92, .998.
worlds = pytest.mark.parametrize(
    ("prevalence", "separation"),
    [(0.05, 2), (0.05, 4), (0.14, 1.5), (0.14, 2), (0.14, 4), (0.3, 2), (0.3, 4)],
)


@pytest.fixture
def world(prevalence, separation):
    truth, evidence = studies(prevalence, separation)
    return truth, (evidence - evidence.mean(axis=0)) / evidence.std(axis=0)


@worlds
def test_the_true_report_beats_naming_everything(world):
    truth, z = world
    true = similarity(z, reference_polarity(truth)).mean()
    assert true > similarity(z, np.ones_like(z)).mean() + 0.2


@worlds
def test_negating_everything_earns_less_than_a_quarter_of_the_true_report(world):
    truth, z = world
    true = similarity(z, reference_polarity(truth)).mean()
    assert similarity(z, -np.ones_like(z)).mean() < 0.25 * true


@worlds
def test_another_patients_report_earns_less_than_a_quarter_of_the_true_one(world):
    truth, z = world
    reports = reference_polarity(truth)
    assert similarity(z, np.roll(reports, 1, axis=0)).mean() < 0.25 * similarity(z, reports).mean()


@worlds
def test_on_normal_images_the_normal_report_is_the_best_of_all_reports_in_use(world):
    truth, z = world
    normal = z[~truth.any(axis=1)]
    best = similarity(normal, -np.ones_like(normal)).mean()
    reports = np.unique(np.concatenate([reference_polarity(truth), np.zeros((1, 7))]), axis=0)
    others = [similarity(normal, np.broadcast_to(r, normal.shape)).mean() for r in reports]
    assert best > 0
    assert best >= max(others)


@worlds
def test_true_negations_beside_findings_cost_next_to_nothing(world):
    truth, z = world
    abnormal = truth.any(axis=1)
    complete = similarity(z, 2 * truth - 1)[abnormal].mean()
    assert complete > 0.95 * similarity(z, truth)[abnormal].mean()


@worlds
def test_true_negations_without_the_findings_earn_less_than_a_quarter_of_the_true_report(world):
    truth, z = world
    abnormal = truth.any(axis=1)
    reports = reference_polarity(truth)
    silent = similarity(z, np.minimum(reports, 0))[abnormal].mean()
    assert silent < 0.25 * similarity(z, reports)[abnormal].mean()


def test_leaving_out_one_of_two_findings_costs():
    truth, evidence = studies(0.14, 2)
    z = (evidence - evidence.mean(axis=0)) / evidence.std(axis=0)
    two = truth.sum(axis=1) >= 2
    z, complete = z[two], truth[two]
    partial = complete.copy()
    partial[np.arange(len(partial)), complete.argmax(axis=1)] = 0
    assert similarity(z, complete).mean() > similarity(z, partial).mean() + 0.1


finite = st.floats(-100, 100)
evidence_rows = arrays(float, (3, 5), elements=finite)
polarity_rows = arrays(float, (3, 5), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0]))


@given(evidence_rows, polarity_rows)
def test_similarity_is_a_number_between_minus_1_and_1(z, polarity):
    assert (np.abs(similarity(z, polarity)) <= 1).all()


@given(evidence_rows)
def test_a_report_that_states_nothing_is_neutral(z):
    assert (similarity(z, np.zeros_like(z)) == 0).all()


@given(polarity_rows)
def test_an_image_without_evidence_is_neutral(polarity):
    assert (similarity(np.zeros_like(polarity), polarity) == 0).all()


@given(evidence_rows, polarity_rows, st.integers(0, 4))
def test_a_hedge_that_earns_anything_earns_no_more_than_plain_speech_or_silence(
    z, polarity, finding
):
    def scored_as(value):
        changed = polarity.copy()
        changed[:, finding] = value
        return similarity(z, changed)

    best = np.maximum(scored_as(1), scored_as(0)).clip(min=0)
    assert (scored_as(0.5) <= best + 1e-12).all()


def test_similarity_equals_the_formula_by_hand():
    z = np.array([[3.0, -1.0, 0.0, 0.0]])
    expected = (3 * 1 + -1 * -0.2) / (np.sqrt(10) * np.sqrt(1 + 0.04))
    assert similarity(z, np.array([[0, -1.0, 0, 0]])) == pytest.approx(0.2 / np.sqrt(10))
    assert similarity(z, np.array([[1.0, -1.0, 0, 0]])) == pytest.approx(expected)
    weak = z / 4  # norm 0.79, below the floor sqrt(4)
    assert similarity(weak, np.array([[1.0, 0, 0, 0]])) == pytest.approx(0.75 / 2)


def test_polarity_follows_the_labels_of_the_report():
    texts = ["There is edema. No pneumothorax. Possible atelectasis.", "No acute disease.", ""]
    polarity = report_polarity(texts, ("Edema", "Pneumothorax", "Atelectasis", "Fracture"))
    assert polarity.tolist() == [[1, -1, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


class SimulatedExpert:
    """Reads its evidence from the image: one row of 16-bit pixels, one per finding."""

    weights = "simulated"
    findings = FINDINGS
    directions = np.eye(len(FINDINGS))

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return np.asarray(image, np.float32) / 32767.5 - 1

    def encode(self, prepared):
        self.batches.append(len(prepared))
        evidence = np.concatenate(prepared)
        return evidence, evidence


def image_of(evidence):
    return Image.fromarray(((np.asarray(evidence) + 1) * 32767.5).astype(np.uint16)[None])


def calibration(mean=-0.7, sd=0.5, **changes):
    moments = {finding: {"mean": mean, "sd": sd} for finding in FINDINGS}
    return Calibration(weights="simulated", images=10, findings=moments | changes)


CALIBRATION = calibration()
EFFUSION = [-0.9, -0.9, -0.9, -0.9, -0.9, 0.9, -0.9]


def sample(report, image=None):
    return Sample(wrap_report(report), image=image or ImageRef(pixels=image_of(EFFUSION)))


def values(reward, samples):
    return [part.value for part in reward(samples)]


def test_reports_of_one_image_are_ordered_by_what_it_shows():
    texts = ["There is pleural effusion. No edema.", "Possible pleural effusion. No edema.",
             "The patient is rotated.", "No pleural effusion.", "There is edema."]  # fmt: skip
    scores = values(ImageText(SimulatedExpert(), CALIBRATION), [sample(text) for text in texts])
    assert scores[0] > scores[1] > scores[2] == 0
    assert scores[2] > scores[4] > scores[3]


def test_the_explanation_sets_what_the_image_shows_against_what_the_report_says():
    evidence = np.full(len(FINDINGS), -0.7)  # as the average image
    evidence[[0, 1, 2]] = 0.8, 0.3, -0.9
    report = "Cardiomegaly. No edema. Right consolidation."
    image = ImageRef(pixels=image_of(evidence))
    tried = replace(sample(report, image), reference="Left consolidation.")
    found = {e.finding: e for e in ImageText(SimulatedExpert(), calibration()).explain(tried)}
    assert list(found)[:2] == ["Cardiomegaly", "Edema"]  # what it sees most of first
    assert found["Cardiomegaly"].image == pytest.approx(3, abs=0.05)
    assert found["Cardiomegaly"].agrees is True
    assert found["Edema"].agrees is False
    said = found["Consolidation"]
    assert (said.response, said.reference, said.agrees) == (
        "present, right",
        "present, left",
        False,
    )
    assert found["Atelectasis"].response == "not mentioned"
    assert found["Atelectasis"].agrees is None


def test_a_side_view_has_nothing_to_explain():
    side = ImageRef(pixels=image_of(EFFUSION), view="LATERAL")
    assert ImageText(SimulatedExpert(), calibration()).explain(sample("Edema.", side)) == []


def test_scores_alone_are_never_explained(monkeypatch):
    monkeypatch.setattr(ImageText, "explain", lambda *_: pytest.fail("explained"))
    reward = ImageText(SimulatedExpert(), calibration())
    assert len(reward([sample("Edema.")])) == 1


def test_findings_whose_evidence_does_not_vary_are_left_out():
    reward = ImageText(SimulatedExpert(), calibration(Edema={"mean": 0.2, "sd": 0}))
    assert "Edema" not in reward.findings
    assert values(reward, [sample("There is edema.")]) == [0]


def test_an_expert_whose_evidence_never_varies_is_a_configuration_error():
    with pytest.raises(ConfigError, match="no finding's evidence varies"):
        ImageText(SimulatedExpert(), calibration(sd=0))


def test_no_samples_give_no_parts():
    assert ImageText(SimulatedExpert(), CALIBRATION)([]) == []


def saved(evidence, path):
    image_of(evidence).save(path)
    return ImageRef(path=str(path))


def test_new_images_are_encoded_once_and_in_one_batch(tmp_path):
    expert = SimulatedExpert()
    reward = ImageText(expert, CALIBRATION)
    first, second = (saved([e] * 7, tmp_path / f"{e}.png") for e in (0.1, 0.2))
    in_memory = ImageRef(pixels=image_of([0.3] * 7))
    samples = [sample("No edema.", i) for i in (first, second, first, in_memory)]
    again = [replace(s, image=ImageRef(pixels=image_of([0.3] * 7))) for s in samples[3:]]
    assert reward(samples + again) == reward(samples + again)
    assert expert.batches == [3]


def test_a_file_that_changed_is_encoded_again(tmp_path):
    reward = ImageText(SimulatedExpert(), CALIBRATION)
    before = values(reward, [sample("No edema.", saved([0.1] * 7, tmp_path / "x.png"))])
    after = values(reward, [sample("No edema.", saved([-0.9] * 7, tmp_path / "x.png"))])
    assert before[0] < 0 < after[0]


def test_the_cache_is_bounded_and_forgets_the_image_unused_for_longest(monkeypatch):
    monkeypatch.setattr("reward_sdk.rewards.image_text._CACHED", 2)
    expert = SimulatedExpert()
    reward = ImageText(expert, CALIBRATION)
    a, b, c = (ImageRef(pixels=image_of([e] * 7)) for e in (0.1, 0.2, 0.3))
    for image in (a, b, a, c, a, b):
        reward.similarities([image], [""])
    assert expert.batches == [1, 1, 1, 1]
    assert len(reward.similarities([a, b, c], [""] * 3)) == 3


def test_threads_share_one_encoding():
    expert = SimulatedExpert()
    reward = ImageText(expert, CALIBRATION)
    samples = [sample("No edema.", ImageRef(pixels=image_of([e / 10] * 7))) for e in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: values(reward, samples), range(32)))
    assert all(result == results[0] for result in results)
    assert sum(expert.batches) == 8


def test_an_unreadable_image_is_a_scoring_error_that_names_it(tmp_path):
    reward = ImageText(SimulatedExpert(), CALIBRATION)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ScoringError, match=name):
            reward([sample("No edema.", ImageRef(path=str(tmp_path / name)))])


class MeetingExpert(SimulatedExpert):
    """Prepares images two at a time or not at all."""

    def __init__(self):
        super().__init__()
        self.meeting = Barrier(2)

    def prepare(self, image):
        self.meeting.wait(timeout=10)
        return super().prepare(image)


def test_images_are_prepared_side_by_side_and_stay_in_order(monkeypatch):
    monkeypatch.setattr("reward_sdk.models.calibration._READERS", 2)
    images = [ImageRef(pixels=image_of([e / 10] * 7)) for e in range(8)]
    found = prepared(MeetingExpert(), images)
    np.testing.assert_allclose([row[0, 0] for row in found], np.arange(8) / 10, atol=1e-4)


def test_after_an_image_that_fails_no_other_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr("reward_sdk.models.calibration._READERS", 1)
    seen = []
    expert = SimulatedExpert()
    expert.prepare = lambda image: seen.append(image) or sleep(0.05)
    gone = ImageRef(path=str(tmp_path / "gone.png"))
    good = ImageRef(pixels=image_of(EFFUSION))
    with pytest.raises(ScoringError, match=r"gone\.png"):
        prepared(expert, [good, gone, *[good] * 20])
    sleep(0.2)
    assert len(seen) <= 2


def written(path, **changes):
    findings = {name: {"mean": 0, "sd": 0.5} for name in FINDINGS}
    content = {"weights": "simulated", "images": 10, "findings": findings} | changes
    path.write_text(json.dumps(content))
    return str(path)


def test_a_calibration_is_read_in_the_order_of_the_expert(tmp_path):
    findings = {name: {"mean": 0, "sd": 0.5} for name in reversed(FINDINGS)}
    path = written(tmp_path / "b.json", findings=findings)
    assert tuple(read_calibration(path, SimulatedExpert()).findings) == FINDINGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "densenet"}, "fitted with densenet, but the expert is simulated"),
        ({"findings": {"Edema": {"mean": 0, "sd": 0.5}}}, "not the expert's, see .*'Atelectasis'"),
        ({"findings": {"Edema": {"mean": 2, "sd": 0.5}}}, r"findings\.Edema\.mean"),
        ({"findings": {"Edema": {"mean": float("nan"), "sd": 0.5}}}, r"findings\.Edema\.mean"),
        ({"images": 1}, "images"),
    ],
)
def test_a_calibration_that_does_not_fit_is_a_configuration_error(tmp_path, changes, message):
    path = written(tmp_path / "b.json", **changes)
    with pytest.raises(ConfigError, match=rf"(?s)b\.json.*{message}"):
        read_calibration(path, SimulatedExpert())


def test_a_missing_calibration_and_one_that_is_no_json_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        read_calibration(str(tmp_path / "none.json"), SimulatedExpert())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ConfigError, match=r"(?s)b\.json: .*JSON"):
        read_calibration(str(tmp_path / "b.json"), SimulatedExpert())


def four_corner_x_rays(n, seed):
    """32 x 32 noise; each of four findings is a bright disc in its own quarter."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 4)) < 0.2
    pixels = rng.normal(90, 30, (n, 32, 32))
    y, x = np.mgrid[:32, :32]
    for k in range(4):
        disc = (y - 8 - 16 * (k // 2)) ** 2 + (x - 8 - 16 * (k % 2)) ** 2 < 20
        pixels[truth[:, k]] += 45 * disc
    images = [Image.fromarray(p) for p in pixels.clip(0, 255).astype(np.uint8)]
    return truth, [ImageRef(pixels=image) for image in images]


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory):
    """A DenseNet of torchxrayvision's class, trained for seconds, in its own file format."""
    xrv = pytest.importorskip("torchxrayvision")
    import torch

    torch.manual_seed(0)
    truth, images = four_corner_x_rays(256, seed=1)
    inputs = np.stack([np.asarray(i.pixels, np.float32) for i in images])[:, None]
    inputs = torch.from_numpy((inputs / 255 * 2 - 1) * 1024)
    labels = torch.from_numpy(truth).float()
    model = xrv.models.DenseNet(
        growth_rate=16, block_config=(2, 2), num_init_features=16, num_classes=4
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.targets = ["Cardiomegaly", "Edema", "Pneumothorax", "Effusion"]
    model.op_threshs = torch.full((4,), 0.2)
    model.input_resolution = 32
    path = tmp_path_factory.mktemp("expert") / "weights.pt"
    torch.save(model, path)
    return str(path)


def expert(weights):
    from reward_sdk.models.xray_expert import load_expert

    return load_expert(weights)


def report(found, findings):
    return " ".join(
        f"There is {'' if yes else 'no '}{name.lower()}."
        for yes, name in zip(found, findings, strict=True)
    )


@pytest.mark.parametrize("embedding", ["evidence", "features"])
def test_the_whole_chain_from_weight_file_to_scores(trained_weights, tmp_path, embedding):
    _, training = four_corner_x_rays(256, seed=1)
    progress = []
    fitted = fit_calibration(expert(trained_weights), training, progress.append)
    assert progress[-1] == fitted.images == 256
    fitted.save(tmp_path / "calibration.json")
    settings = {"expert": trained_weights, "calibration": str(tmp_path / "calibration.json")}
    reward = factory("image_text")(**settings, embedding=embedding)

    truth, images = four_corner_x_rays(200, seed=2)

    def mean(reports):
        samples = [sample(t, i) for t, i in zip(reports, images, strict=True)]
        return np.mean(values(reward, samples))

    true = [report(found, reward.findings) for found in truth]
    assert mean(true) > {"evidence": 0.4, "features": 0.2}[embedding]
    assert mean([report([0] * 4, reward.findings)] * 200) < 0.25 * mean(true)
    assert mean([report([1] * 4, reward.findings)] * 200) < 0.15 * mean(true)
    assert mean(true[1:] + true[:1]) < 0.25 * mean(true)


def test_side_views_are_left_out_of_the_fit_before_any_image_is_opened(trained_weights):
    _, training = four_corner_x_rays(3, seed=1)
    side, progress = ImageRef(path=__file__, view="LATERAL"), []
    fitted = fit_calibration(expert(trained_weights), [*training, side], progress.append)
    assert (fitted.images, progress) == (3, [4])
    assert fitted == fit_calibration(expert(trained_weights), training)


def test_fitting_names_an_unreadable_image(trained_weights):
    with pytest.raises(ScoringError, match=r"gone\.png"):
        fit_calibration(expert(trained_weights), [ImageRef(path="gone.png")])


def test_fitting_without_images_is_a_configuration_error(trained_weights):
    with pytest.raises(ConfigError, match="needs the training images"):
        fit_calibration(expert(trained_weights), [])


def test_a_finding_weight_of_0_makes_a_finding_count_for_nothing():
    reward = ImageText(SimulatedExpert(), CALIBRATION, finding_weights={"Pleural Effusion": 0})
    right, wrong = sample("There is pleural effusion."), sample("No pleural effusion.")
    assert values(reward, [right, wrong]) == [0, 0]


@pytest.mark.parametrize("embedding", ["evidence", "features"])
def test_beside_other_findings_one_of_weight_0_is_as_if_it_were_not_mentioned(embedding):
    features = {"mean": [0.0] * 7, "length": 1.0, "sd": dict.fromkeys(FINDINGS, 0.5)}
    fitted = CALIBRATION.model_copy(update={"features": Features(**features)})
    reward = ImageText(SimulatedExpert(), fitted, embedding, {"Pleural Effusion": 0})
    alone, beside = sample("There is edema."), sample("There is edema. There is pleural effusion.")
    assert values(reward, [alone]) == pytest.approx(values(reward, [beside]))


def test_features_of_another_shape_are_refused(tmp_path):
    features = {"mean": [0.0], "length": 1.0, "sd": dict.fromkeys(FINDINGS, 0.5)}
    with pytest.raises(ConfigError, match="features are not the expert's"):
        read_calibration(written(tmp_path / "b.json", features=features), SimulatedExpert())


def test_a_smaller_finding_weight_makes_a_finding_count_less():
    texts = [sample("There is pleural effusion. There is edema.")]
    half = {"Edema": 0.5}
    assert (
        values(ImageText(SimulatedExpert(), CALIBRATION), texts)
        < values(ImageText(SimulatedExpert(), CALIBRATION, finding_weights=half), texts)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Oedema": 1}, "did you mean 'Edema'"),
        ({"Edema": -1}, "not in 0 to"),
        ({"Edema": float("inf")}, "not in 0 to"),
        (dict.fromkeys(FINDINGS, 0), "at least one"),
    ],
)
def test_finding_weights_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        ImageText(SimulatedExpert(), CALIBRATION, finding_weights=given)


def test_a_side_view_is_not_scored_and_its_neighbours_are():
    side = ImageRef(pixels=image_of(EFFUSION), view="LATERAL")
    expert = SimulatedExpert()
    parts = ImageText(expert, CALIBRATION)([sample("Pleural effusion.", side), sample("Edema.")])
    assert [part.status for part in parts] == ["not_applicable", "ok"]
    assert parts[0].value is None
    assert expert.batches == [1]


def test_the_header_that_tells_a_side_view_is_read_once(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "reward_sdk.rewards.image_text.is_lateral", lambda image: seen.append(image) or True
    )
    reward = ImageText(SimulatedExpert(), CALIBRATION)
    side = sample("Edema.", saved(EFFUSION, tmp_path / "x.png"))
    parts = reward([side, side]) + reward([side])
    assert [part.status for part in parts] == ["not_applicable"] * 3
    assert len(seen) == 1


def test_features_want_a_calibration_that_has_them():
    with pytest.raises(ConfigError, match="fit it again"):
        ImageText(SimulatedExpert(), CALIBRATION, embedding="features")
