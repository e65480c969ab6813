"""The whole method on synthetic chest films, called phantoms: data, expert, model, pretraining,
SFT, stage 1, stage 2, evaluation, audit.

Every step leaves its result in `runs/demo` and is skipped where that is there already.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click
import numpy as np

from reward_sdk.errors import ConfigError
from reward_sdk.text import wrap_report
from valor_plugin import __version__, chain
from valor_plugin.data.prompts import PLAIN_REPORT
from valor_plugin.data.studies import Study, read_studies, write_studies
from valor_plugin.demo.phantoms import read_phantoms
from valor_plugin.recipe import Recipe, load_recipe
from valor_plugin.records import SupervisedStep, read_steps
from valor_plugin.run import calibration
from valor_plugin.run.folder import RunFolder
from valor_plugin.train import choose_device

STAGES = {"sft": "SFT", "stage1": "Stage 1", "stage2": "Stage 2"}
"""The stages that are evaluated: folder and recipe -> title."""
RUNS = ("pretraining", *STAGES)
"""Everything that is run from a recipe, in order: folder and recipe."""
NOTICE = (
    "The X-rays on this page are synthetic chest films, called phantoms: shapes in grey with "
    "findings drawn at known places, no patients. The sentences of the reference reports come from "
    "the IU X-ray collection. Model and expert are tiny and were trained here, and in supervised "
    "fine-tuning two reports in five belonged to another phantom; the numbers say that the method "
    "runs and learns, and nothing about radiology."
)
CARD = """\
---
license: cc-by-nc-nd-4.0
language: en
library_name: transformers
pipeline_tag: image-text-to-text
tags: [chest-x-ray, radiology, report-generation, synthetic-data, llava, valor-rrg]
---

# {title} of the demo of valor-rrg {version}

A LLaVA of 2.7 million parameters that `openrlhf demo` trained on synthetic phantoms. It shows that
a method runs and learns, and is of no other use.

**Not for care.** It has never seen an X-ray of a patient, and what it writes about one means
nothing.

## Training

- Images: phantoms, shapes in grey with findings drawn at known places; no patients.
- Reports: sentences of the IU X-ray collection, put together to say what was drawn. In supervised
  fine-tuning two reports in five belonged to another phantom. The collection is under CC BY-NC-ND,
  so this model is to be tried, not to be passed on; the software is under Apache-2.0.
- Stages: pretraining, SFT, stage 1 (rewards for the text), stage 2 (a reward for agreement with the
  image, by a small expert that was trained on phantoms too). This is the model after: {title}.
- Prompt: {prompt}
- Method: VALOR, https://arxiv.org/abs/2512.16201; nothing here reproduces the paper's numbers.

## Limits

