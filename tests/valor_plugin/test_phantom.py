"""Phantoms: what is drawn is where the boxes say, and what is written is what is drawn."""

import json
from collections.abc import Collection
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_sdk.errors import ConfigError
from reward_sdk.models.rule_labeler import label_reports
from valor_plugin.demo.phantom_reports import (
    MAX_REPORT_WORDS,
    SentenceBank,
    iu_xray_sentences,
    mirrored,
)
from valor_plugin.demo.phantoms import (
    DRAWABLE,
    OBSERVATION_OF,
    Finding,
    draw,
    sample_findings,
    write_phantoms,
)

SEEDS = st.integers(0, 2**63 - 1)
DRAWN = st.sets(st.sampled_from(DRAWABLE), max_size=3)


@pytest.fixture(scope="module")
def bank() -> SentenceBank:
    try:
        return SentenceBank(iu_xray_sentences())
    except ConfigError as error:
        if "install" not in str(error):
            raise
        pytest.skip(str(error))


def pixels(findings: Collection[Finding], seed: int) -> np.ndarray:
    return np.asarray(draw(findings, seed).image, np.int16)


@given(DRAWN, SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_same_findings_in_any_order_and_seed_give_the_same_phantom(findings, seed):
    order: list[Finding] = [finding for finding in DRAWABLE if finding in findings]
    first, second = draw(order, seed), draw(order[::-1], seed)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.boxes == second.boxes


def test_another_seed_gives_another_phantom():
    assert (pixels((), 1) != pixels((), 2)).mean() > 0.9


@given(DRAWN, SEEDS, st.sampled_from([64, 96, 128]))
@settings(max_examples=100, deadline=None)
def test_every_finding_has_a_box_of_sensible_size_within_the_phantom(findings, seed, size):
    phantom = draw(findings, seed, size)
    assert phantom.image.size == (size, size)
    assert phantom.image.mode == "L"
    assert set(phantom.boxes) == findings
    for x0, y0, x1, y1 in phantom.boxes.values():
        assert 0 <= x0 < x1 <= size
        assert 0 <= y0 < y1 <= size
        assert (x1 - x0) * (y1 - y0) < size * size / 2


@pytest.mark.parametrize("finding", [f for f in DRAWABLE if f.endswith(("left", "right"))])
def test_the_left_of_the_image_is_the_right_of_the_patient(finding: Finding):
    for seed in range(20):
        x0, _, x1, _ = draw([finding], seed).boxes[finding]
        assert ((x0 + x1) / 2 > 48) == finding.endswith("left")


@pytest.mark.parametrize("finding", DRAWABLE)
def test_a_finding_is_visible_in_its_box_and_hardly_elsewhere(finding: Finding):
    strongest = []
    for seed in range(20):
        x0, y0, x1, y1 = draw([finding], seed).boxes[finding]
        change = np.abs(pixels([finding], seed) - pixels([], seed))
        inside = np.zeros_like(change, bool)
        inside[y0:y1, x0:x1] = True
        assert change[inside].mean() > 2 * change[~inside].mean()
        strongest.append(np.percentile(change[inside], 95))  # a lead fills little of its box
    assert np.median(strongest) > 15  # of 255


def test_an_unknown_finding_is_named_in_the_error():
    with pytest.raises(ValueError, match="effusion_both"):
        draw(["effusion_both"], 0)  # pyright: ignore[reportArgumentType]


def test_sampled_findings_have_the_stated_number_and_are_equally_common():
    rng = np.random.default_rng(0)
    sampled = [sample_findings(rng) for _ in range(8000)]
    share = np.bincount([len(findings) for findings in sampled]) / len(sampled)
    assert np.allclose(share, (0.20, 0.35, 0.30, 0.15), atol=0.02)
    prevalence = [sum(f in findings for findings in sampled) / len(sampled) for f in DRAWABLE]
    assert np.allclose(prevalence, 0.14, atol=0.02)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_report_states_exactly_what_is_drawn_and_denies_none_of_it(bank, count):
    rng = np.random.default_rng(0)
    for findings in combinations(DRAWABLE, count):
        reports = [bank.report(findings, rng) for _ in range(5)]
        for report, labels in zip(reports, label_reports(reports), strict=True):
            labels = {k: v for k, v in labels.items() if v is not None and k != "No Finding"}
            drawn = {OBSERVATION_OF[finding] for finding in findings}
            assert {k for k, v in labels.items() if v != 0} == drawn, report
            assert {k for k, v in labels.items() if v == 1} == drawn, report


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sided_finding_is_stated_with_its_side_and_never_the_other(bank, side):
    other = "left" if side == "right" else "right"
    for finding, wordings in bank.states.items():
        if finding.endswith(side):
            assert all(side in wording.lower() for wording in wordings)
            assert not any(other in wording.lower() for wording in wordings)


def test_both_sides_are_stated_in_the_same_words(bank):
    for finding in DRAWABLE:
        if finding.endswith("_left"):
            right = bank.states[finding.replace("_left", "_right")]
            assert {mirrored(wording): weight for wording, weight in right.items()} == dict(
                bank.states[finding]
            )


def test_findings_without_a_side_are_stated_without_one(bank):
    for finding in ("cardiomegaly", "atelectasis", "edema", "device"):
        words = " ".join(bank.states[finding]).lower().split()
        assert not {"left", "right", "bilateral", "bibasilar"} & set(words)


def test_reports_are_short_and_varied(bank):
    rng = np.random.default_rng(0)
    reports = [bank.report(sample_findings(rng), rng) for _ in range(500)]
    lengths = [len(report.split()) for report in reports]
    assert 14 <= np.median(lengths) <= 24
    assert max(lengths) <= MAX_REPORT_WORDS
    assert len(set(reports)) > 450


def test_clear_lungs_are_not_claimed_of_a_phantom_with_a_disease_of_the_lungs(bank):
    rng = np.random.default_rng(0)
    for finding in DRAWABLE:
        if finding not in ("cardiomegaly", "device"):
            assert not any("clear" in bank.report([finding], rng) for _ in range(40))


def test_a_bank_without_a_sentence_for_some_finding_is_refused():
    with pytest.raises(ConfigError, match="edema"):
        SentenceBank({"Cardiomegaly.": 3, "No pneumothorax.": 50})


def test_the_same_seed_writes_the_same_files_and_another_seed_other_ids(bank, tmp_path: Path):
    first = write_phantoms(tmp_path / "a", 6, 1, bank.report)
    write_phantoms(tmp_path / "b", 6, 1, bank.report)
    other = write_phantoms(tmp_path / "c", 6, 2, bank.report)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 7
    assert not {one.study.id for one in first} & {one.study.id for one in other}


def test_the_table_of_phantoms_agrees_with_the_studies_returned(bank, tmp_path: Path):
    phantoms = write_phantoms(tmp_path, 6, 1, bank.report)
    rows = [json.loads(line) for line in (tmp_path / "phantoms.jsonl").read_text().splitlines()]
    for phantom, row in zip(phantoms, rows, strict=True):
        study = phantom.study
        assert (row["id"], tmp_path / row["image"], row["report"]) == (
            study.id,
            study.image,
            study.report,
        )
        assert list(phantom.findings) == row["findings"]
        assert study.image.is_file()
        assert list(row["boxes"]) == row["findings"]
