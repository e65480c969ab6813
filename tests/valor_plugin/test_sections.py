"""Sections against MIMIC-CXR's own script, see `tests/golden/make_sections.py`; paragraphs and
marks on the IU reports."""

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.iu_reports import iu_sections

from reward_sdk.errors import ConfigError
from reward_sdk.models.rule_labeler import label_reports
from valor_plugin.data.sections import (
    NoReport,
    indication_of,
    joined,
    report_of,
    sections_of,
    without_marks,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/sections.json").read_text("utf-8"))
CONCLUSIONS = GOLDEN["conclusions"]


@pytest.fixture(scope="module")
def iu_texts() -> list[str]:
    texts = [" ".join(text.split()) for pair in iu_sections().values() for text in pair if text]
    if not texts:
        pytest.skip("torchxrayvision, which carries the reports, is not installed")
    return texts


# Sections


def test_sections_have_the_names_and_texts_of_mimics_own_script():
    for report in GOLDEN["reports"]:
        assert sections_of(report["text"]) == report["sections"], report["text"]


def test_a_study_with_a_rule_of_its_own_concludes_what_mimics_own_script_says():
    found = {study: sections_of(GOLDEN["long"], study) for study in CONCLUSIONS}
    assert len(found) == 54
    for study, conclusion in CONCLUSIONS.items():
        assert found[study].get("impression", "") == conclusion.strip(), study


def test_eight_studies_have_no_sections_at_all():
    assert sum(not sections_of(GOLDEN["long"], study) for study in CONCLUSIONS) == 8


def test_a_study_is_known_with_and_without_its_letter():
    for study in CONCLUSIONS:
        assert sections_of(GOLDEN["long"], study[1:]) == sections_of(GOLDEN["long"], study)


def test_a_conclusion_never_stays_in_the_section_that_it_was_misnamed():
    sections = sections_of(GOLDEN["long"], "s57936451")
    assert sections["impression"] == "Heart is large."
    assert sections["indication"] == "Cough."


def test_a_study_whose_conclusion_is_not_where_it_should_be_is_an_error():
    with pytest.raises(ConfigError, match=r"study 56451190: .*'note', but the text has only full"):
        sections_of("Clear lungs.", "s56451190")


def test_an_indication_that_lacks_its_first_letter_is_no_impression():
    slip = GOLDEN["slips"]["NDICATION"]
    assert "impression" in slip["sections"]
    assert "indication" in sections_of(slip["text"])


def test_a_preliminary_impression_is_no_history_that_a_prompt_could_show():
    slip = GOLDEN["slips"]["PFI"]
    assert "history" in slip["sections"]
    assert indication_of(sections_of(slip["text"])) is None


@pytest.mark.parametrize(
    ("heading", "study_made_for"),
    [
        ("INDICATION", "Cough."),
        ("REASON FOR EXAM", "Cough."),
        ("CLINICAL HISTORY", "Cough."),
        ("COMPARISON", None),
    ],
)
def test_the_indication_is_what_says_why_the_study_was_made(heading, study_made_for):
    assert indication_of(sections_of(f"\n {heading}: Cough.\n")) == study_made_for


def test_the_indication_comes_before_the_history():
    assert indication_of(sections_of("\n INDICATION: Cough.\n HISTORY: Asthma.\n")) == "Cough."


PIECES = st.sampled_from(
    [
        "\n",
        "\n ",
        " \n",
        "\r\n",
        "FINDINGS",
        "IMPRESSION",
        "CHEST",
        "NOTE",
        ": ",
        ":",
        "Clear. ",
        "e",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
def test_every_section_stands_in_the_text(text):
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for name, section in sections_of(text).items():
        assert section in text
        assert section or name not in ("findings", "impression")


# The report


BOTH = {"findings": "Clear lungs.", "impression": "Normal."}


def test_the_report_is_one_section_or_both_in_rexranks_form():
    assert report_of(BOTH, "findings") == "Clear lungs."
    assert report_of(BOTH, "impression") == "Normal."
    assert report_of(BOTH, "both") == "Findings: Clear lungs. Impression: Normal."


@pytest.mark.parametrize(
    ("lacking", "choice", "reason"),
    [
        (["findings"], "findings", "no findings"),
        (["impression"], "impression", "no impression"),
        (["findings"], "both", "no findings"),
        (["impression"], "both", "no impression"),
        (["findings", "impression"], "both", "no findings and no impression"),
    ],
)
@pytest.mark.parametrize("empty", [{}, {"findings": "", "impression": ""}])
def test_a_report_that_lacks_a_chosen_section_says_which(lacking, choice, reason, empty):
    rest = {name: text for name, text in BOTH.items() if name not in lacking}
    assert report_of(empty | rest, choice) == NoReport(reason)


@pytest.mark.parametrize("call", [report_of, without_marks])
def test_an_unknown_choice_is_an_error_that_lists_the_known_ones(call):
    with pytest.raises(ConfigError, match=r"'all' is none of .*, "):
        call({} if call is report_of else "", "all")


# One paragraph


@pytest.mark.parametrize(
    ("text", "paragraph"),
    [
        ("Heart is\n enlarged.\n  No effusion.", "Heart is enlarged. No effusion."),
        (
            "1. No effusion\n2. Heart is large\n3. Clear",
            "1. No effusion. 2. Heart is large. 3. Clear",
        ),
        ("- No effusion,\n- Cardiomegaly", "- No effusion, - Cardiomegaly"),
        ("No effusion\n \nCardiomegaly", "No effusion. Cardiomegaly"),
        ("LUNGS:\nClear", "LUNGS: Clear"),
        ("Tip of the\nSwan-Ganz catheter", "Tip of the Swan-Ganz catheter"),
        ("No effusion\nHeart enlarged\nlike before", "No effusion. Heart enlarged like before"),
        ("\n \n", ""),
    ],
)
def test_a_line_break_ends_a_statement_only_where_one_ends(text, paragraph):
    assert joined(text) == paragraph


@pytest.mark.parametrize("column", [72, 78, 90])
def test_a_wrapped_report_is_what_it_was_before(iu_texts, column):
    wrapped = ["\n ".join(textwrap.wrap(t, column, break_on_hyphens=False)) for t in iu_texts]
    assert sum("\n" in text for text in wrapped) > 4000
    changed = [t for t, w in zip(iu_texts, wrapped, strict=True) if joined(w) != t]
    assert len(changed) <= 2  # run-on lists, where a number happens to begin a line


@pytest.mark.parametrize("form", ["1. {}\n2. {}", "- {}\n- {}", "{}\n\n{}", "a) {}\na) {}"])
def test_two_items_of_a_list_are_never_read_as_one(form):
    items = ["No effusion", "Cardiomegaly", "The heart is large", "Without edema", "No"]
    lists = [form.format(a, b) for a in items for b in items]
    assert label_reports([joined(text) for text in lists]) == label_reports(lists)


@given(st.text())
def test_a_paragraph_has_single_spaces_and_stays_as_it_is(text):
    paragraph = joined(text)
    assert paragraph == " ".join(paragraph.split())
    assert joined(paragraph) == paragraph


# De-identification marks


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Compared to ___ , the effusion is larger.", "The effusion is larger."),
        ("As compared with the study of ___.", "As compared with the study."),
        ("Unchanged since ___.", "Unchanged."),
        ("Seen by Dr. ___ and Dr. ___ at ___ p.m. on ___. Clear.", "Seen. Clear."),
        ("___-year-old woman with cough.", "Woman with cough."),
        ("___F with fever.", "F with fever."),
        ("CT (___) showed a nodule.", "CT showed a nodule."),
        ("No XXXX or effusion.", "No effusion."),
        ("No effusion or XXXX.", "No effusion."),
        ("Consistent with XXXX or pneumonia.", "Consistent with pneumonia."),
        ("There are no XXXX of a large effusion.", "There are no large effusion."),
        ("Heart, XXXX, XXXX-XXXX, and lungs are normal.", "Heart, and lungs are normal."),
        ("PICC line is in XXXX. Tip high.", "PICC line. Tip high."),
        ("The XXXX are intact. Clear.", "Clear."),
        ("1. XXXX effusion. 2. XXXX.", "1. Effusion."),
        ("xxxx opacity . xxxx are clear .", "opacity ."),
        ("XXXX", ""),
    ],
)
def test_a_mark_goes_with_what_leads_to_nothing_else(text, left):
    assert without_marks(text, "remove") == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Clear. Seen by Dr. ___ at 9 p.m. on ___. Large heart.", "Clear. Large heart."),
        ("1. XXXX effusion. 2. Clear lungs.", "2. Clear lungs."),
        ("heart is normal . xxxx are clear .", "heart is normal ."),
        ("___", ""),
    ],
)
def test_a_sentence_goes_with_its_mark(text, left):
    assert without_marks(text, "drop-sentence") == left


