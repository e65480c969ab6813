import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from reward_sdk.text import wrap_report
from valor_plugin.evaluation.curves import curve_svg
from valor_plugin.evaluation.metrics import Evaluation, StudyResult, evaluate
from valor_plugin.evaluation.page import Example, StageRow, table_text, write_page

REFERENCE = "The heart is enlarged. There is a left pleural effusion."
RESPONSES = {
    "SFT": wrap_report("The heart is enlarged. There is pulmonary edema."),
    "Stage 1": "<report> unclosed & <b>",
}
VOID = {"meta", "image", "rect", "br", "img"}


class Reader(HTMLParser):
    """Collects what the tests ask for, and that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def rows(**similarity: float | None) -> list[StageRow]:
    return [
        StageRow(stage, "greedy", Evaluation((StudyResult(True, similarity=value),)))
        for stage, value in similarity.items()
    ]


@pytest.fixture
def page(tmp_path):
    image = Image.linear_gradient("L").resize((32, 24))
    example = Example(image, REFERENCE, RESPONSES, {"Cardiomegaly": (4, 6, 20, 16)})
    evaluations = {stage: evaluate([text], [REFERENCE]) for stage, text in RESPONSES.items()}
    path = tmp_path / "report" / "page.html"
    write_page(
        path,
        "Title <script>",
        "Images are synthetic phantoms.",
        [StageRow(stage, "greedy", evaluation) for stage, evaluation in evaluations.items()],
        [("A caption", curve_svg({"reward": [(1, 0.5), (2, 0.6)]}, "Stage 1"))],
        [example],
        [("Every report & more", "sft/responses.jsonl")],
    )
    return path.read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_every_element_is_closed_in_order(page):
    assert read(page).open == []


def test_the_page_works_offline_and_without_scripts(page):
    reader = read(page)
    assert {"script", "link", "iframe"}.isdisjoint(reader.tags)
    inside = ("#", "data:image/png;base64,", "sft/responses.jsonl")
    assert all(link.startswith(inside) for link in reader.links)
    assert not re.search(r"@import|url\((?!#)", page)


def test_what_a_policy_or_a_user_wrote_is_escaped(page):
    assert "Title &lt;script&gt;" in page
    assert "&lt;report&gt; unclosed &amp; &lt;b&gt;" in page


def test_the_image_on_the_page_is_the_image_given(page):
    (data,) = re.findall(r'"data:image/png;base64,([^"]+)"', page)
    shown = Image.open(BytesIO(b64decode(data)))
    assert shown.tobytes() == Image.linear_gradient("L").resize((32, 24)).tobytes()


def test_a_box_is_drawn_where_it_was_given(page):
    assert '<rect x="4" y="6" width="16" height="10"/>' in page
    assert 'viewBox="0 0 32 24"' in page


def test_findings_are_named_with_their_outcome_in_words_and_signs(page):
    words = read(page).words
    assert "Cardiomegaly: ✓ correct" in words
    assert "Pleural Effusion: ○ missed" in words
    assert "Edema: ✗ unsupported" in words


def test_sentences_are_marked_by_whether_the_reference_supports_them(page):
    assert '<span class="states-correct">The heart is enlarged.</span>' in page
    assert '<span class="states-unsupported">There is pulmonary edema.</span>' in page


def test_a_finding_on_the_wrong_side_is_marked_as_such_and_not_as_correct(tmp_path):
    responses = {"SFT": wrap_report("The heart is enlarged. There is a right pleural effusion.")}
    example = Example(Image.new("L", (8, 8)), REFERENCE, responses)
    write_page(tmp_path / "page.html", "Title", "", rows(SFT=0.5), [], [example])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = read(html).words
    assert "Pleural Effusion: ⇄ wrong side" in words
    assert "Pleural Effusion: ✓ correct" not in words
    assert "Cardiomegaly: ✓ correct" in words
    assert '<span class="states-unsupported">There is a right pleural effusion.</span>' in html


@pytest.mark.parametrize("x0", [0, 20, 60, 95])
def test_the_name_of_a_box_starts_and_ends_within_the_image(tmp_path, x0):
    name = "left consolidation"
    example = Example(Image.new("L", (96, 96)), REFERENCE, {}, {name: (x0, 1, 96, 96)})
    write_page(tmp_path / "page.html", "Title", "", rows(SFT=0.5), [], [example])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    ((start, size),) = re.findall(r'<text x="([\d.]+)".* font-size="([\d.]+)"', html)
    assert 0 <= float(start) <= x0
    assert float(start) + 0.6 * float(size) * len(name) <= 96


def test_what_else_there_is_can_be_reached(page):
    assert '<a href="sft/responses.jsonl">Every report &amp; more</a>' in page


def test_every_number_has_its_interval(tmp_path):
    studies = [StudyResult(True, similarity=value) for value in (0.0, 1.0) * 50]
    row = StageRow("SFT", "greedy", Evaluation(tuple(studies)))
    write_page(tmp_path / "page.html", "Title", "", [row], [], [])
    shown = re.findall(r"<small>(.*?)</small>", (tmp_path / "page.html").read_text())
    assert shown[0] == "1.000 to 1.000"
    low, high = map(float, shown[1].split(" to "))
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.03)


def test_a_malformed_response_is_shown_as_such(page):
    assert "✗ not well-formed" in read(page).words


def test_notice_and_captions_are_on_the_page(page):
    words = read(page).words
    assert "Images are synthetic phantoms." in words
    assert "A caption" in words


def test_a_page_without_curves_and_examples_has_no_empty_sections(tmp_path):
    write_page(tmp_path / "page.html", "Title", "", rows(SFT=0.5), [], [])
    reader = read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert reader.tags.count("h2") == 1


def test_a_correct_normal_report_says_so(tmp_path):
    normal = "Heart size is normal. The lungs are clear."
    example = Example(Image.new("L", (8, 8)), normal, {"SFT": wrap_report(normal)})
    write_page(tmp_path / "page.html", "Title", "", rows(SFT=0.5), [], [example])
    assert "✓ no finding" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_best_of_a_column_is_bold_and_starred(tmp_path):
    stages = rows(SFT=0.25, Stage=0.5)
    write_page(tmp_path / "page.html", "Title", "", stages, [], [])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"<strong>(.*?)</strong>", html) == ["0.500"]
    assert re.findall(r"(\S+)\*", table_text(stages)) == ["0.500"]


def test_the_table_is_aligned_and_shows_a_missing_value_as_a_dash():
    lines = table_text(rows(SFT=None, Longer_name=-0.5)).splitlines()
    assert lines[0].split()[:3] == ["Stage", "n", "Decoding"]
    assert lines[1].split()[-1] == "-"
    assert lines[2].split()[-1] == "-0.500"
    assert {line.index("greedy") for line in lines[1:]} == {lines[0].index("Decoding")}


def test_values_that_print_alike_are_not_told_apart():
    assert "*" not in table_text(rows(SFT=0.50001, Stage=0.50002))
