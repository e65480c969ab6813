"""Whether this machine, a model folder and a recipe are ready for a run, and why not: `openrlhf
doctor` and `openrlhf train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from reward_sdk.config import parse_set
from reward_sdk.errors import ConfigError, one_line
from reward_sdk.registry import name_of
from valor_plugin.data.studies import Study, problems_of
from valor_plugin.host import machine
from valor_plugin.host.command import host_command
from valor_plugin.host.machine import Check
from valor_plugin.host.seams import SEAMS, SeamError, provide_flash_attn
from valor_plugin.host.versions import INSTALL, TESTED, check_build, check_host, installed
from valor_plugin.llava_med.check import check_model
from valor_plugin.recipe import Recipe
from valor_plugin.run import calibration, rewards, sft
from valor_plugin.run.folder import RunFolder
from valor_plugin.run.grpo import memory_of
from valor_plugin.run.studies import longest_prompt, shown

PURPOSES = {
    "openrlhf": "stage grpo", "ray": "stage grpo", "deepspeed": "stage grpo", "vllm": "stage grpo",
    "torch": "every stage", "transformers": "every stage", "safetensors": "every stage",
    "datasets": "every stage", "trl": "stage sft", "peft": "LoRA",
    "torchxrayvision": "the reward image_text", "pydicom": "a DICOM film",
    "jinja2": "the demo's page", "matplotlib": "the demo's page",
}  # fmt: skip
"""Package -> what needs it."""
ENTRY_POINTS = {"vllm.general_plugins": "valor", "torch.backends": "valor_torchvision_schemas"}


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if installed(package) is None]


def packages() -> Iterator[Check]:
    """The packages of a run; where one is missing, what needs it."""
    for package, user in PURPOSES.items():
        found, tested = installed(package), TESTED.get(package)
        if found is None:
            yield Check(package, False, f"not installed: {user} needs it")
        elif package == "openrlhf":
            problem = check_host()
            yield Check(package, problem is None, problem or found.version)
        elif tested in (None, found.version.partition("+")[0]):
            yield Check(package, True, found.version)
        else:
            yield Check(package, None, f"{found.version}, tested with {tested}")
    flash = installed("flash-attn")
    detail = f"{flash.version}, which attention will use" if flash else "none: attention is torch's"
    yield Check("flash-attn", True, detail)


def gpus() -> Iterator[Check]:
    """The GPUs of this machine and, where torch is a CUDA build, whether they can be used."""
    if missing(["torch"]):
        yield Check("GPU", False, "not looked at without torch")
        return
    yield from machine.gpus()
    device = "cuda" if machine.count_gpus() else "cpu"
    problem = check_build(device)
    yield Check("vLLM", problem is None, problem or f"a build for this machine's {device.upper()}")
    import torch

    if torch.version.cuda is not None:
        yield from machine.system()


def memory(recipe: Recipe) -> Iterator[Check]:
    """Whether the GPUs have the memory that a recipe needs."""
    try:
        check_model(recipe.model.path)
    except (ConfigError, ModuleNotFoundError):
        yield Check("memory", None, "not estimated without the model")
        return
    try:
        if recipe.stage == "sft":
            recipe = sft.fitted(recipe, "cuda")
            needed, wanted = sft.memory_of(recipe), recipe.sft and recipe.sft.devices
        else:
            command = host_command(recipe, RunFolder(Path("run")), "cuda")
            needed, wanted = memory_of(recipe, command.options), command.gpus
    except ConfigError as error:
        yield Check("memory", False, str(error))
        return
    if machine.count_gpus():
        yield machine.fits(needed, wanted or 1)
    else:
        yield Check("memory", True, str(needed))


def seams() -> Iterator[Check]:
    """The places where this plugin meets its host."""
    for group, name in ENTRY_POINTS.items():
        there = any(point.name == name for point in entry_points(group=group))
        detail = "registered" if there else "not registered: install this package with pip"
        yield Check(f"entry point {group}", there, detail)
    if absent := missing(["openrlhf", "torch", "vllm"]):
        yield Check("host", False, f"not looked at without {', '.join(absent)}")
        return
    provide_flash_attn()
    for seam in SEAMS:
        try:
            seam.find()
        except SeamError as error:
            yield Check(seam.target, False, str(error))
        else:
            when = seam.wanted.__doc__
            detail = f"{when} replaced by host/{seam.wrapper} in {seam.process} processes"
            yield Check(seam.target, True, detail)


def model(path: str) -> Iterator[Check]:
    """Whether transformers and vLLM will load a model folder."""
    try:
        check_model(path)
    except ConfigError as error:
        yield Check("files", False, str(error))
        return
    except ModuleNotFoundError as error:
        yield Check("files", False, f"{path}: not looked at without {error.name}")
        return
    yield Check("files", True, "configuration, weights and processor are there")
    yield _names(Path(path))
    yield from _processor(path)


def _names(folder: Path) -> Check:
    """Whether the tensors are those of the configuration, under names that both loaders know."""
    from transformers import LlavaConfig

    from valor_plugin.llava_med.checkpoint import file_name
    from valor_plugin.llava_med.original import find_shards
    from valor_plugin.llava_med.plan import model_shapes

    try:
        config: Any = LlavaConfig.from_pretrained(folder)
        wanted = model_shapes(config)
        found = {
            file_name(name): shape
            for shard in find_shards(folder)
            for name, shape in shard.shapes().items()
        }
    except Exception as error:  # transformers raises anything for a configuration
        return Check("tensors", False, one_line(error))
    head = "language_model.lm_head.weight"
    if config.tie_word_embeddings or config.text_config.tie_word_embeddings:
        found.setdefault(head, wanted[head])
    missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    if missing:
        detail = f"{len(missing)} are missing, e.g. {missing[0]}: chance would fill them"
    elif more:
        detail = f"{len(more)} have no place in this configuration, e.g. {more[0]}"
    elif other:
        name = other[0]
        detail = f"{name} has the shape {found[name]}, the configuration wants {wanted[name]}"
    else:
        detail = f"{len(found)}, under names that transformers and, in our runs, vLLM read"
    return Check("tensors", not (missing or more or other), detail)


def _processor(folder: str) -> Iterator[Check]:
    """Whether text and pixels will fit the model."""
    try:
        yield from _fits(folder)
    except Exception as error:  # a processor's files can be wrong in any way
        yield Check("processor", False, one_line(error))


def _fits(folder: str) -> Iterator[Check]:
    from PIL import Image
    from transformers import AutoProcessor, LlavaConfig

    processor = AutoProcessor.from_pretrained(folder)
    config: Any = LlavaConfig.from_pretrained(folder)
    tokenizer, vocabulary = processor.tokenizer, config.text_config.vocab_size
    token = tokenizer.convert_tokens_to_ids(processor.image_token)
    wanted = config.image_token_index
    fits = token == wanted < vocabulary and len(tokenizer) <= vocabulary
    yield Check(
        "image token", fits,
        f"{processor.image_token!r} is {token}, the model's {wanted}, of {vocabulary} tokens",
    )  # fmt: skip
    tower, layer = config.vision_config, config.vision_feature_layer
    features = (tower.image_size // tower.patch_size) ** 2
    features += config.vision_feature_select_strategy == "full"  # keeps the class token
    blank = processor(
        text=processor.image_token, images=Image.new("RGB", (40, 60)), return_tensors="pt"
    )
    size, marks = blank["pixel_values"].shape[-1], (blank["input_ids"] == token).sum().item()
    detail = (
        f"{size} pixels and {marks} tokens, of layer {layer}; the model's tower has "
        f"{tower.image_size} pixels, {features} features and {tower.num_hidden_layers} layers"
    )
    fits = (size, marks) == (tower.image_size, features)
    yield Check("image", fits and -tower.num_hidden_layers <= layer + 1 <= 0, detail)
    template = bool(processor.chat_template)
    detail = "there" if template else "none: prompts cannot be written; see llava_med/template.py"
    yield Check("chat template", template, detail)


_SHOWN = 10  # ours: lines of a studies file that are told


def rehearse(
    recipe: Recipe, out: Path, device: str, awaited: bool = False
) -> tuple[list[str], str]:
    """Makes every check of a run that needs no GPU. Nothing is written or started.

    Args:
        recipe: the recipe of the run.
        out: the run's folder, which need not be there.
        device: "cpu", "cuda" or "auto"; but for "cpu" the options are checked for GPUs, whose
            number is looked at where there are any.
        awaited: whether an earlier stage has yet to make the model, so that the checks of it wait.

    Returns:
        Everything that is absent or wrong, one line each, and what would run, a few lines for
        people.
    """
    problems = []
    users = {"every stage", f"stage {recipe.stage}"}
    if "lora" in recipe.model.trainable:
        users.add("LoRA")
    if absent := missing(package for package, user in PURPOSES.items() if user in users):
        problems.append(f"not installed: {', '.join(absent)}: {INSTALL}")
    folder, begun = RunFolder(out), False
    try:
        folder.check()
        begun = folder.resumes(calibration.named(recipe, folder.calibration).to_yaml())
        if recipe.stage == "sft":
            sft.fitted(recipe, "cpu" if device == "cpu" else "cuda")
    except ConfigError as error:
        problems.append(str(error))
    checks = [] if awaited else list(model(recipe.model.path))
    wrong = [check for check in checks if check.ok is False]
    loads = bool(checks) and not wrong
    for check in wrong:
        what = "" if check.what == "files" else f"model.path: {check.what}: "
        problems.append(f"{what}{check.detail}")
    used, lines = _studies(recipe, recipe.data.train)
    problems += lines
    reports = sum(bool(study.report) for study in used)
    place = "a CPU" if device == "cpu" else "GPUs"
    if device != "cpu" and not machine.count_gpus():
        place += " (none is here; `--device cpu` checks for a CPU)"
    summary = [
        f"{recipe.name} can run: stage {recipe.stage}, on {place}",
        f"model    {recipe.model.path}: {', '.join(recipe.model.trainable)} will train"
        + ("; it is checked when it has been made" if awaited else ""),
        f"studies  {len(used):,} in {recipe.data.train}, {reports:,} with a report",
    ]
    if recipe.sft is not None:
        if used and not reports:
            problems.append(f"{recipe.data.train}: no study has a 'report' to learn from")
        elif used and loads:
            problems += _too_long(recipe, recipe.data.train, used)
        if (path := recipe.data.validate) is not None:
            held_out, wrong = _studies(recipe, path)
            problems += wrong
            known = sum(bool(study.report) for study in held_out)
            if held_out and not known:
                problems.append(f"{path}: no study has a 'report' to learn from")
            if loads and held_out and known:
                problems += _too_long(recipe, path, held_out)
            summary.append(f"held out {len(held_out):,} in {path}, {known:,} with a report")
        steps = recipe.sft.steps_of(reports)
        summary.append(f"steps    {steps:,} of {recipe.sft.batch_size} studies")
        if device != "cpu" and not problems:
            summary += [f"memory   {check.detail}" for check in memory(recipe)]
    else:
        problems += map(str, rewards.problems_of(recipe, used, gpu=machine.count_gpus() > 0))
        if device == "cpu" or machine.count_gpus():
            problem = check_build("cpu" if device == "cpu" else "cuda")
            problems += [problem] if problem else []
        if "openrlhf" not in absent:
            found, line = _host(recipe, folder, device, None if lines else used or None, loads)
            problems += found
            summary.append(line)
            if device != "cpu" and not problems:
                summary += [f"memory   {check.detail}" for check in memory(recipe)]
        summary.append(f"rewards  {', '.join(_weights(recipe))}")
    summary.append(f"folder   {folder.path}{', going on from its checkpoint' if begun else ''}")
    return problems, "\n".join(summary)


def _studies(recipe: Recipe, path: str) -> tuple[Sequence[Study], list[str]]:
    """The studies of a file that the recipe uses, and what is wrong with it, the first lines of
    that."""
    studies: list[Study] = []
    try:
        lines = list(problems_of(path, studies))
    except ConfigError as error:
        lines = [str(error)]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"{path}: {len(lines) - _SHOWN:,} more such lines"]
    try:
        return shown(recipe, path, studies), lines
    except ConfigError as error:
        return [], [*lines, str(error)]


def _too_long(recipe: Recipe, path: str, studies: Sequence[Study]) -> list[str]:
    """Whether the model has no positions for a study of a file that fine-tuning learns from."""
    learnt = [study for study in studies if study.report]
    try:
        sft.longest_of(recipe, path, learnt, check_model(recipe.model.path).positions)
    except ConfigError as error:
        return [str(error)]
    return []


def _host(
    recipe: Recipe, folder: RunFolder, device: str, studies: Sequence[Study] | None, loads: bool
) -> tuple[list[str], str]:
    """What is wrong with the host's options, and how many steps they make; None for studies that
    are not known. `loads` says whether the model does."""
    try:
        command = host_command(recipe, folder, "cpu" if device == "cpu" else "cuda")
    except ConfigError as error:
        return [str(error)], ""
    positions = prompt = None
    with suppress(ConfigError, ModuleNotFoundError):  # said of the model already
        positions = check_model(recipe.model.path).positions
    count = None if studies is None else len(studies)
    try:
        if loads and studies is not None:
            prompt = longest_prompt(recipe, studies)
    except ConfigError as error:
        return [str(error)], ""
    there = "cuda" if device != "cpu" and machine.count_gpus() else "cpu"
    found = [str(misfit) for misfit in command.misfits(recipe, count, positions, prompt, there)]
    if found or count is None:
        return found, ""
    steps = command.fitted(recipe, count, positions, prompt, there).steps
    batch, each = (
        command.options[name] for name in ("rollout.batch_size", "rollout.n_samples_per_prompt")
    )
    return [], f"steps    {steps:,} of {batch} studies, {each} reports of each"


def _weights(recipe: Recipe) -> Iterator[str]:
    """The rewards of a recipe in short."""
    if recipe.reward_servers:
        yield from recipe.reward_servers
        return
    given = {"image_text": ("calibration",)}
    for key, entry in parse_set(recipe.rewards or {}, given=given).entries.items():
        every = f" (every {entry.every})" if entry.every > 1 else ""
        yield f"{name_of(key)} {entry.weight:g}{every}"
