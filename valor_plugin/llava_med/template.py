"""The conversation format of LLaVA-Med v1.5 (`mistral_instruct`), as a chat template.

Processors are called with `add_special_tokens=False` on templated text everywhere (by the host, by
TRL and by our evaluation), so the template itself opens with the one BOS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import pairwise
from typing import Any

from reward_sdk.errors import ConfigError, one_line

MISTRAL_INSTRUCT = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {% else %} {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>\n{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} [/INST]{% else %} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
_TRIED = 64  # ours: questions of one number of images whose tokens are counted


def templated(processor: Any, question: str, images: int, answer: str | None = None) -> str:
    """A prompt as the processor's chat template writes it: the images, then the question; and the
    answer behind it, if one is given."""
    content = [*[{"type": "image"}] * images, {"type": "text", "text": question}]
    messages: list[dict] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer is None
    )


def longest_prompt(model: str, asked: Iterable[tuple[str, int]]) -> int:
    """Number of tokens of the longest prompt as the chat template writes it, images included.

    Args:
        model: folder of a Hugging Face LLaVA with its processor.
        asked: question and number of images of every prompt; of those with as many images, the
            questions with the most characters are tried.

    Raises:
        ConfigError: the processor cannot be loaded or has no chat template, or that puts two images
            side by side, which the host would take for one.
    """
    processor, of_an_image = _processor(model)
    questions: dict[int, set[str]] = defaultdict(set)
    for question, images in asked:
        questions[images].add(question)
    longest = 0
    for images, texts in questions.items():
        for text in nlargest(_TRIED, texts, key=len):
            prompt = templated(processor, text, images)
            ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if (processor.image_token_id,) * 2 in pairwise(ids):
                raise ConfigError(
                    f"model.path: the chat template of {model} puts images side by side, which "
                    "OpenRLHF would take for one: let it write a line break behind each"
                )
            longest = max(longest, len(ids) + images * (of_an_image - 1))
    return longest


def longest_conversation(
    model: str, conversations: Sequence[tuple[str, int, str]]
) -> tuple[int, int]:
    """Number of tokens of the longest conversation as the chat template writes it, images included,
    and its index.

    Args:
        model: folder of a Hugging Face LLaVA with its processor.
        conversations: question, number of images and answer of each; of those with as many images,
            the ones with the most characters are tried.

    Raises:
        ConfigError: the processor cannot be loaded or has no chat template.
    """
    processor, of_an_image = _processor(model)
    by_images: dict[int, list[int]] = defaultdict(list)
    for index, (_, images, _) in enumerate(conversations):
        by_images[images].append(index)

    def characters(index: int) -> int:
        question, _, answer = conversations[index]
        return len(question) + len(answer)

    def tokens(index: int) -> int:
        text = templated(processor, *conversations[index])
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(ids) + conversations[index][1] * (of_an_image - 1)

    tried = [i for some in by_images.values() for i in nlargest(_TRIED, some, key=characters)]
    return max((tokens(index), index) for index in tried)


def _processor(model: str) -> tuple[Any, int]:
    """A model's processor, and the number of tokens that it makes of an image."""
    from PIL import Image
    from transformers import AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(model)
    except Exception as error:  # a processor's files can be wrong in any way
        raise ConfigError(f"model.path: processor of {model}: {one_line(error)}") from None
    if not processor.chat_template:
        raise ConfigError(f"model.path: {model} has no chat template, so prompts cannot be written")
    blank = processor(text=processor.image_token, images=Image.new("RGB", (64, 64)))
    return processor, blank["input_ids"][0].count(processor.image_token_id)
