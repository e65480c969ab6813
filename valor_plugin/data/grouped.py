"""Rows of tables, brought together by study on disk: memory does not grow with them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from valor_plugin.data.splits import study_key

_CACHE = -16384  # ours: kB of memory for SQLite, negative by its convention


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
        self._base.execute("CREATE TABLE row (key TEXT, study TEXT, content TEXT)")
        self._base.executemany(
            "INSERT INTO row VALUES (?, ?, ?)",
            ((study_key(study), study, json.dumps(row)) for study, row in rows),
        )
        self._base.execute("CREATE INDEX by_key ON row (key)")
        self._base.commit()

    def split(self, splits: Iterable[tuple[str, str]]) -> None:
        """Key and split of studies; of two entries of one study the first stands."""
        self._base.execute("CREATE TABLE split (key TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self._base.executemany("INSERT OR IGNORE INTO split VALUES (?, ?)", splits)
        self._base.commit()

    def __len__(self) -> int:
        """How many studies there are."""
        [count] = self._base.execute("SELECT count(DISTINCT key) FROM row").fetchone()
        return count

    def __iter__(self) -> Iterator[tuple[str, str | None, list[dict[str, Any]]]]:
        """Id, split by `split`, and rows of every study, in the order in which they were filled."""
        found = self._base.execute(
            "SELECT row.key, study, name, content FROM row LEFT JOIN split USING (key) "
            "ORDER BY key, row.rowid"
        )
        for _, rows in groupby(found, key=lambda row: row[0]):
            (_, study, split, content), *others = rows
            yield study, split, [json.loads(content), *(json.loads(row[3]) for row in others)]

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
