"""The dataset that the host reads, one JSON object a line."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from valor_plugin.data import labels
from valor_plugin.data.labels import Label
from valor_plugin.data.prompts import question
from valor_plugin.data.studies import Study
from valor_plugin.recipe import Data

KEYS = {"data.input_key": "prompt", "data.label_key": "label", "data.image_key": "images"}
"""What the host is told of a row's keys."""

_PATTERN = "matches names of files"
_SPECIAL = {
    ",": "separates datasets",
    "@": "begins the name of a subfolder",
    "::": "chains file systems",
    "$": "begins a variable of the environment",
    "*": _PATTERN, "?": _PATTERN, "[": _PATTERN, "]": _PATTERN,
}  # fmt: skip
"""What the host, or `datasets`, which it calls, makes of these in a dataset's path."""


def check_path(path: Path) -> None:
    """Checks that the host will read this file and no other.

    Raises:
        ConfigError: the path holds what the host would not take for a part of it; names it.
    """
    for mark, meaning in _SPECIAL.items():
        if mark in str(path):
            raise ConfigError(
                f"the run's folder {path.parent} has {mark!r} in its path, which {meaning} where "
                f"OpenRLHF reads {path.name}: choose another with --out, without "
                f"{' '.join(_SPECIAL)}"
            )


def rollout_row(study: Study, data: Data) -> dict[str, Any]:
    """A study as the host reads it: prompt, images and label, see `valor_plugin.data.labels`."""
    label = Label(study.id, study.report, study.view, study.age, study.indication)
    images = study.shown(data.most_images)
    return {
        "prompt": "<image>" * len(images) + question(data.prompt, study),
        "images": images,
        "label": labels.encode(label),
    }


def write_rows(
    studies: Iterable[Study],
    data: Data,
    path: Path,
    must_match: bool = False,
    row: Callable[[Study, Data], Mapping[str, Any]] = rollout_row,
) -> None:
    """Writes a row of each study, one JSON object a line.

    Args:
        studies: the studies to train on, in order.
        data: what the model is shown of them, and asked.
        path: the JSONL file to write.
        must_match: whether the file must be there and hold the same rows, because a run goes on
            with it.
        row: what a study is to whoever trains on the file; by default the host.

    Raises:
        ConfigError: the rows must match those that are there, and do not.
    """
    new = path.with_name(path.name + ".part")
    with new.open("w", encoding="utf-8") as file:
        for study in studies:
            file.write(json.dumps(row(study, data)) + "\n")
    if must_match and not (path.exists() and filecmp.cmp(path, new, shallow=False)):
        raise ConfigError(
            f"the studies of the unfinished run in {path.parent} have changed (compare {path.name} "
            f"and {new.name}): choose another folder with --out, or remove it"
        )
    new.replace(path)
