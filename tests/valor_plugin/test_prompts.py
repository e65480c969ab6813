"""What the model is asked, and that it is the same wherever it is asked."""

import json
import runpy
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from reward_sdk.errors import ConfigError
from reward_sdk.types import ImageRef
from valor_plugin.data.prompts import INDICATION_LENGTH, PLAIN_REPORT, PROMPTS, answer, question
from valor_plugin.data.studies import Study
from valor_plugin.recipe import Data

pytest.importorskip("transformers")
from valor_plugin.evaluation.generate import generate
from valor_plugin.llava_med.template import longest_prompt, templated


def asked(indication: str | None, prompt: str = "indication") -> str:
    return question(prompt, Study("s1", Path("film.png"), indication=indication))


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_chosen_by_its_name_and_asks_for_the_tags_of_a_report(name):
    text = asked("Cough.", name)
    assert text.endswith(PROMPTS[name])
    assert "<report> and </report>" in text


def test_a_text_of_ones_own_is_asked_as_it_is_but_for_space_around_it():
    assert asked("Cough.", "What is {indication} here?\n") == "What is {indication} here?"


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("reprot", "'reprot' is no prompt's name: did you mean 'report'"),
        ("", "no prompt's name: known: findings_and_impression"),
        ("<image> Describe it.", "leave it out"),
    ],
)
def test_a_word_that_names_no_prompt_and_a_mark_for_an_image_are_refused(prompt, why):
    with pytest.raises(ConfigError, match=why):
        asked(None, prompt)


def answered(report: str) -> str:
    return answer(Study("s1", Path("film.png"), report))


def test_a_report_that_is_learnt_holds_no_token_of_the_model(tiny_model):
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(tiny_model).tokenizer
    said = answered("Clear.<image></s> <unk>[INST] </report>No [/INST] effusion.")
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert not {image, tokenizer.eos_token_id, tokenizer.bos_token_id} & {*ids}
    assert said.count("</report>") == 1
    assert "[INST]" not in said
    assert "[/INST]" not in said


def test_a_report_is_learnt_as_it_is_where_its_brackets_are_none_of_a_tokens():
    text = "A nodule <5 mm [see above], SpO2 < 90 %.\nXXXX >2 cm."
    assert answered(text) == f"<report> {text} </report>"


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_a_study_without_an_indication_gets_the_plain_text(nothing):
    assert asked(nothing) == PLAIN_REPORT


def test_an_indication_is_asked_on_one_line_before_the_question():
    text = asked("Cough,\r\n fever.\u2028SpO2 < 90%.")
    assert text == f"Indication: Cough, fever. SpO2 < 90%.\n{PLAIN_REPORT}"


def test_a_long_indication_is_cut():
    line = asked("cough " * 500).splitlines()[0]
    assert len(line) <= len("Indication: ") + INDICATION_LENGTH
    assert line.endswith("cough coug")


def test_an_indication_holds_no_token_of_the_model(tiny_model):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    tokenizer = processor.tokenizer
    names = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    assert {"<image>", "</s>", "[INST]", "</report>"} <= set(names)
    plain = templated(processor, asked("a b"), 1)
    marks = f"{' '.join(names)}{''.join(names)}"
    wide = marks.replace("<", "\uff1c").replace(">", "\uff1e")  # which NFKC makes the same
    hostile = templated(processor, asked(f"a {wide} {marks} b"), 1)
    special = set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id}
    count = [
        [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in special]
        for text in (plain, hostile)
    ]
    assert count[0] == count[1]
    assert count[0].count(processor.image_token_id) == 1


STUDIES = (
    Study("s1", Path("a.png"), "Clear.", indication="Cough <image>.\nFever.",
          others=(ImageRef("b.png", view="LATERAL"),)),
    Study("s2", Path("a.png"), "Clear."),
)  # fmt: skip


@pytest.mark.parametrize("prompt", [*PROMPTS, " Describe it,\nplease. "])
def test_fine_tuning_rollout_and_evaluation_ask_the_same_text(
    tmp_path, tiny_model, monkeypatch, prompt
):
    pytest.importorskip("trl")
    pytest.importorskip("openrlhf")
    from transformers import AutoProcessor, LlavaProcessor
    from trl.data_utils import apply_chat_template, prepare_multimodal_messages

    from valor_plugin.host.rows import write_rows
    from valor_plugin.run import sft

    for name in ("a.png", "b.png"):
        Image.new("L", (40, 40)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    data = Data(train="", images="all", prompt=prompt)
    processor = AutoProcessor.from_pretrained(tiny_model)

    write_rows(STUDIES, data, Path("rows.jsonl"))
    host = Path(find_spec("openrlhf").origin).parent / "datasets/prompts_dataset.py"
    template = processor.apply_chat_template
    preprocess = runpy.run_path(str(host))["preprocess_data"]
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    rollout = [preprocess(row, None, "prompt", "label", template)[0] for row in rows]

    tuned = []
    for row in (sft.row(study, data) for study in STUDIES):
        messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        row = {"prompt": messages, "completion": row["completion"]}
        tuned.append(apply_chat_template(row, processor)["prompt"])

    evaluated: list[str] = []
    original = LlavaProcessor.__call__

    def noting(self, *args, **kwargs):
        evaluated.extend(kwargs["text"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlavaProcessor, "__call__", noting)
    generate(tiny_model, STUDIES, prompt, temperature=0, max_new_tokens=1, max_images=2)
    assert evaluated == rollout == tuned
    assert [text.count("<image>") for text in evaluated] == [2, 1]


def test_reports_of_a_batch_are_those_of_each_study_alone(tmp_path, tiny_model):
    studies = []
    for i in range(3):
        paths = [tmp_path / f"{i}{j}.png" for j in range(i + 1)]
        for path in paths:
            Image.effect_noise((40, 40), 40 + 60 * i).save(path)
        others = tuple(ImageRef(str(path)) for path in paths[1:])
        studies.append(Study(f"s{i}", paths[0], others=others, indication="Cough." * (i % 2)))

    def reports(most: int, batch: int) -> list[str]:
        return generate(tiny_model, studies, "indication", temperature=0, max_new_tokens=8,
                        max_images=most, batch_size=batch)  # fmt: skip

    assert reports(3, batch=3) == reports(3, batch=1) != reports(1, batch=3)


def test_the_longest_prompt_is_as_long_as_the_processor_makes_it(tiny_model):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    film = Image.new("RGB", (40, 60))
    prompts = [("Lungs are clear.", 2), ("No pleural effusion.", 1), ("A.", 2), ("Lungs " * 40, 1)]
    lengths = [
        processor(text=templated(processor, text, count), images=[film] * count,
                  add_special_tokens=False, return_tensors="pt")["input_ids"].shape[1]
        for text, count in prompts
    ]  # fmt: skip
    assert longest_prompt(str(tiny_model), prompts[:3]) == lengths[0] == max(lengths[:3])
    assert longest_prompt(str(tiny_model), prompts) == lengths[3] == max(lengths)


def test_a_template_that_puts_images_side_by_side_is_refused_where_there_are_several(
    tmp_path, tiny_model
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<image>\n", "<image>"))
    longest_prompt(str(folder), [("Describe it.", 1)])
    with pytest.raises(ConfigError, match="puts images side by side"):
        longest_prompt(str(folder), [("Describe it.", 2)])
    template.unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        longest_prompt(str(folder), [("Describe it.", 1)])
