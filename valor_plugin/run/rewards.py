"""The reward set of a run, in its processes or behind servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reward_sdk.client import RewardClient
from reward_sdk.errors import ConfigError, ServerError
from reward_sdk.reward_set import RewardSet
from reward_sdk.wire import ServedSet
from valor_plugin.data.studies import Study
from valor_plugin.recipe import Recipe

_SERVER_WAIT = 120.0  # ours: seconds for reward servers to become ready


def reward_set(recipe: Recipe, studies: Sequence[Study], record: Path) -> RewardSet | ServedSet:
    """The recipe's set, built, or what its servers say of theirs, which is recorded: a run that
    goes on must find it unchanged.

    Args:
        recipe: of stage grpo.
        studies: what will be scored.
        record: the JSON file for what servers say.

    Raises:
        ConfigError: a model cannot be loaded; no server becomes ready, or it serves another set
            than before; rewards compare with a report, and no study has one.
    """
    rewards = _served(recipe, record) if recipe.reward_servers else recipe.reward_set()
    if "reference" in rewards.needs and all(study.report is None for study in studies):
        raise ConfigError(
            f"{recipe.data.train}: no study has a 'report', but the rewards compare with one"
        )
    return rewards


def _served(recipe: Recipe, record: Path) -> ServedSet:
    try:
        with RewardClient(recipe.reward_servers) as client:
            info = client.connect(_SERVER_WAIT)
    except ServerError as error:
        raise recipe.error(f"{error}: start it with `reward-sdk serve`") from None
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["set"] != info.set:
        raise ConfigError(
            f"{record.parent} holds an unfinished run with another reward set than the server's "
            f"(compare {record.name} and /v1/rewards): choose another folder with --out, or "
            "remove it"
        )
    record.write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info
