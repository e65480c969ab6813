import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reward_sdk.text import (
    NORMALISE,
    Parsed,
    extract_report,
    ngrams,
    parse_response,
    plain_reference,
    r2gen_tokens,
    sentences,
    tokens,
    wrap_report,
    years_of,
)

texts = st.text(st.characters(codec="utf-8"), max_size=60)
tags = re.compile("</?(?:report|think)>")
plain = texts.filter(lambda text: text.strip() and not tags.search(text) and "</r" not in text)


@given(plain)
def test_a_wrapped_report_is_read_back(report):
    assert extract_report(wrap_report(report)) == report.strip()


@given(plain)
def test_white_space_around_the_tags_is_allowed(report):
    assert extract_report(f"\n {wrap_report(report)}\t\n") == report.strip()


@given(plain, texts)
def test_anything_else_outside_of_the_tags_is_not_well_formed(report, extra):
    assume(extra.strip())
    assert extract_report(extra + wrap_report(report)) is None
    assert extract_report(wrap_report(report) + extra) is None


@given(plain, plain)
def test_two_reports_are_not_well_formed(first, second):
    assert extract_report(wrap_report(first) + wrap_report(second)) is None


@given(plain)
def test_a_missing_tag_is_not_well_formed(report):
    assert extract_report(report) is None
    assert extract_report(f"<report>{report}") is None
    assert extract_report(f"{report}</report>") is None


@pytest.mark.parametrize("inside", ["", " ", "\n\t"])
def test_an_empty_report_is_not_well_formed(inside):
    assert extract_report(f"<report>{inside}</report>") is None


@pytest.mark.parametrize("tag", ["REPORT", "Report", " report ", "report "])
def test_tags_are_read_exactly(tag):
    assert extract_report(f"<{tag}>Clear.</{tag}>") is None


@given(texts)
def test_tokens_are_lower_case_letters_and_digits(text):
    assert all(set(token) <= set("abcdefghijklmnopqrstuvwxyz0123456789") for token in tokens(text))


@given(texts)
def test_tokens_of_tokens_are_the_same(text):
    assert tokens(" ".join(tokens(text))) == tokens(text)


@given(texts, texts)
def test_tokens_of_two_lines_are_those_of_each(first, second):
    assert tokens(f"{first}\n{second}") == tokens(first) + tokens(second)


def test_tokens_split_at_punctuation():
    assert tokens("X-ray: 1.5 cm (RLL).") == ["x", "ray", "1", "5", "cm", "rll"]


@pytest.mark.parametrize("name", NORMALISE)
@given(text=texts)
def test_no_token_is_empty_or_holds_white_space(name, text):
    words = NORMALISE[name](text)
    assert " ".join(words).split() == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (". . ,", ""),
        ("Clear lungs", "clear lungs ."),
        ("Clear.\nNo edema.", "clear . no edema ."),
        ("Clear.. No edema..", "clear . no edema ."),
        ("1. Clear. 2. No edema.\n3. Pacer.", "clear . no edema . pacer ."),
        ("T11. Disc", "t11 . disc ."),
        ("X-ray: 1.5 cm (RLL), 'new'/old", "x-ray 15 cm rll newold ."),
    ],
)
def test_r2gen_ends_each_sentence_with_a_stop_token(text, expected):
    assert r2gen_tokens(text) == expected.split()


@given(texts)
def test_r2gen_leaves_no_punctuation_within_a_token(text):
    assert all(
        word == "." or not set(word) & set(".,?;*!%^&_+():[]{}") for word in r2gen_tokens(text)
    )


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4))
def test_there_is_an_ngram_at_each_place_where_one_fits(words, n):
    assert ngrams(words, n).total() == max(0, len(words) - n + 1)


@given(texts)
def test_sentences_lose_nothing_but_white_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@given(texts)
def test_sentences_are_stripped_and_not_empty(text):
    assert all(sentence and sentence == sentence.strip() for sentence in sentences(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Clear", ["Clear"]),
        ("Clear. No edema.", ["Clear.", "No edema."]),
        ("Nodule of 1.5 cm. Stable.", ["Nodule of 1.5 cm.", "Stable."]),
        ("Findings\n\nclear", ["Findings", "clear"]),
        ("Clear?  2 nodules!", ["Clear?", "2 nodules!"]),
    ],
)
def test_sentences_end_at_a_stop_before_a_capital_or_at_an_empty_line(text, expected):
    assert sentences(text) == expected


def test_endless_white_space_is_read_in_no_time():
    start = time.monotonic()
    assert extract_report(" " * 100_000) is None
    assert extract_report(" \n" * 50_000 + "<report>Clear.</report>" + " " * 100_000) == "Clear."
    assert extract_report("</think>" + " " * 100_000) is None
    assert time.monotonic() - start < 2


PIECES = st.sampled_from(["<think>", "</think>", "<report>", "</report>", " ", "\n", "a", "Clear."])
PATTERN = re.compile(
    r"(?:(?:<think>)?(?P<think>.*?)</think>\s*)?<report>(?P<report>.*)</report>", re.DOTALL
)


@given(st.lists(PIECES, max_size=9).map("".join))
def test_a_response_is_read_as_the_pattern_of_a_well_formed_one_says(response):
    match = PATTERN.fullmatch(response.strip())
    parts = match and [part if part is None else part.strip() for part in match.group(1, 2)]
    tag = re.compile("</?(?:report|think)>")
    well_formed = parts and parts[1] and parts[0] != ""
    well_formed = well_formed and not any(tag.search(part or "") for part in parts)
    expected = Parsed(parts[1], parts[0]) if well_formed else None
    assert parse_response(response) == expected


@pytest.mark.parametrize(
    "piece",
    ["</think><report>", "<think>", "<report>", "</report>", " ", "<report> </report>", "</think> ",
     ". ", "\n", "1. ", "A. A", "<"],
)  # fmt: skip
def test_no_repeated_text_takes_more_than_linear_time(piece):
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        began = time.perf_counter()
        parse_response(text)
        sentences(text)
        tokens(text)
        r2gen_tokens(text)
        return time.perf_counter() - began

    seconds(1000)
    assert min(seconds(400_000) for _ in range(3)) < 1.0


@pytest.mark.parametrize(
    ("age", "years"),
    [(82, 82.0), ("082Y", 82.0), ("006M", 0.5), ("90+", 90.0), ("> 89", 89.0), ("6 mo", 0.5),
     ("64-year-old man", 64.0), ("64 M", 64.0), ("nan", None), (" ", None), (float("nan"), None)],
)  # fmt: skip
def test_an_age_is_read_as_people_and_dicom_write_it(age, years):
    assert years_of(age) == years


@pytest.mark.parametrize("age", [-1, 151, 10**400, True, "old", "64M", "64 cats", [3, 4]])
def test_what_is_no_age_says_so(age):
    with pytest.raises(ValueError, match="write years"):
        years_of(age)


@pytest.mark.parametrize("text", ["<report> </report>", "<think> x </think> <report></report>"])
def test_a_reference_of_tags_alone_is_none(text):
    assert plain_reference(text) is None


@pytest.mark.parametrize(
    "text", ["<report> Edema. </report></think>", "<report> Edema.", "A. <think>"]
)
def test_a_reference_whose_tags_are_broken_is_an_error(text):
    with pytest.raises(ValueError, match="its tags are not one <report> pair"):
        plain_reference(text)
