import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_sdk.errors import ConfigError
from reward_sdk.metrics import bleu_counts, corpus_metrics
from reward_sdk.text import tokens, wrap_report
from valor_plugin.evaluation.metrics import (
    METRICS,
    Evaluation,
    FindingsComparison,
    StudyResult,
    bootstrap,
    compare_findings,
    evaluate,
    paired_bootstrap,
    stated_findings,
)

ENLARGED = "The heart is enlarged. No pleural effusion."
EFFUSION = "Heart size is normal. There is a left pleural effusion."
NORMAL = "Heart size is normal. The lungs are clear."
NAMES = ("Cardiomegaly", "Edema", "Fracture", "Pneumothorax")


def from_cells(stated: np.ndarray, reference: np.ndarray) -> Evaluation:
    """An evaluation with the given 0/1 cells, both of shape (studies, NAMES)."""

    def names(cells: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, cell in zip(NAMES, cells, strict=True) if cell)

    return Evaluation(
        tuple(
            StudyResult(
                True, findings=FindingsComparison(names(a & b), names(b & ~a), names(a & ~b))
            )
            for a, b in zip(stated.astype(bool), reference.astype(bool), strict=True)
        )
    )


def test_reports_equal_to_their_references_are_perfect():
    references = [ENLARGED, EFFUSION]
    metrics = evaluate([wrap_report(text) for text in references], references).metrics
    perfect = ("well_formed", "rouge_l", "bleu_4", "micro_f1", "macro_f1")
    assert [metrics[name] for name in perfect] == pytest.approx([1.0] * 5)
    assert metrics["similarity"] is None


def test_a_malformed_response_counts_as_a_report_that_states_nothing():
    malformed = StudyResult(
        False, 0.0, 0.0, bleu_counts([], tokens(ENLARGED)), None,
        FindingsComparison(missed=("Cardiomegaly",)),
    )  # fmt: skip
    assert evaluate([ENLARGED], [ENLARGED]).studies == (malformed,)


def test_a_malformed_response_earns_nothing_from_a_reference_without_words():
    nothing = StudyResult(False, 0.0, 0.0, (0,) * 10, None, FindingsComparison())
    assert evaluate(["no tags"], ["..."]).studies == (nothing,)


def test_a_study_without_reference_counts_in_form_and_similarity_alone():
    evaluation = evaluate(["no tags", wrap_report(ENLARGED)], [None, ENLARGED], [0.25, 0.75])
    alone = evaluate([wrap_report(ENLARGED)], [ENLARGED], [0.75])
    assert evaluation.studies[0] == StudyResult(False, similarity=0.25)
    assert evaluation.metrics == alone.metrics | {"well_formed": 0.5, "similarity": 0.5}


def test_without_any_reference_the_reference_metrics_are_none_and_not_zero():
    metrics = evaluate([wrap_report(NORMAL)], [None]).metrics
    assert metrics == dict.fromkeys(METRICS) | {"well_formed": 1.0}


def test_an_uncertain_mention_counts_as_stated_and_a_negated_one_does_not():
    reports = ["Possible pneumonia.", "No pneumonia.", NORMAL]
    assert stated_findings(reports) == [("Pneumonia",), (), ()]


def test_findings_are_sorted_into_correct_missed_and_unsupported():
    both = f"{ENLARGED} Displaced rib fracture."
    found = compare_findings([both], ["The heart is enlarged. There is pulmonary edema."])
    assert found == [FindingsComparison(("Cardiomegaly",), ("Edema",), ("Fracture",))]


def test_f1_pools_cells_or_averages_observations_over_those_in_the_references():
    # By hand: Cardiomegaly tp 2 fp 1 fn 0, Edema tp 0 fp 0 fn 1, Pneumothorax tp 1 fp 1 fn 1;
    # Fracture occurs in no reference and is left out with its two false positives.
    stated = np.array([[1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1]])
    reference = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    metrics = from_cells(stated, reference).metrics
    assert metrics["micro_f1"] == pytest.approx(6 / 10)
    assert metrics["macro_f1"] == pytest.approx((4 / 5 + 0 + 1 / 2) / 3)


def test_a_similarity_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        evaluate([wrap_report(NORMAL)], [NORMAL], [float("nan")])


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        evaluate([wrap_report(NORMAL)], [NORMAL, NORMAL])


def test_an_evaluation_survives_json():
    evaluation = evaluate(["", wrap_report(EFFUSION)], [ENLARGED, None], [0.1, 0.2])
    assert evaluation.metrics  # a computed property does not leak into the file
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert json.loads(evaluation.to_json()).keys() == {"studies"}


