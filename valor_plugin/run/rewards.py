"""The reward set of a run, in its processes or behind servers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reward_sdk.client import RewardClient
from reward_sdk.errors import ConfigError, ScoringError, ServerError
from reward_sdk.reward_set import RewardSet
from reward_sdk.text import wrap_report
from reward_sdk.types import Sample
from reward_sdk.wire import ServedSet
from valor_plugin.data.studies import Study
from valor_plugin.recipe import Recipe

_SERVER_WAIT = 120.0  # ours: seconds for reward servers to become ready, ...
_GLANCE = 3.0  # ours: ... and where nothing is started


def reward_set(recipe: Recipe, studies: Sequence[Study], record: Path) -> RewardSet | ServedSet:
    """The recipe's set, built, or what its servers say of theirs, which is recorded: a run that
    goes on must find it unchanged.

    Args:
        recipe: the recipe of the run, of stage grpo.
        studies: studies whose responses will be scored.
        record: the JSON file that keeps what servers say of their set.

    Raises:
        ConfigError: a model cannot be loaded; no server becomes ready, or it serves another set
            than before; rewards compare with a report, and no study has one.
    """
    rewards = _served(recipe, record) if recipe.reward_servers else recipe.reward_set()
    if problem := _without_reports(recipe, rewards.needs, studies):
        raise problem
    return rewards


def problems_of(recipe: Recipe, studies: Sequence[Study], gpu: bool) -> Iterator[ConfigError]:
    """Everything for which `reward_set` would refuse, and rewards that fail on the first study;
    nothing is written.

    Args:
        recipe: the recipe of the run, of stage grpo.
        studies: studies whose responses will be scored; where there is none, no report is missed.
        gpu: whether there is a GPU; without one rewards are built on the CPU.
    """
    needs: set[str] = set()
    tried = [
        Sample(
            wrap_report(study.report or "Clear."), study.report, study.image_ref, study.id,
            age=study.age, indication=study.indication,
        )
        for study in studies[:1]
    ]  # fmt: skip
    tried *= 2  # a batch: a reward may return one value for all of it
    if recipe.reward_servers:
        try:
            needs |= set(_ask(recipe, _GLANCE).needs)
        except ConfigError as error:
            yield error
    for name, keys in {} if recipe.reward_servers else (recipe.rewards or {}).items():
        if name == "tags":
            continue
        keys = dict(keys or {})
        if "device" in keys and not gpu:
            keys["device"] = "cpu"
        try:
            if name == "image_text" and "calibration" not in keys:  # which the run fits
                _load_expert(keys)
            else:
                alone = recipe.model_copy(update={"rewards": {name: keys}}).reward_set()
                alone, needs = alone.without_schedule(), needs | alone.needs
                parts = [part for score in alone.score(tried) for part in score.parts.values()]
                if failed := next((part for part in parts if part.status == "failed"), None):
                    yield recipe.error(f"rewards: on study {studies[0].id!r} {failed.reason}")
        except ConfigError as error:
            yield error
        except ScoringError as error:  # of a reward whose failures end the run
            yield recipe.error(f"rewards: {error}")
    if problem := _without_reports(recipe, needs, studies):
        yield problem


def _load_expert(keys: Mapping[str, Any]) -> None:
    try:
        from reward_sdk.models.xray_expert import load_expert
    except ModuleNotFoundError as error:
        raise ConfigError(f"image_text: {error}: pip install 'valor-rrg[vision]'") from None
    load_expert(keys["expert"], keys.get("device", "cpu"))


def _without_reports(
    recipe: Recipe, needs: Collection[str], studies: Sequence[Study]
) -> ConfigError | None:
    if (
        "reference" not in needs
        or not studies
        or any(study.report is not None for study in studies)
    ):
        return None
    return ConfigError(
        f"{recipe.data.train}: no study has a 'report', but the rewards compare with one"
    )


def _ask(recipe: Recipe, seconds: float) -> ServedSet:
    try:
        with RewardClient(recipe.reward_servers) as client:
            return client.connect(seconds)
    except ServerError as error:
        raise recipe.error(f"{error}: start it with `reward-sdk serve`") from None


def _served(recipe: Recipe, record: Path) -> ServedSet:
    info = _ask(recipe, _SERVER_WAIT)
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["set"] != info.set:
        raise ConfigError(
            f"{record.parent} holds an unfinished run with another reward set than the server's "
            f"(compare {record.name} and /v1/rewards): choose another folder with --out, or "
            "remove it"
        )
    record.write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info
