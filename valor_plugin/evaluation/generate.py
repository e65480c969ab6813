"""Reports of a model for a list of studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reward_sdk.models.folders import check_folder
from valor_plugin.data.prompts import question
from valor_plugin.data.studies import Study
from valor_plugin.llava_med.processor import open_rgb
from valor_plugin.llava_med.template import templated


def generate(
    model: str | Path,
    studies: Sequence[Study],
    prompt: str,
    *,
    temperature: float,
    max_new_tokens: int,
    max_images: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
) -> list[str]:
    """One response per study, with its tags, without special tokens.

    Args:
        model: folder of a Hugging Face LLaVA with its processor.
        studies: studies whose images are described.
        prompt: name or text of what is asked about every study, as in training; see
            `valor_plugin.data.prompts`.
        temperature: sampling temperature: 0 decodes greedily; any other samples from the whole
            distribution, as the rollouts of training do at temperature 1.
        max_new_tokens: length of the longest response, in tokens.
        max_images: how many images of a study are shown at most, as in training.
        seed: random seed of the sampling; equal seeds give equal responses on one machine.
        batch_size: number of studies whose responses are generated at a time.
        device: a torch device.

    Raises:
        ConfigError: `check_folder` refuses the model's folder, or the prompt has no such name.
        ScoringError: an image cannot be read.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    check_folder(Path(model))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    processor = AutoProcessor.from_pretrained(model)
    processor.tokenizer.padding_side = "left"
    network: Any = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype)
    network = network.to(device).eval()
    options = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0
    }  # fmt: skip
    torch.manual_seed(seed)
    responses: list[str] = []
    batches = range(0, len(studies), batch_size)
    for start in tqdm(batches, desc=f"reports of {Path(model).parent.name}", disable=None):
        batch = studies[start : start + batch_size]
        paths = [study.shown(max_images) for study in batch]
        texts = [
            templated(processor, question(prompt, study), len(shown))
            for study, shown in zip(batch, paths, strict=True)
        ]
        inputs = processor(
            images=[[open_rgb(path) for path in shown] for shown in paths], text=texts,
            padding=True, add_special_tokens=False, return_tensors="pt",
        ).to(device, dtype)  # fmt: skip
        with torch.inference_mode():
            output = network.generate(
                **inputs,
                **options,
                max_new_tokens=max_new_tokens,
                suppress_tokens=[network.config.image_token_id],
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        responses += processor.batch_decode(new, skip_special_tokens=True)
    return responses