def test_wording_is_that_of_the_corpus_metrics_and_not_a_mean_of_sentence_bleu():
    reports = [ENLARGED, NORMAL, EFFUSION, "There is no pleural effusion or pneumothorax."]
    references = [EFFUSION, NORMAL, ENLARGED, "No pleural effusion or pneumothorax is seen."]
    evaluation = evaluate([wrap_report(text) for text in reports], references)
    expected = corpus_metrics(reports, references, meteor=False)
    for name in ("bleu_4", "rouge_l"):
        assert evaluation.metrics[name] == pytest.approx(expected[name], abs=1e-12)
    sentences = [study.sentence_bleu_4 for study in evaluation.studies]
    assert sum(sentences) / 4 != pytest.approx(expected["bleu_4"], abs=0.005)


def test_an_evaluation_of_an_earlier_version_is_refused_and_loses_nothing_in_silence():
    old = '{"studies": [{"well_formed": true, "rouge_l": 0.5, "bleu_4": 0.25}]}'
    with pytest.raises(ConfigError, match=r"evaluate again.*studies\.0.*bleu_4"):
        Evaluation.from_json(old)


@pytest.mark.parametrize("text", ["", "[]", '{"studies": [{"well_formed": "perhaps"}]}'])
def test_json_that_is_no_evaluation_is_refused_with_its_place(text):
    with pytest.raises(
        ConfigError, match=r"not a stored evaluation.*: (Invalid JSON|Input should|studies)"
    ):
        Evaluation.from_json(text)


@pytest.mark.parametrize("metric", ["rouge_l", "bleu_4", "micro_f1", "macro_f1"])
def test_the_bootstrap_agrees_with_resampling_one_corpus_at_a_time(metric):
    before, after = (
        evaluate([wrap_report(text) for text in texts] * 10, [ENLARGED, EFFUSION, NORMAL] * 10)
        for texts in ([NORMAL, ENLARGED, NORMAL], [ENLARGED, ENLARGED, EFFUSION])
    )
    difference, low, high = paired_bootstrap(before, after, metric, resamples=2000)
    draws = np.random.default_rng(5).integers(0, 30, (400, 30))
    changes = [
        Evaluation(tuple(after.studies[i] for i in draw)).metrics[metric]
        - Evaluation(tuple(before.studies[i] for i in draw)).metrics[metric]
        for draw in draws
    ]
    assert difference == after.metrics[metric] - before.metrics[metric]
    assert (low, high) == pytest.approx(np.percentile(changes, (2.5, 97.5)), abs=0.05)


def test_a_wrong_side_is_counted_as_correct_and_named():
    (found,) = compare_findings(["Right effusion. Edema."], ["Left effusion. Edema."])
    assert found.correct == ("Edema", "Pleural Effusion")
    assert found.wrong_side == ("Pleural Effusion",)


def test_the_interval_of_a_mean_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(0.3, 1, size=400)
    sample = Evaluation(tuple(StudyResult(True, similarity=float(value)) for value in values))
    half = 1.96 * values.std() / 20
    interval = bootstrap(sample, "similarity", resamples=4000)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_what_is_not_defined_has_no_interval():
    assert bootstrap(evaluate([wrap_report(NORMAL)], [NORMAL]), "micro_f1") is None


def test_the_bootstrap_of_a_mean_has_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    before, change = rng.normal(size=400), rng.normal(0.3, 1, size=400)
    sides = [
        Evaluation(tuple(StudyResult(True, similarity=float(value)) for value in values))
        for values in (before, before + change)
    ]
    difference, low, high = paired_bootstrap(sides[0], sides[1], "similarity", resamples=4000)
    half = 1.96 * change.std() / 20
    assert difference == pytest.approx(change.mean())
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_an_evaluation_does_not_differ_from_itself(n, seed):
    stated, reference = np.random.default_rng(seed).integers(0, 2, (2, n, len(NAMES)))
    reference[0, 0] = 1
    evaluation = from_cells(stated, reference)
    assert paired_bootstrap(evaluation, evaluation, "macro_f1", resamples=50) == (0, 0, 0)


def test_the_same_seed_gives_the_same_interval():
    stated, other, reference = np.random.default_rng(2).integers(0, 2, (3, 30, len(NAMES)))
    sides = from_cells(stated, reference), from_cells(other, reference)
    assert paired_bootstrap(*sides, "micro_f1") == paired_bootstrap(*sides, "micro_f1")


def test_evaluations_of_different_studies_cannot_be_compared():
    one, two = (evaluate([wrap_report(NORMAL)], [text]) for text in (NORMAL, ENLARGED))
    with pytest.raises(ConfigError, match="different studies"):
        paired_bootstrap(one, two, "rouge_l")


def test_a_metric_that_is_unknown_or_undefined_cannot_be_compared():
    normal = evaluate([wrap_report(NORMAL)], [NORMAL])
    with pytest.raises(ConfigError, match="did you mean 'rouge_l'"):
        paired_bootstrap(normal, normal, "rogue_l")
    with pytest.raises(ConfigError, match="micro_f1 is not defined"):
        paired_bootstrap(normal, normal, "micro_f1")
