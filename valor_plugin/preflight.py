"""Everything that is checked and written before anything is started: a recipe becomes a run folder
(see `valor_plugin.runfolder`)."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reward_sdk.engine import RewardSet
from reward_sdk.errors import ConfigError
from valor_plugin import baseline, runfolder
from valor_plugin.data.studies import Study, read_studies, write_host_rows
from valor_plugin.host import options
from valor_plugin.host.install import check_host
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Recipe


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

    result: dict[str, Any] = {"algo.advantage.estimator": "group_norm", **recipe.openrlhf}
    if recipe.advantage.rank != "off":
        estimator = recipe.openrlhf.get("algo.advantage.estimator", "dr_grpo")
        if estimator != "dr_grpo":
            raise ConfigError(
                f"advantage.rank {recipe.advantage.rank!r} replaces the host's estimator, but "
                f"openrlhf.algo.advantage.estimator is {estimator!r}: leave it out, or set "
                "`advantage: {rank: off}`"
            )
        result["algo.advantage.estimator"] = estimator
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
        "ckpt.output_dir": str(runfolder.unsaved(out)),
        "ckpt.path": str(out / "checkpoints"),
        "ckpt.load_enable": True,  # the host looks whether there is one
        "logger.tensorboard_dir": str(out / "tensorboard"),
        "logger.wandb.run_name": recipe.name,
    }
    if device == "cpu":
        from valor_plugin.host import cpu

        result |= cpu.HOST_OPTIONS
    return result


def host_arguments(recipe: Recipe, where: str, out: Path, device: str) -> list[str]:
    """The host's complete and checked command line for this run.

    Raises:
        ConfigError: in the host's words, for options that do not go together.
    """
    arguments = options.arguments(host_options(recipe, out, device))
    chosen = vars(options.parser().parse_args(arguments))
    for name in _AT_LEAST_1:
        if chosen[name] is not None and chosen[name] < 1:
            raise ConfigError(f"{where}: openrlhf.{name} must be at least 1, not {chosen[name]}")
    options.validate(arguments, where)
    rollout = chosen["rollout.batch_size"] * chosen["rollout.n_samples_per_prompt"]
    if rollout % chosen["train.batch_size"]:
        raise ConfigError(
            f"{where}: openrlhf.train.batch_size {chosen['train.batch_size']} does not divide a "
            f"rollout of {rollout} samples (rollout.batch_size x rollout.n_samples_per_prompt)"
        )
    return arguments


_AT_LEAST_1 = (
    "vllm.num_engines", "vllm.tensor_parallel_size", "rollout.batch_size",
    "rollout.n_samples_per_prompt", "rollout.micro_batch_size", "rollout.max_new_tokens",
    "train.batch_size", "train.micro_batch_size", "train.num_episodes", "data.max_len",
    "data.max_samples",
)  # fmt: skip


def check_gpus(arguments: list[str], there: int, where: str) -> None:
    """That one machine has the GPUs that a run asks for; the host would wait for them for ever.

    Raises:
        ConfigError: it has fewer.
    """
    chosen = vars(options.parser().parse_args(arguments))
    actor, reference = (
        chosen[f"{role}.num_nodes"] * chosen[f"{role}.num_gpus_per_node"]
        for role in ("actor", "ref")
    )
    engines = chosen["vllm.num_engines"] * chosen["vllm.tensor_parallel_size"]
    if chosen["train.colocate_all"]:
        wanted = actor
    elif chosen["train.colocate_actor_ref"] or not chosen["algo.kl.init_coef"]:
        wanted = actor + engines
    else:
        wanted = actor + reference + engines
    if wanted > there:
        raise ConfigError(
            f"{where}: the run asks for {wanted} GPUs and there are {there}. Lower "
            "openrlhf.actor.num_gpus_per_node, openrlhf.ref.num_gpus_per_node and "
            "openrlhf.vllm.num_engines, share GPUs with openrlhf.train.colocate_all, or set "
            "RAY_ADDRESS to join a cluster."
        )


def check(recipe: Recipe, where: str) -> None:
    """What can be checked without touching data or weights: the host, its options, the schedule."""
    if problem := check_host():
        raise ConfigError(problem)
    options.check(recipe.openrlhf, where)
    if recipe.advantage.rank != "off":
        for name in ("reward.overlong_buffer_len", "reward.stop_properly_penalty_coef"):
            if recipe.openrlhf.get(name) is not None:
                raise ConfigError(
                    f"{where}: openrlhf.{name} would be added to ranks instead of rewards: leave "
                    "it out, or set `advantage: {rank: off}`"
                )
    for name, why in _REFUSED.items():
        if recipe.openrlhf.get(name):
            raise ConfigError(f"{where}: openrlhf.{name} does not work with this plugin: {why}")
    if "tower" in recipe.model.train:
        raise ConfigError(
            f"{where}: model.train: the tower cannot train in stage grpo, because the host would "
            "send its weights to vLLM under names that vLLM does not know; train it in stage sft"
        )


def check_model(path: str) -> None:
    """That a folder can be loaded by the host: a LLaVA config, weights and a whole processor."""
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"model.path: there is no folder {path}. A stage starts from a model "
            "folder; run the stage before it, or save one with transformers."
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
    _check_weights(folder)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"model.path: {path} has no {name}, so its processor cannot be loaded. Save it "
                "with `AutoProcessor.from_pretrained(SOURCE).save_pretrained(FOLDER)`."
            )


def _check_weights(folder: Path) -> None:
    """That every shard is there and whole, by the headers alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if lacking := sorted(name for name in named if not (folder / name).is_file()):
            raise ConfigError(
                f"model.path: {folder} lacks {', '.join(lacking)}, which its index names"
            )
    for shard in folder.glob("*.safetensors"):
        try:
            with safe_open(shard, "np"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"model.path: {shard} is cut short or damaged: {error}") from None


