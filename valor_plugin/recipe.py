"""The recipe: one YAML file that reads like the experiment; it knows where it was read from.

    name: valor-stage2
    stage: grpo                      # sft | grpo
    model: {path: runs/stage1/model, trainable: projector}
    data: {train: data/studies.jsonl}
    advantage: {rank: linear}
    rewards:
      image_text: {weight: 0.9, expert: densenet121-res224-chex}
      format: {weight: 0.1}            # or a file of them, or `server: [URL, ...]`
    openrlhf:                        # the host's own options, verbatim
      rollout.batch_size: 128

Everything is checked before anything starts. A file that is read together with the recipe, the
reward set that it names under `rewards`, lies relative to the recipe's own folder; data, models,
weights and outputs are relative to the current folder, and so is a set that the command line names
(`--set rewards=FILE`). Image paths inside a studies file are relative to that file.

Recipes are shipped with this package: in its folder `recipes`, or beside it in a clone.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from reward_sdk.client import parse_urls
from reward_sdk.config import normalised, parse_set, parse_yaml, read_yaml
from reward_sdk.errors import ConfigError, explain, nearest
from reward_sdk.registry import name_of, names
from reward_sdk.reward_set import RewardSet
from valor_plugin.data.prompts import problem_of
from valor_plugin.llava_med.parts import PARTS, Part


def _parts(value: Any) -> Any:
    if value == "all":
        return PARTS
    return (value,) if isinstance(value, str) else value


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads a bare `off` as false


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Section):
    """Sizes of the adapters that LoRA adds to the language model.

    Attributes:
        rank: rank of the adapters, at least 1.
        alpha: scale of the adapters, above 0: their product is multiplied by alpha / rank.
    """

    rank: Annotated[int, Field(ge=1)] = 128  # borrowed: LLaVA-1.5
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 256  # borrowed: LLaVA-1.5


class Model(_Section):
    """The model that is trained, and what of it.

    Attributes:
        path: a Hugging Face LLaVA folder with its processor.
        trainable: the part or parts that train: projector, language, tower, lora (adapters on the
            frozen language model), a list of them, or "all", which is the first three.
        lora: sizes of the adapters, where "lora" trains; by default those of `Lora()`.
    """

    path: str
    trainable: Annotated[tuple[Part, ...], BeforeValidator(_parts), Field(min_length=1)]
    lora: Lora | None = None

    @model_validator(mode="after")
    def _adapters(self) -> Model:
        if {"language", "lora"} <= set(self.trainable):
            raise ValueError("trainable: lora adapts a frozen language model; name one of the two")
        if self.lora is not None and "lora" not in self.trainable:
            raise ValueError("lora: these adapters do not train: add lora to `trainable`")
        return self


# pydantic has a deprecated method of this name, which nobody calls
warnings.filterwarnings("ignore", 'Field name "validate" in "Data" shadows', UserWarning)


class Data(_Section):
    """What the model is trained on.

    Attributes:
        train: path of the studies file, JSONL with `id`, `image` and (where there is one) `report`.
        validate: path of the file of held-out studies, for the evaluation loss of stage sft; None:
            no evaluation.
        images: "frontal" shows the frontal image of a study, and leaves out studies that have none;
            "all" shows all images, up to `max_images`, in the order of the file.
        max_images: how many images of a study are shown at most, at least 1; by default 2. Given
            with images "all" only.
        prompt: what the model is asked about every study: a name of
            `valor_plugin.data.prompts.PROMPTS`, or a text of more than one word.
    """

    train: str
    validate: str | None = None
    images: Literal["frontal", "all"] = "frontal"
    max_images: Annotated[int, Field(ge=1)] | None = None
    prompt: str = "report"

    @property
    def most_images(self) -> int:
        """How many images of a study the model is shown at most."""
        return 1 if self.images == "frontal" else self.max_images or 2  # ours: a frontal, a lateral

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str) -> str:
        if problem := problem_of(prompt):
            raise ValueError(problem)
        return prompt

    @model_validator(mode="after")
    def _limit(self) -> Data:
        if self.max_images is not None and self.images == "frontal":
            raise ValueError("max_images: one image is shown: leave it out, or set `images: all`")
        return self


class Advantage(_Section):
    """How the rewards of a group become advantages.

    Attributes:
        rank: "linear" or "zscore" ranks inside each group; "off" leaves rewards to the host's own
            estimator (`openrlhf: {algo.advantage.estimator: ...}`).
        tie_tolerance: largest distance from the smallest reward of a run at which a reward still
            shares its rank, at least 0.
    """

    # ours: the paper's formula is not public
    rank: Annotated[Literal["linear", "zscore", "off"], BeforeValidator(_off)] = "linear"
    tie_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6  # ours


class Sft(_Section):
    """Supervised fine-tuning, on TRL's SFTTrainer. Only the report and its closing token carry
    loss.

    With `early_stop`, the run's model is the one that had the lowest evaluation loss, of which a
    checkpoint is kept; else it is the last one.

    Attributes:
        steps: number of optimizer steps, at least 1; either this or `epochs` is given.
        epochs: how often every study is seen, above 0 and at most 10,000; the steps are rounded up.
        batch_size: number of studies per optimizer step, whatever the number of devices; fewer in
            the last step of an epoch, which several devices fill up with studies of its beginning.
        micro_batch_size: number of studies that one device takes in one pass; gradients are
            accumulated over as many passes as `batch_size` needs. None: no accumulation.
        devices: number of GPUs, or of processes on a CPU. None: every GPU that is visible, or one
            process.
        zero_stage: what DeepSpeed's ZeRO divides between the devices: 0 nothing, 2 optimizer and
            gradients, 3 the weights, too. Not with LoRA.
        learning_rate: peak learning rate, above 0.
        warmup: share of the steps over which the learning rate rises from 0, that of the first
            step, to its peak, 0 to 1; at least one step, unless it is 0.
        schedule: what follows the warm-up: "cosine" or "linear", to 0, or "constant".
        weight_decay: AdamW's weight decay, at least 0.
        max_grad_norm: norm to which gradients are clipped, at least 0; 0 for no clipping.
        gradient_checkpointing: whether activations are computed twice, to save memory. None: on
            GPUs.
        eval_every: number of steps between evaluations on `data.validate`; there is one after the
            last step, too.
        early_stop: number of evaluations in a row without a new lowest loss after which the run
            ends. None: it never ends early.
        save_every: number of steps between checkpoints, of which the last two are kept. None: no
            checkpoints.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32  # ours
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None  # ours
    devices: Annotated[int, Field(ge=1)] | None = None  # ours
    zero_stage: Literal[0, 2, 3] = 0  # ours
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-5  # borrowed: LLaVA-1.5
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.03  # borrowed: LLaVA-1.5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # borrowed: LLaVA-1.5
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # borrowed: LLaVA-1.5
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # borrowed: LLaVA-1.5
    gradient_checkpointing: bool | None = None  # borrowed: LLaVA-1.5, on GPUs
    eval_every: Annotated[int, Field(ge=1)] = 100  # ours
    early_stop: Annotated[int, Field(ge=1)] | None = None  # ours
    save_every: Annotated[int, Field(ge=1)] | None = None  # ours

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take true for 1."""
        if isinstance(value, bool) and info.field_name != "gradient_checkpointing":
            raise ValueError("a number is wanted, neither true nor false")
        return value

    @model_validator(mode="after")
    def _length(self) -> Sft:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        return self

    def steps_of(self, studies: int) -> int:
        """The number of optimizer steps with this many studies."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # the validator above
        return math.ceil(self.epochs * math.ceil(studies / self.batch_size))


