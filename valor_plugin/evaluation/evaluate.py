"""A model against held-out studies: generate, score, keep both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reward_sdk.rewards.image_text import ImageText
from reward_sdk.text import extract_report
from valor_plugin.data.studies import Study
from valor_plugin.evaluation.generate import generate
from valor_plugin.evaluation.metrics import Evaluation, evaluate


def evaluate_model(
    model: Path,
    studies: Sequence[Study],
    prompt: str,
    image_text: ImageText | None,
    *,
    temperature: float,
    max_new_tokens: int,
    max_images: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Evaluation, list[str]]:
    """The metrics of a model and the responses that they come from.

    Args:
        model: folder of a Hugging Face LLaVA with its processor.
        studies: studies that were held out from training; metrics need their reports.
        prompt: name or text of what is asked about every study, as in training.
        image_text: the reward that gives the similarity of image and report; None leaves it out. A
            response without a well-formed report states nothing and has similarity 0.
        temperature: sampling temperature: 0 is greedy; 1 samples from the policy as training does.
        max_new_tokens: length of the longest response, in tokens.
        max_images: how many images of a study are shown at most, as in training.
        seed: random seed of the sampling.
        device: a torch device.
    """
    responses = generate(
        model, studies, prompt, temperature=temperature, max_new_tokens=max_new_tokens,
        max_images=max_images, seed=seed, device=device,
    )  # fmt: skip
    similarities = None
    if image_text is not None:
        images = [study.image_ref for study in studies]
        reports = [extract_report(response) or "" for response in responses]
        similarities = image_text.similarities(images, reports)
    references = [study.report for study in studies]
    return evaluate(responses, references, similarities), responses


def write_responses(path: Path, studies: Sequence[Study], responses: Sequence[str]) -> None:
    """One JSON object per line: id, response, reference."""
    with path.open("w", encoding="utf-8") as file:
        for study, response in zip(studies, responses, strict=True):
            row = {"id": study.id, "response": response, "reference": study.report}
            file.write(json.dumps(row) + "\n")