_REFUSED = {
    "train.async_enable": "rewards need the policy step, which asynchronous rollouts do not have",
    "ds.lora.rank": "model.train says what trains, and LoRA is not among it yet",
    "eval.dataset": "evaluate the saved model instead",
}


@dataclass(frozen=True)
class Prepared:
    """A run that passed every check."""

    recipe: Recipe
    out: Path
    device: str
    studies: list[Study]
    settings: HostSettings
    arguments: list[str]
    resumes: bool


def prepare(recipe: Recipe, where: str, out: Path, device: str) -> Prepared:
    """Checks everything, writes the run folder; afterwards only the host can fail.

    Raises:
        ConfigError: before anything was started.
    """
    check(recipe, where)
    check_model(recipe.model.path)
    studies = read_studies(recipe.data.train)
    device = choose_device(device)
    runfolder.start(out)
    recipe = baseline.named(_whole_batches(recipe, len(studies)), out)
    record = runfolder.resolved(recipe)
    resumes = runfolder.resumes(out, record)
    write_host_rows(studies, recipe.data.prompt, out / "train.jsonl", must_match=resumes)
    baseline.fit(recipe, studies, out, keep=resumes)
    reward_set = RewardSet.from_config(recipe.rewards or {}, f"{where}: rewards")
    _check_needs(reward_set, studies, recipe.data.train)
    settings = HostSettings(
        run=uuid.uuid4().hex,
        device=device,
        train=recipe.model.train,
        advantage=recipe.advantage,
        rewards=recipe.rewards or {},
        banned_tokens=_image_tokens(recipe.model.path),
    )
    arguments = host_arguments(recipe, where, out, device)
    if device == "cuda" and "RAY_ADDRESS" not in os.environ:
        import torch

        check_gpus(arguments, torch.cuda.device_count(), where)
    runfolder.write_record(out, record, device)
    (out / "command.txt").write_text(command(arguments) + "\n", encoding="utf-8")
    return Prepared(recipe, out, device, studies, settings, arguments, resumes)


def command(arguments: list[str]) -> str:
    """The host's command line, as a person would type it."""
    return f"python -m {options.MODULE} {shlex.join(arguments)}"


def _whole_batches(recipe: Recipe, studies: int) -> Recipe:
    """The recipe without its last, smaller rollout where several GPUs would have to share it: the
    host deals out uneven parts then, and its ranks wait for each other for ever."""
    chosen = vars(options.parser().parse_args(options.arguments(recipe.openrlhf)))
    if chosen["actor.num_nodes"] * chosen["actor.num_gpus_per_node"] == 1:
        return recipe
    batch = chosen["rollout.batch_size"]
    used = min(studies, chosen["data.max_samples"]) // batch * batch
    if not used:
        raise ConfigError(f"{studies} studies are fewer than one rollout of {batch}")
    return recipe.model_copy(update={"openrlhf": {**recipe.openrlhf, "data.max_samples": used}})


def _check_needs(rewards: RewardSet, studies: list[Study], path: str) -> None:
    if "reference" in rewards.needs and all(study.report is None for study in studies):
        raise ConfigError(f"{path}: no study has a 'report', but the rewards compare with one")


def _image_tokens(model: str) -> tuple[int, ...]:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    token = config.get("image_token_id", config.get("image_token_index"))
    return () if token is None else (token,)
