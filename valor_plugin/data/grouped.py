"""Rows of tables, brought together by study on disk: memory does not grow with them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from reward_sdk.errors import ConfigError
from valor_plugin.data.splits import split_key

_CACHE = -16384  # ours: kB of memory for SQLite, negative by its convention


def _text(name: str) -> str:
    """A name as SQLite can keep it: what is no Unicode, as in names of files, is written out."""
    return name.encode("utf-8", "backslashreplace").decode()


class Grouped:
    """Rows by the study that they belong to, in a file of SQLite."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it."""
        self._base = sqlite3.connect(path)
        self._base.execute(f"PRAGMA cache_size={_CACHE}")
        self._base.execute("PRAGMA journal_mode=OFF")
        self._base.execute("PRAGMA synchronous=OFF")  # a file that is not whole is made anew

    def fill(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Study and row, in any order."""
        self._base.execute("CREATE TABLE row (study TEXT, key TEXT, content TEXT)")
        self._base.executemany(
            "INSERT INTO row VALUES (?, ?, ?)",
            ((name := _text(study), split_key(name), json.dumps(row)) for study, row in rows),
        )
        self._base.execute("CREATE INDEX by_study ON row (study)")
        self._base.commit()

    def split(self, splits: Iterable[tuple[str, str]]) -> None:
        """Key and split of studies.

        Raises:
            ConfigError: studies are in several splits; says how many.
        """
        self._base.execute(
            "CREATE TABLE split (key TEXT, name TEXT, PRIMARY KEY (key, name)) WITHOUT ROWID"
        )
        self._base.executemany(
            "INSERT OR IGNORE INTO split VALUES (?, ?)",
            ((_text(key), name) for key, name in splits),
        )
        self._base.commit()
        [several] = self._base.execute(
            "SELECT count(*) FROM (SELECT key FROM split GROUP BY key HAVING count(*) > 1)"
        ).fetchone()
        if several:
            raise ConfigError(f"the file of splits has {several:,} studies in more than one split")

    def __len__(self) -> int:
        """How many studies there are."""
        [count] = self._base.execute("SELECT count(DISTINCT study) FROM row").fetchone()
        return count

    def __iter__(self) -> Iterator[tuple[str, str | None, list[dict[str, Any]]]]:
        """Id, split by `split`, and rows of every study: studies by their ids, the rows of each in
        the order in which they were filled."""
        found = self._base.execute(
            "SELECT study, name, content FROM row LEFT JOIN split USING (key) "
            "ORDER BY study, row.rowid"
        )
        for study, rows in groupby(found, key=lambda row: row[0]):
            (_, split, content), *others = rows
            yield study, split, [json.loads(content), *(json.loads(row[2]) for row in others)]

    def close(self) -> None:
        """Closes the file."""
        self._base.close()


class Leaks:
    """What occurs in which splits: patients, and reports word for word."""

    def __init__(self, path: Path) -> None:
        """Opens a file of SQLite, or makes it."""
        self._base = sqlite3.connect(path)
        self._base.execute(f"PRAGMA cache_size={_CACHE}")
        self._base.execute("CREATE TABLE patient (name TEXT, split TEXT, UNIQUE (name, split))")
        self._base.execute("CREATE TABLE text (digest TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, patient: str | None, split: str, digest: str | None) -> None:
        """A study's patient, its split, and a digest of its report; None for what it lacks."""
        if patient is not None:
            self._base.execute("INSERT OR IGNORE INTO patient VALUES (?, ?)", (patient, split))
        if digest is not None and split == "train":
            self._base.execute("INSERT OR IGNORE INTO text VALUES (?)", (digest,))

    def patients(self) -> list[tuple[str, str]]:
        """Each patient of more than one split, with the splits."""
        return self._base.execute(
            "SELECT name, group_concat(split, ', ') FROM patient GROUP BY name HAVING count(*) > 1"
        ).fetchall()

    def count(self, split: str) -> int:
        """How many patients a split has."""
        found = self._base.execute("SELECT count(*) FROM patient WHERE split = ?", (split,))
        return found.fetchone()[0]

    def repeats(self, digest: str) -> bool:
        """Whether the training split has a report of this digest."""
        return bool(self._base.execute("SELECT 1 FROM text WHERE digest = ?", (digest,)).fetchone())

    def close(self) -> None:
        """Closes the file."""
        self._base.close()
