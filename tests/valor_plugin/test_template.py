"""The chat template as the host, TRL and the evaluation use it."""

import pytest

transformers = pytest.importorskip("transformers")

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]}]
ANSWER = [{"role": "assistant", "content": "<report> Clear. </report>"}]


@pytest.fixture(scope="module")
def processor(tiny_model):
    return transformers.AutoProcessor.from_pretrained(tiny_model)


def text(processor, messages, **options) -> str:
    return processor.apply_chat_template(messages, tokenize=False, **options)


def test_a_question_reads_as_in_llava_med(processor):
    expected = "<s>[INST] <image>\nDescribe. [/INST]"
    assert text(processor, QUESTION, add_generation_prompt=True) == expected


def test_a_whole_conversation_begins_with_what_generation_is_given(processor):
    prompt = text(processor, QUESTION, add_generation_prompt=True)
    whole = text(processor, QUESTION + ANSWER)
    assert whole == f"{prompt} <report> Clear. </report> </s>"


def test_tokens_of_the_prompt_are_the_first_tokens_of_the_conversation(processor):
    tokenizer = processor.tokenizer
    prompt, whole = (
        tokenizer(text(processor, messages), add_special_tokens=False)["input_ids"]
        for messages in (QUESTION, QUESTION + ANSWER)
    )
    assert whole[: len(prompt)] == prompt


def test_there_is_one_bos(processor):
    ids = processor.tokenizer(text(processor, QUESTION), add_special_tokens=False)["input_ids"]
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_the_tokenizers_own_template_is_the_same(processor):
    # the host asks the tokenizer, TRL and the evaluation ask the processor
    assert processor.tokenizer.apply_chat_template(QUESTION, tokenize=False) == text(
        processor, QUESTION
    )