class Recipe(_Section):
    """One run of training, as its YAML file describes it.

    Attributes:
        name: name of the run: letters, digits, "_", "." and "-", of which the last two do not begin
            it.
        stage: "sft" for supervised fine-tuning, "grpo" for training with rewards.
        seed: random seed of the run, 0 to 2**32 - 1.
        model: the model that is trained, and what of it.
        data: the studies and the prompt.
        sft: how stage sft trains; None for stage grpo.
        advantage: how rewards become advantages, in stage grpo.
        rewards: the reward set of stage grpo, or `server` and the URLs of reward servers; None for
            stage sft.
        openrlhf: dotted name -> value of the host's options, in stage grpo.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    stage: Literal["sft", "grpo"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: Model
    data: Data
    sft: Sft | None = None
    advantage: Advantage = Advantage()
    rewards: dict[str, Any] | None = None  # a reward set, or `server` with URLs
    openrlhf: dict[str, Any] = Field(default_factory=dict)
    _source: str = PrivateAttr("the recipe")
    _rewards_source: str = PrivateAttr("the recipe: rewards")

    def error(self, message: str) -> ConfigError:
        """What is wrong with the recipe, with the file that it was read from."""
        return ConfigError(f"{self._source}: {message}")

    def reward_set(self) -> RewardSet:
        """The set of its rewards, built.

        Raises:
            ConfigError: a model that a reward needs cannot be loaded.
        """
        return RewardSet.from_config(self.rewards or {}, self._rewards_source)

    def to_yaml(self) -> str:
        """The recipe with every default and override."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    @property
    def reward_servers(self) -> list[str]:
        """URLs of the servers that score; none where the run does it itself."""
        rewards = self.rewards or {}
        return parse_urls(rewards["server"]) if "server" in rewards else []

    @model_validator(mode="after")
    def _stage(self) -> Recipe:
        if self.stage == "sft" and (self.sft is None or self.rewards or self.openrlhf):
            raise ValueError("stage sft takes `sft`, and neither `rewards` nor `openrlhf`")
        if self.stage == "grpo" and (self.rewards is None or self.sft is not None):
            raise ValueError("stage grpo takes `rewards`, and no `sft`")
        if self.stage == "grpo" and self.data.validate is not None:
            raise ValueError("data.validate: stage grpo has no evaluation; remove it")
        if self.sft is not None and self.sft.early_stop and self.data.validate is None:
            raise ValueError(
                "sft.early_stop needs held-out studies: name a file in `data.validate`"
            )
        if self.sft is not None and self.sft.zero_stage and "lora" in self.model.trainable:
            raise ValueError("sft.zero_stage: adapters are small, there is little to divide; use 0")
        return self