Six findings, one view, images of 96 x 96 pixels, a vocabulary of 512 tokens. Its numbers on
held-out phantoms are in `evaluation.json` beside this folder, and say nothing about radiology.
"""
STUDIES = {"train": (6000, 1), "stage1-studies": (400, 11), "stage2-studies": (1280, 12),
            "test": (512, 2)}  # fmt: skip
"""Folder -> (how many phantoms, seed); seeds differ, so no phantom is in two folders."""
CALIBRATION = "calibration.json"
_MAX_NEW_TOKENS = 48
_MISPAIRED = 0.4  # ours
_AUDITED = 200  # ours


def run(recipes: Path, root: Path, device: str, seed: int = 0) -> Path:
    """Runs what is missing and returns the path of the page.

    Args:
        recipes: folder with the recipes of `RUNS`; where their paths say `runs/demo`, they mean
            `root`.
        root: folder in which everything is kept.
        device: "cpu", "cuda", or "auto" for CUDA where torch sees a device.
        seed: random seed of the model, the order of the data and the sampling.

    Raises:
        ConfigError: a recipe is wrong, `root` holds files that are none of the demo's or runs of
            other recipes, or the installed vLLM is a build for other devices.
    """
    device = choose_device(device)
    stages = chain.link(
        [recipe(recipes / f"{name}.yaml", root, seed) for name in RUNS],
        [root / name for name in RUNS],
    )
    chain.check(stages, device)
    for module in ("curves", "page"):  # what the last step needs is missed now, not after minutes
        import_module(f"valor_plugin.evaluation.{module}")
    _check_root(root)
    root.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for folder, (count, data_seed) in STUDIES.items():
        with step(root / folder, f"{count} phantoms with reports ({folder})") as target:
            if target:
                _phantoms(target, count, data_seed)
    with step(root / "train/mispaired.jsonl", "the same with some reports mispaired") as target:
        if target:
            write_studies(mispaired(_studies(root / "train"), _MISPAIRED, seed=1), target)
    with step(root / "expert.pt", "an X-ray expert (small DenseNet, 6 findings)") as target:
        if target:
            from valor_plugin.demo.pretrain import train_expert

            train_expert(read_phantoms(root / "train"), target, device)
    with step(root / "base", "a small LLaVA with a vision tower that has seen phantoms") as target:
        if target:
            _base(root / "train", target, device, seed)
    chain.train(stages, device)
    for stage, title in STAGES.items():
        target = root / stage / "evaluation.json"
        with step(
            target, f"{title}: evaluation on {STUDIES['test'][0]} held-out phantoms"
        ) as target:
            if target:
                write_card(root / stage / "model", title)
                evaluate(root, stage, device)
    with step(root / "audit", f"audit of the rewards of {STAGES['stage2']}") as target:
        if target:
            audit_stage2(root, target)
    page = _page(root)
    click.echo(f"whole demo: {(time.monotonic() - began) / 60:.1f} min")
    return page


def write_card(model: Path, title: str) -> None:
    """Writes README.md, the model card, into the folder of a model that the demo has trained."""
    card = CARD.format(title=title, version=__version__, prompt=PLAIN_REPORT)
    (model / "README.md").write_text(card, encoding="utf-8")


def _check_root(root: Path) -> None:
    """That the folder is the demo's, by the result that it makes first, or has nothing in it."""
    first = next(iter(STUDIES))
    if not root.exists() or (root / first / "phantoms.jsonl").is_file():
        return
    if other := next((path for path in root.iterdir() if path.name != f"{first}.part"), None):
        raise ConfigError(
            f"{root} is no folder of the demo and not empty, it holds {other.name}: choose a new "
            "folder with --out"
        )


