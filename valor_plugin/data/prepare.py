"""From a dataset as it was downloaded to studies files: what `openrlhf prepare` does.

    OUT/train.jsonl, validate.jsonl, test.jsonl   or studies.jsonl, where a dataset has no splits
    OUT/rejected.jsonl                            studies that cannot be used, or are left out
    OUT/card.json, README.md                      what was made of what; the README is also the card
                                                  by which Hugging Face `datasets` loads the folder

The tables are brought together by study on disk; batches of studies are completed by several
processes, each into a file of its own under OUT/.prepare; at the end these are read twice, to see
what training and test share, and to write. So memory does not grow with the number of studies, and
a run that was cut short goes on behind its last whole batch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sqlite3
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from reward_sdk.errors import ConfigError
from valor_plugin import __version__
from valor_plugin.data.card import CARD, Tally, write_card
from valor_plugin.data.datasets import Found, dataset
from valor_plugin.data.drafts import KEPT_OUT, Choices, Rejected, complete
from valor_plugin.data.grouped import Grouped, Leaks
from valor_plugin.data.schema import SPLITS, UNSPLIT
from valor_plugin.data.splits import read_patients, read_splits
from valor_plugin.data.studies import remember

_BATCH = 1000  # ours: studies that one process completes at a time
_AHEAD = 3  # ours: batches a process that are on their way
_WORK, _GROUPED = ".prepare", "grouped.sqlite"


def prepare(
    name: str, src: Path, out: Path, choices: Choices, processes: int, force: bool = False
) -> tuple[dict[str, Any], bool]:
    """Prepares a dataset, or finds that the very same was prepared before.

    Args:
        name: name of the dataset, a key of `datasets.DATASETS`.
        src: folder with the dataset as it was downloaded.
        out: folder to write to.
        choices: what the user decides.
        processes: how many processes complete studies, at least 1.
        force: whether what was prepared into the folder before is made anew.

    Returns:
        The content of card.json, that is what `card.Tally.card` gives and, under "written", the
        SHA-256 of each studies file; and whether it was there before.

    Raises:
        ConfigError: something that is needed is absent or cannot be read, the folder holds
            something else, or patients are in two splits.
    """
    found = dataset(name).find(src)
    out = out.resolve()
    wanted = _fingerprint(name, found, choices)
    done = _finished(out, wanted, force)
    if done is not None and not (out / _WORK).exists():
        return done, True
    with _held(out) as work:
        if (done := _finished(out, wanted, force)) is not None:  # by who held it, or was killed
            shutil.rmtree(work)
            return done, True
        if force or _read(work / "fingerprint.json") != wanted:
            for file in work.iterdir():
                if file.name != ".lock":
                    file.unlink()
            (work / "fingerprint.json").write_text(json.dumps(wanted), encoding="utf-8")
        try:
            keep_out = read_patients(choices.keep_out) if choices.keep_out else frozenset()
            _group(name, found, choices, work)
            batches = _complete(name, found, choices, keep_out, work, processes)
            card = _finish(wanted, choices, out, batches)
        except sqlite3.Error as error:
            raise ConfigError(f"{work}: {error}") from None
        shutil.rmtree(work)
    return card, False


def _fingerprint(name: str, found: Found, choices: Choices) -> dict[str, Any]:
    """What a result depends on, as JSON has it. Of a folder it says the place alone: to look at all
    that is in it takes as long as to prepare it."""

    def state(path: Path) -> list[Any]:
        status = path.stat()
        place = str(path.resolve())
        return [place] if path.is_dir() else [place, status.st_size, status.st_mtime_ns]

    files = dict(found) | {
        key: path for key in ("splits", "keep_out") if (path := getattr(choices, key)) is not None
    }
    try:
        read = {key: state(path) for key, path in sorted(files.items())}
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    made = {key: value for key, value in asdict(choices).items() if key not in files}
    return {"dataset": name, "choices": made, "read": read, "version": __version__}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _finished(out: Path, wanted: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The card of the folder, if it is of exactly this.

    Raises:
        ConfigError: the folder holds something else, which is not to be replaced.
    """
    card = _read(out / CARD)
    if not isinstance(card, dict):
        others = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if others and _WORK not in others:
            raise ConfigError(f"{out} is not empty, and nothing was prepared into it: name another")
        return None
    if force:
        return None
    if card.get("made") == wanted:
        whole = all((out / f"{split}.jsonl").exists() for split in card.get("splits", ()))
        return card if whole else None
    before = card.get("made") or {}
    other = [key for key in wanted if before.get(key) != wanted[key]]
    raise ConfigError(
        f"{out} holds what was prepared otherwise (other: {', '.join(other)}): name a new folder, "
        "or replace it with --force"
    )