def shipped_folder() -> Path:
    """The folder of the shipped recipes."""
    inside = Path(__file__).with_name("recipes")  # where a wheel has it
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that is shipped, such as "valor_stage2" or "demo/sft"."""
    folder = shipped_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in files
        if "\nstage:" in file.read_text(encoding="utf-8")
    }


def about(recipe: Path) -> str:
    """What a recipe is: the first sentence of the comment that it begins with."""
    lines = takewhile(
        lambda line: line.startswith("#"), recipe.read_text(encoding="utf-8").splitlines()
    )
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".") + "."


def copy_shipped(target: Path) -> int:
    """Copies everything in the folder of the shipped recipes; gives the number of files.

    Raises:
        ConfigError: one of the files is there already; nothing was copied.
    """
    folder = shipped_folder()
    files = {
        file: target / file.relative_to(folder)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    if there := next((copy for copy in files.values() if os.path.lexists(copy)), None):
        raise ConfigError(f"{there} is there already: choose another folder, or remove it")
    for file, copy in files.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return len(files)


def find_recipe(name: str) -> Path:
    """The file of a recipe that is named by its path or, where there is no such file, by the name
    of one that is shipped.

    Raises:
        ConfigError: there is neither such a file nor such a shipped recipe; gives the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if path.exists() and name not in shipped:  # a folder, of which reading it says so, or a pipe
        return path
    if name not in shipped:
        raise ConfigError(
            f"cannot read recipe {name}: No such file or directory, and no shipped recipe has "
            f"this name: {nearest(name, shipped)}"
        )
    return shipped[name]


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: the YAML file of the recipe, in which `rewards` may be the path of a reward set.
        overrides: "dotted.key=value", the value read as YAML. Inside `openrlhf` the rest of the
            key is one option: "openrlhf.rollout.batch_size=64". "rewards.rouge_l.weight=0.5" also
            reaches into a set that is named by its path.

    Raises:
        ConfigError: the recipe cannot be read or is wrong; one paragraph names the file, the key,
            what is wrong and the nearest name.
    """
    content = read_yaml(path, "recipe")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys {', '.join(_keys(Recipe))}")
    if content.keys() & {"rewards", *names()} and not content.keys() & {"name", "stage", "model"}:
        raise ConfigError(f"{path}: this is a reward set; a recipe names it under `rewards`")
    where, folder = str(path), Path(path).parent  # folder: of files that `rewards` names
    for override in overrides:
        key = override.partition("=")[0]
        if key.startswith("rewards."):
            where = _read_rewards(content, folder, where)
        _override(content, override)
        if key == "rewards":
            where, folder = str(path), Path()
    where = _read_rewards(content, folder, where)
    _check_keys(content, Recipe, str(path))
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    recipe._source, recipe._rewards_source = str(path), where
    if recipe.rewards is not None and "server" in recipe.rewards:
        if len(recipe.rewards) > 1:
            raise recipe.error("rewards: the set is the server's; remove what is beside it")
        try:
            parse_urls(recipe.rewards["server"])
        except ConfigError as error:
            raise recipe.error(f"rewards.server: {error}") from None
    elif recipe.rewards is not None:
        # The expert's calibration is fitted when the run starts.
        parse_set(recipe.rewards, recipe._rewards_source, given={"image_text": ("calibration",)})
    return recipe


def _read_rewards(content: dict, folder: Path, where: str) -> str:
    """Puts the set's mapping in the place of what `rewards` says, unless servers have it; how
    messages name where it stands."""
    rewards = content.get("rewards")
    if rewards is None or (isinstance(rewards, dict) and "server" in rewards):
        return where
    if isinstance(rewards, str) and not (folder / rewards).exists() and Path(rewards).exists():
        raise ConfigError(
            f"{where}: rewards: there is no {folder / rewards}: a set's path is relative to the "
            f"folder of the recipe that names it. {rewards} is there in the current folder: write "
            f"`rewards: {os.path.relpath(rewards, folder)}`, or give `--set rewards={rewards}`"
        )
    content["rewards"], where = normalised({"rewards": rewards}, folder, where)
    return where


def _keys(section: type[BaseModel]) -> list[str]:
    return list(section.model_fields)


_SECTIONS = {"model": Model, "data": Data, "advantage": Advantage, "sft": Sft, "lora": Lora}
_RENAMED: dict[tuple[type[BaseModel], str], str] = {(Model, "train"): "trainable"}


def _check_keys(content: dict, section: type[BaseModel], where: str) -> None:
    """Unknown keys with the nearest known one; pydantic only says that they are extra."""
    for key, value in content.items():
        if new := _RENAMED.get((section, key)):
            raise ConfigError(f"{where}: {key!r} is called {new!r} now")
        if key not in section.model_fields:
            hint = _misplaced(str(key)) or nearest(str(key), _keys(section))
            raise ConfigError(f"{where}: unknown key {key!r}: {hint}")
        inner = _SECTIONS.get(key)
        if inner is not None and isinstance(value, dict):
            _check_keys(value, inner, f"{where}: {key}")


def _misplaced(key: str) -> str:
    """Where a key belongs that is not known where it stands, such as one with a wrong indent; ""
    if it belongs nowhere."""
    homes = [name for name, other in _SECTIONS.items() if key in other.model_fields]
    if "." in key:
        homes.append("openrlhf")
    elif key in {*names(), "tags"}:
        homes.append("rewards")
    if homes:
        return f"it belongs under `{'` or `'.join(homes)}`, indented"
    return "it belongs to the recipe, not indented" if key in Recipe.model_fields else ""


def _override(content: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    said = f"--set {override[:200]}"
    if not equals:
        raise ConfigError(f"{said}: write it as dotted.key=value")
    value = parse_yaml(text, f"{said}: the value")
    path = key.split(".")
    if key == "openrlhf":
        raise ConfigError(f"{said}: one option a time, --set openrlhf.OPTION=VALUE")
    if path[0] == "openrlhf":
        path = ["openrlhf", ".".join(path[1:])]
    if path[0] == "rewards" and isinstance(content.get("rewards"), dict) and path[1:]:
        # A reward in a file is called by its name here, as it is in logs.
        path[1] = next((k for k in content["rewards"] if name_of(str(k)) == path[1]), path[1])
    for step in path[:-1]:
        if content.get(step) is None:  # `format:` alone is a reward with its defaults
            content[step] = {}
        content = content[step]
        if not isinstance(content, dict):
            raise ConfigError(f"{said}: {step!r} in the recipe holds a value, no section")
    content[path[-1]] = value
