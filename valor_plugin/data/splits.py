"""Which split a study belongs to by a file of somebody else, and patients who must not train."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import study_key
from valor_plugin.data import tables
from valor_plugin.data.schema import Split, split_of

_IU = re.compile(r"(CXR\d+)(_.*)?", re.IGNORECASE)
_PATIENT = re.compile(r"\bp(\d{8})\b", re.IGNORECASE)
_STUDY_COLUMNS, _PATIENT_COLUMNS = ("study_id", "id", "study"), ("subject_id", "patient", "path")


def split_key(study: str) -> str:
    """What the spellings of one study's id in files of splits have in common: those that
    `reward_sdk.jsonl.study_key` knows and, of IU X-ray, R2Gen's.

    >>> split_key("CXR2384_IM-0942") == split_key("CXR2384")
    True
    """
    iu = _IU.fullmatch(study)
    return iu[1].upper() if iu else study_key(study)


def patient_key(patient: str) -> str:
    """What spellings of one patient's id have in common, "p10000032", "10000032", "10000032.0"."""
    inside = _PATIENT.search(patient)
    return inside[1] if inside else patient.strip().removesuffix(".0")


def read_splits(path: Path) -> Iterator[tuple[str, Split]]:
    """Key and split of each study of a file: R2Gen's annotation.json (lists by split), ReXrank's
    JSON (objects by study id, with `split`), or a CSV file with `study_id` or `id` and `split`.

    Raises:
        ConfigError: the file is of none of these forms, or has a split of an unknown name.
    """
    for place, study, name in _rows(path):
        try:
            split = split_of(name) if isinstance(name, str) else None
        except ValueError:
            split = None
        if split is None:  # whatever stands there stays out of the message
            raise ConfigError(f"{place}: the split is none of train, validate and test")
        yield split_key(study), split


def _rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Place, study and split of every entry."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if suffix == "csv":
        found = tables.csv_rows(path, "split")
        for number, row in enumerate(found, 2):
            name = next((row[column] for column in _STUDY_COLUMNS if column in row), None)
            if name is None:
                raise ConfigError(f"{path} has no column study_id or id")
            yield f"{path}, line {number}", name, row["split"]
        return
    if suffix != "json":
        raise ConfigError(f"{path}: splits are read from .json and .csv files, not .{suffix}")
    if is_r2gen(path):
        for split, row in r2gen_rows(path):
            yield f"{path}: {split}", str(row.get("study_id") or row["id"]), split
        return
    for study, row in tables.json_pairs(path):
        if not isinstance(row, dict) or "split" not in row:
            raise ConfigError(
                f"{path} is neither R2Gen's annotation.json nor of ReXrank's form: it has no lists "
                "under train, val and test, and an entry has no 'split'"
            )
        yield str(path), study, row["split"]


_R2GEN = ("train", "val", "test")


def is_r2gen(path: Path) -> bool:
    """Whether a JSON file is one of R2Gen's, lists of studies by split."""
    return any(key in _R2GEN for key in tables.json_keys(path))


def r2gen_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split and entry of everything in R2Gen's annotation.json.

    Raises:
        ConfigError: the file cannot be read, or an entry has no `id`.
    """
    for split in _R2GEN:
        for number, row in enumerate(tables.json_items(path, under=split), 1):
            if not isinstance(row, dict) or not row.get("id"):
                raise ConfigError(f"{path}: {split}, entry {number} has no 'id'")
            yield split, row


def read_patients(path: Path) -> frozenset[str]:
    """Keys of the patients in a file: a CSV file with one of the columns `subject_id`, `patient` or
    `path` (as MS-CXR has it, files/p10/p10000032/...), or a text file with one id a line.

    Raises:
        ConfigError: the file cannot be read, or names no patient.
    """
    if path.name.removesuffix(".gz").endswith(".csv"):
        found = set()
        for row in tables.csv_rows(path):
            column = next((name for name in _PATIENT_COLUMNS if name in row), None)
            if column is None:
                raise ConfigError(f"{path} has no column {', '.join(_PATIENT_COLUMNS)}")
            found.add(patient_key(row[column]))
    else:
        with tables.opened(path) as file:
            lines = file.read().decode("utf-8-sig", "replace").splitlines()
        found = {patient_key(line) for line in lines}
    found.discard("")
    if not found:
        raise ConfigError(f"{path} names no patient")
    return frozenset(found)