@contextmanager
def _held(out: Path) -> Iterator[Path]:
    """The folder for what is not finished, kept from other processes."""
    work = out / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is preparing {out}") from None
        yield work
    finally:
        os.close(lock)


def _group(name: str, found: Found, choices: Choices, work: Path) -> None:
    """Brings the rows of all tables together by study, unless that was done."""
    if (work / _GROUPED).exists():
        return
    part = work / f"{_GROUPED}.part"
    part.unlink(missing_ok=True)
    with closing(Grouped(part)) as grouped:
        grouped.split(read_splits(choices.splits) if choices.splits is not None else ())
        rows = tqdm(dataset(name).rows(found), "reading the tables", unit=" rows", disable=None)
        grouped.fill(rows)
        if not len(grouped):
            raise ConfigError(f"{', '.join(map(str, found.values()))}: there is no study")
    part.rename(work / _GROUPED)


def _complete(
    name: str,
    found: Found,
    choices: Choices,
    keep_out: frozenset[str],
    work: Path,
    processes: int,
) -> list[Path]:
    """The files of all batches, of which those that are not there yet are made."""
    files: list[Path] = []
    ahead: deque[tuple[Future[None], int]] = deque()
    with (
        closing(Grouped(work / _GROUPED)) as grouped,
        tqdm(total=len(grouped), desc="studies", unit=" studies", disable=None) as bar,
        _pool(processes, (name, found, choices, keep_out, work.parent)) as pool,
    ):
        studies = iter(grouped)
        try:
            while batch := list(islice(studies, _BATCH)):
                files.append(work / f"{len(files):06}.jsonl")
                if files[-1].exists():
                    bar.update(len(batch))
                    continue
                # A process that is started here inherits what is blocked: Ctrl-C is for this one.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                ahead.append((pool.submit(_write, batch, files[-1]), len(batch)))
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                while len(ahead) > _AHEAD * processes or (ahead and ahead[0][0].done()):
                    _await(ahead, bar)
            while ahead:
                _await(ahead, bar)
        except BrokenProcessPool:
            raise ConfigError(
                "a process that completes studies was killed, perhaps for want of memory: the same "
                "command goes on where it was, with fewer --processes"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return files


def _pool(processes: int, job: tuple[Any, ...]) -> Executor:
    """So many processes that know what they work at; for one this process will do."""
    if processes == 1:
        return ThreadPoolExecutor(1, initializer=_begin, initargs=job)
    context = get_context("spawn")  # a fork of a process with threads may hang
    return ProcessPoolExecutor(processes, context, _begin, job)


def _await(ahead: deque[tuple[Future[None], int]], bar: tqdm) -> None:
    future, count = ahead.popleft()
    future.result()
    bar.update(count)


_job: tuple[str, Found, Choices, frozenset[str], Path]


def _begin(*job: Any) -> None:
    """Tells a process what it works at."""
    global _job
    _job = job  # type: ignore[assignment]
    if parent := parent_process():  # None in a thread of the command itself

        def follow() -> None:
            parent.join()  # it was killed, and could not say so
            os._exit(1)

        Thread(target=follow, daemon=True).start()


def _write(batch: list[tuple[str, str | None, list[dict[str, Any]]]], path: Path) -> None:
    """Completes a batch of studies; the file is there when it is whole."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for study, split, rows in batch:
            file.write(json.dumps(_entry(study, split, rows)) + "\n")
    part.rename(path)


def _entry(study: str, split: str | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A completed study, or why it was rejected."""
    name, found, choices, keep_out, out = _job
    try:
        draft = dataset(name).draft(study, rows, found)
        return asdict(complete(study, draft, split, name, choices, keep_out, out))
    except Rejected as error:
        reason, detail = error.reason, error.detail
    except Exception as error:  # whatever a stranger's data does: it is one study, and it is named
        reason, detail = f"{type(error).__name__} while it was read", str(error)
    return {"rejected": {"id": study, "reason": reason, "detail": detail}}


def _entries(batches: list[Path]) -> Iterator[Any]:
    for path in batches:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _finish(
    made: dict[str, Any], choices: Choices, out: Path, batches: list[Path]
) -> dict[str, Any]:
    """Writes the files of the folder, and gives the card."""
    database = out / _WORK / "leaks.sqlite"
    database.unlink(missing_ok=True)
    kept_out, named = 0, set()
    with closing(Leaks(database)) as leaks:
        for entry in _entries(batches):
            if "row" not in entry:
                kept_out += entry["rejected"]["reason"] == KEPT_OUT
            elif split := entry["row"]["split"]:
                named.add(split)
                leaks.add(entry["row"]["patient"], split, entry["digest"])
        if choices.keep_out is not None and not kept_out:
            raise ConfigError(
                f"{choices.keep_out}: no study of training or validation is of a patient in it: "
                "are these ids of this dataset?"
            )
        listed = out / "patients-in-two-splits.txt"
        listed.unlink(missing_ok=True)
        if shared := leaks.patients():
            listed.write_text("".join(f"{name}: {splits}\n" for name, splits in shared), "utf-8")
            raise ConfigError(
                f"{len(shared):,} patients are in more than one split, which spoils every number "
                f"that is measured on them; they are listed in {listed}. Give --splits with a file "
                "that keeps patients apart"
            )
        tally = Tally()
        for old in (CARD, *(f"{name}.jsonl" for name in (*SPLITS, UNSPLIT))):
            (out / old).unlink(missing_ok=True)
        with _Writers(out) as writers:
            for entry in _entries(batches):
                row: Any = entry.get("row")
                rejected = entry.get("rejected")
                if row and named and not row["split"]:
                    rejected = {"id": row["id"], "reason": "in no split", "detail": ""}
                if rejected:
                    tally.reject(rejected["reason"])
                    writers.write("rejected", rejected)
                    continue
                if row["split"] in ("validate", "test") and entry["digest"] is not None:
                    row["repeats_train"] = leaks.repeats(entry["digest"])
                tally.add(entry)
                writers.write(row["split"] or UNSPLIT, row)
        patients = {split: leaks.count(split) for split in SPLITS}
    hashes = {key: _sha256(Path(state[0])) for key, state in made["read"].items() if len(state) > 1}
    card = tally.card(made, hashes, patients)
    if not card["splits"]:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in card["rejected"].items())
        raise ConfigError(
            f"no study could be written: {reasons}. They are listed in {out / 'rejected.jsonl'}"
        )
    card["written"] = {split: _sha256(out / f"{split}.jsonl") for split in card["splits"]}
    if choices.check_images:
        for split, counts in card["splits"].items():
            remember(out / f"{split}.jsonl", counts["studies"])
    write_card(card, out)
    return card


class _Writers:
    """Files of JSON lines by name, which are there under their names when all are whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _Writers:
        self.write("rejected", None)
        return self

    def write(self, name: str, row: dict[str, Any] | None) -> None:
        """Adds a row to the file of this name; None adds nothing, but makes the file."""
        if name not in self._files:
            part = self._folder / _WORK / f"{name}.part"
            self._files[name] = part.open("w", encoding="utf-8")
        if row is not None:
            self._files[name].write(json.dumps(row) + "\n")

    def __exit__(self, kind: object, *_: object) -> None:
        for name, file in self._files.items():
            file.close()
            if kind is None:
                Path(file.name).rename(self._folder / f"{name}.jsonl")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