# fmt: off
WORDS = st.sampled_from(
    ["XXXX", "___", "xxxx", "______,", "XXXX.", "Dr.", "___;", "no", "of", "and", "the", "(___)",
     "with", "compared", "to", "is", "Lungs", "clear.", "1.", "x-XXXX", "a.m.", "XXXX-XXXX",
     "-", ",", "/"]
)
# fmt: on
MARKED = st.lists(WORDS, max_size=25).map(" ".join)


@given(MARKED, st.sampled_from(["remove", "drop-sentence"]))
def test_no_mark_is_left_and_nothing_else_is_then_to_do(text, policy):
    left = without_marks(text, policy)
    assert not any(mark in left for mark in ("XXXX", "xxxx", "___"))
    assert without_marks(left, policy) == left


@given(st.one_of(MARKED, st.text()))
def test_keep_changes_nothing(text):
    assert without_marks(text, "keep") == text


@given(
    st.text(st.characters(exclude_characters="_Xx")), st.sampled_from(["remove", "drop-sentence"])
)
def test_a_text_without_marks_stays_as_it_is(text, policy):
    assert without_marks(text, policy) == text


def test_removed_marks_change_no_label_but_where_they_hide_what_labelers_ask_for(iu_texts):
    marked = [text for text in iu_texts if "XXXX" in text]
    left = [without_marks(text, "remove") for text in marked]
    changed = [
        text
        for text, before, after in zip(
            marked, label_reports(marked), label_reports(left), strict=True
        )
        if before != after
    ]
    assert len(marked) > 2000
    # "compression" between "wedge" and "deformity", and the angle or sulcus
    assert all("wedge XXXX deformit" in t or "costophrenic XXXX" in t for t in changed)
    assert len(changed) <= 12