def recipe(file: Path, root: Path, seed: int, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe of the demo, with `runs/demo` in its paths replaced by `root`."""
    loaded = load_recipe(file)
    paths = {"model.path": loaded.model.path, "data.train": loaded.data.train}
    if expert := (loaded.rewards or {}).get("image_text", {}).get("expert"):
        paths["rewards.image_text.expert"] = expert
    moved = [f"{key}={value.replace('runs/demo', str(root))}" for key, value in paths.items()]
    return load_recipe(file, (*moved, f"seed={seed + 1}", *overrides))


@contextmanager
def step(path: Path, title: str) -> Iterator[Path | None]:
    """Announces a step and yields where to put its result, or None if it is there. The result gets
    its name at the end, so nothing half-made looks complete, however the step ends."""
    if path.exists():
        click.echo(f"[done before] {title}")
        yield None
        return
    click.secho(f"[ now ] {title}", bold=True)
    began = time.monotonic()
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    if part.exists():  # an evaluation names its own files
        part.rename(path)
    click.echo(f"[{time.monotonic() - began:4.0f} s] {title}")


def _studies(folder: Path) -> list[Study]:
    return read_studies(folder / "phantoms.jsonl")


def _phantoms(folder: Path, count: int, seed: int) -> None:
    from valor_plugin.demo.phantom_reports import SentenceBank, iu_xray_sentences
    from valor_plugin.demo.phantoms import write_phantoms

    write_phantoms(folder, count, seed, SentenceBank(iu_xray_sentences()).report)


def mispaired(studies: Sequence[Study], share: float, seed: int) -> list[Study]:
    """The studies, a share of them with the report of another one, as in pairs that are mined from
    the literature. A model that learns from them writes as fluently, and trusts the image less."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(studies), round(share * len(studies)), replace=False)
    result = list(studies)
    for i, other in zip(chosen, np.roll(chosen, 1), strict=True):
        result[i] = replace(studies[i], report=studies[other].report)
    return result


def _base(data: Path, folder: Path, device: str, seed: int) -> None:
    from valor_plugin.demo import model, pretrain
    from valor_plugin.llava_med import checkpoint

    phantoms = read_phantoms(data)
    texts = [wrap_report(phantom.study.report or "") for phantom in phantoms]
    shape = model.Shape()
    processor = model.make_processor([*texts, *[PLAIN_REPORT] * 200], shape)
    network = model.make_model(processor, shape, seed)
    pretrain.train_tower(network, processor, phantoms, device, seed=seed)
    checkpoint.save(network.bfloat16(), processor, folder)


def evaluate(root: Path, stage: str, device: str) -> None:
    """Samples a report for every held-out phantom; writes responses.jsonl and evaluation.json."""
    from reward_sdk.rewards.image_text import image_text
    from valor_plugin.evaluation.evaluate import evaluate_model, write_responses

    studies = _studies(root / "test")
    judge = image_text(str(root / "expert.pt"), str(_calibration(root)))
    evaluation, responses = evaluate_model(
        root / stage / "model", studies, PLAIN_REPORT, judge,
        temperature=1.0, max_new_tokens=_MAX_NEW_TOKENS, device=device,
    )  # fmt: skip
    write_responses(root / stage / "responses.jsonl", studies, responses)
    (root / stage / "evaluation.json").write_text(evaluation.to_json(), encoding="utf-8")


def _calibration(root: Path) -> Path:
    """The expert's, over the SFT phantoms, the same ruler for every stage."""
    path = root / CALIBRATION
    if not path.exists():
        calibration.write(path, str(root / "expert.pt"), "cpu", _studies(root / "train"))
    return path


def audit_stage2(root: Path, folder: Path) -> None:
    """Writes a page on what the rewards of stage 2 notice, over some held-out phantoms."""
    from reward_sdk.audit.audit import audit, read_samples
    from reward_sdk.audit.page import write_page
    from reward_sdk.reward_set import RewardSet

    rewards = RewardSet.from_config(RunFolder(root / "stage2").recipe)
    samples, problems = read_samples(root / "test" / "phantoms.jsonl", _AUDITED)
    folder.mkdir()
    write_page(folder / "audit.html", audit(rewards, samples), "held-out phantoms", problems)


def _page(root: Path) -> Path:
    from valor_plugin.evaluation.curves import curve_svg, loss_curves, reward_curves
    from valor_plugin.evaluation.metrics import Evaluation
    from valor_plugin.evaluation.page import Example, StageRow, table_text, write_page

    rows = [
        StageRow(title, "sampled", Evaluation.from_json((root / stage / "evaluation.json")
                 .read_text(encoding="utf-8")))
        for stage, title in STAGES.items()
    ]  # fmt: skip
    losses = loss_curves(read_steps(RunFolder(root / "sft").steps, SupervisedStep))
    title = f"{STAGES['sft']}: loss of the reports"
    curves = [(title, curve_svg(losses, title))]
    for stage in ("stage1", "stage2"):
        series = reward_curves(read_steps(RunFolder(root / stage).steps))
        title = f"{STAGES[stage]}: rewards of the rollouts"
        curves.append((title, curve_svg(series, title)))
    page = root / "index.html"
    files = {"responses.jsonl": "every report of the held-out phantoms", "recipe.yaml": "recipe"}
    links = [("What the rewards of Stage 2 notice", "audit/audit.html")] + [
        (f"{title}: {text}", f"{stage}/{file}")
        for stage, title in STAGES.items()
        for file, text in files.items()
    ]
    examples = _examples(root, Example)
    write_page(page, "VALOR on phantoms", NOTICE, rows, curves, examples, links)
    click.echo("\n" + table_text(rows) + "\n")
    recipe = os.path.relpath(RunFolder(root / "stage2").recipe)
    click.echo(f"to score a report of your own: reward-sdk serve --set {shlex.quote(recipe)}")
    return page


def _examples(root: Path, example: type, count: int = 6) -> list:
    from reward_sdk.images import open_image

    responses = {}
    for stage, title in STAGES.items():
        with (root / stage / "responses.jsonl").open(encoding="utf-8") as lines:
            responses[title] = [json.loads(line)["response"] for line in lines]
    return [
        example(
            image=open_image(phantom.study.image_ref),
            reference=phantom.study.report,
            responses={title: texts[i] for title, texts in responses.items()},
            boxes={_spoken(finding): box for finding, box in phantom.boxes.items()},
        )
        for i, phantom in enumerate(read_phantoms(root / "test")[:count])
    ]


def _spoken(finding: str) -> str:
    """ "left effusion" for "effusion_left"."""
    name, _, side = finding.partition("_")
    return f"{side} {name}".lstrip()
