"""Everything that is checked and written before anything is started: a recipe becomes a run folder
(see `valor_plugin.run.folder`)."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reward_sdk.client import RewardClient
from reward_sdk.reward_set import RewardSet
from reward_sdk.errors import ConfigError, ServerError
from reward_sdk.wire import SetInfo
from valor_plugin import baseline, command, runfolder
from valor_plugin.data.studies import Study, read_studies, write_host_rows
from valor_plugin.host import options
from valor_plugin.host.settings import HostSettings
from valor_plugin.recipe import Lora, Recipe

_SERVER_WAIT = 120.0  # ours: seconds for reward servers to become ready


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
    if content.get("model_type") == "llava_mistral":
        raise ConfigError(
            f"model.path: {path} is LLaVA-Med in its original format, which transformers cannot "
            f"load: make a model folder of it with `openrlhf convert {path} NEW_FOLDER`"
        )
    if (kind := content.get("model_type")) != "llava":
        raise ConfigError(f"model.path: {path} is of type {kind!r}; this plugin trains 'llava'")
    if (content.get("vision_config") or {}).get("model_type") == "pixtral":
        raise ConfigError(
            f"model.path: {path} has a Pixtral tower, whose images differ in size; this plugin "
            "trains LLaVAs whose images have one size (CLIP, SigLIP)"
        )
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
    """That every safetensors shard is there and whole, by the headers alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"model.path: {index} is cut short or damaged") from None
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
    command.check(recipe, where)
    check_model(recipe.model.path)
    studies = read_studies(recipe.data.train)
    device = choose_device(device)
    runfolder.start(out)
    command.host_arguments(recipe, where, out, device)  # sizes that can be divided by, below
    recipe = baseline.named(_whole_batches(recipe, len(studies)), out)
    record = runfolder.resolved(recipe)
    resumes = runfolder.resumes(out, record)
    arguments = command.host_arguments(recipe, where, out, device, resumes)
    chosen = vars(options.parser().parse_args(arguments))
    _check_length(recipe.model.path, chosen["data.max_len"], where)
    if device == "cuda" and "RAY_ADDRESS" not in os.environ:
        import torch

        there = torch.cuda.device_count()
        wanted = command.gpus(chosen)
        if wanted > there:
            raise ConfigError(
                f"{where}: the run asks for {wanted} GPUs and there are {there}. Lower "
                "openrlhf.actor.num_gpus_per_node, openrlhf.ref.num_gpus_per_node and "
                "openrlhf.vllm.num_engines, share GPUs with openrlhf.train.colocate_all, or set "
                "RAY_ADDRESS to join a cluster."
            )
    write_host_rows(studies, recipe.data.prompt, out / "train.jsonl", must_match=resumes)
    baseline.fit(recipe, studies, out, keep=resumes)
    reward_set = _reward_set(recipe, where, out)
    _check_needs(reward_set.needs, studies, recipe.data.train)
    settings = HostSettings(
        run=uuid.uuid4().hex,
        device=device,
        train=recipe.model.train,
        lora=recipe.model.lora or Lora(),
        advantage=recipe.advantage,
        rewards=recipe.rewards or {},
        served=reward_set.set if isinstance(reward_set, SetInfo) else None,
        bounds=reward_set.bounds,
        log_keys=tuple(reward_set.log_keys),
        rollout_images=chosen["rollout.batch_size"],
        banned_tokens=_image_tokens(recipe.model.path),
        seed=recipe.seed,
        deterministic=bool(recipe.openrlhf.get("train.full_determinism_enable")),
    )
    runfolder.write_record(out, record, device)
    (out / "command.txt").write_text(command.text(arguments) + "\n", encoding="utf-8")
    return Prepared(recipe, out, device, studies, settings, arguments, resumes)


def _whole_batches(recipe: Recipe, studies: int) -> Recipe:
    """The recipe without its last, smaller rollout where the host cannot bear one: several GPUs
    would get uneven parts and wait for each other for ever, and a run that goes on from a
    checkpoint behind it would begin its episode anew."""
    chosen = vars(options.parser().parse_args(options.arguments(recipe.openrlhf)))
    one = chosen["actor.num_nodes"] * chosen["actor.num_gpus_per_node"] == 1
    if one and chosen["ckpt.save_steps"] == -1:
        return recipe
    batch = chosen["rollout.batch_size"]
    used = min(studies, chosen["data.max_samples"]) // batch * batch
    if not used:
        raise ConfigError(f"{studies} studies are fewer than one rollout of {batch}")
    return recipe.model_copy(update={"openrlhf": {**recipe.openrlhf, "data.max_samples": used}})


def _reward_set(recipe: Recipe, where: str, out: Path) -> RewardSet | SetInfo:
    """The set, or what its servers say of it, which a run that goes on must find unchanged."""
    if not recipe.reward_servers:
        return RewardSet.from_config(recipe.rewards or {}, f"{where}: rewards")
    try:
        with RewardClient(recipe.reward_servers) as client:
            info = client.connect(_SERVER_WAIT)
    except ServerError as error:
        raise ConfigError(f"{where}: {error}: start it with `reward-sdk serve`") from None
    record = out / "rewards.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["set"] != info.set:
        raise ConfigError(
            f"{out} holds an unfinished run with another reward set than the server's (compare "
            f"{record.name} and /v1/rewards): choose another folder with --out, or remove it"
        )
    record.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return info


def _check_needs(needs: Collection[str], studies: list[Study], path: str) -> None:
    if "reference" in needs and all(study.report is None for study in studies):
        raise ConfigError(f"{path}: no study has a 'report', but the rewards compare with one")


def _check_length(model: str, longest: int, where: str) -> None:
    """vLLM would refuse to start, and the rest of the host wait for it for minutes."""
    from transformers import AutoConfig

    language = AutoConfig.from_pretrained(model).get_text_config()
    rope = getattr(language, "rope_parameters", None) or {}
    trained = getattr(language, "max_position_embeddings", None)
    positions = (trained or longest) * rope.get("factor", 1)
    if longest > positions:
        raise ConfigError(
            f"{where}: openrlhf.data.max_len {longest} is more than the {positions:.0f} positions "
            f"of the language model in {model}"
        )


def _image_tokens(model: str) -> tuple[int, ...]:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    token = config.get("image_token_id", config.get("image_token_index"))
    return () if token is None else (token,)
