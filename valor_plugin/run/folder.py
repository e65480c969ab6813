"""The folder of a run: what it holds, what a restart goes on from, and when its model counts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from reward_sdk.config import parse_yaml
from reward_sdk.errors import ConfigError
from valor_plugin import records
from valor_plugin.host.saving import has_checkpoint
from valor_plugin.host.versions import TESTED, installed

_LOCK = ".lock"
_WHOLE = "whole"


def processes_of(mark: str) -> list[int]:
    """Ids of the other processes whose environment holds a text, such as a run's name."""
    wanted = mark.encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes():  # a zombie's is empty
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


class RunFolder:
    """The folder of a run, and what stands in it.

    Attributes:
        path: path of the folder, absolute.
        recipe: recipe.yaml, the resolved recipe: with every default and override.
        versions: versions.json, with the digest of the resolved recipe, the device, the time of the
            last start (UTC) and all versions that matter.
        command: command.txt, the command of the host, or of supervised fine-tuning.
        rows: train.jsonl, what is trained on, as the host or TRL reads it.
        held_out: validate.jsonl, held-out studies of supervised fine-tuning, in the same form.
        log: run.log, everything that the run's processes printed, over all starts.
        steps: steps.jsonl, the records of the steps, see `valor_plugin.records`.
        trainable: trainable.json, what of the model trains, see `valor_plugin.records`.
        failures: failures.jsonl, exceptions of the run's processes, see `valor_plugin.records`.
        rewards: rewards.json, what reward servers said of their set.
        calibration: calibration.json, that of the expert, see `valor_plugin.run.calibration`.
        tensorboard: folder of the host's TensorBoard logs.
        checkpoints: folder of what a run that was cut short goes on from
            (openrlhf.ckpt.save_steps, sft.save_every).
        unsaved: model.part, the folder of the model while it is being written.
        model: folder of the trained model, which is there when the run has ended well, and whole
            then.
        lock: descriptor of the file .lock, open while the folder is held, see `held`; else None.
    """

    lock: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path = path.resolve()
        self.recipe = path / "recipe.yaml"
        self.versions = path / "versions.json"
        self.command = path / "command.txt"
        self.rows = path / "train.jsonl"
        self.held_out = path / "validate.jsonl"
        self.log = path / "run.log"
        self.steps = path / records.STEPS
        self.trainable = path / records.TRAINABLE
        self.failures = path / records.FAILURES
        self.rewards = path / "rewards.json"
        self.calibration = path / "calibration.json"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.unsaved = path / "model.part"
        self.model = path / "model"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and keeps other runs away from it for as long as this process, or one
        that inherits `lock`, is at work.

        Raises:
            ConfigError: another run has the folder, the folder cannot be made, or `check` refuses
                it.
        """
        self.check()
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a run's folder: {error.strerror}") from None
        ours = False
        try:
            self._take_lock(self.lock)
            ours = True
            yield
        finally:
            os.close(self.lock)
            self.lock = None
            if ours and [path.name for path in self.path.iterdir()] == [_LOCK]:
                (self.path / _LOCK).unlink()  # nothing was begun
                with suppress(OSError):
                    for folder in made:
                        folder.rmdir()

    def _take_lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pids = ", ".join(map(str, self.processes())) or "of another machine"
            raise ConfigError(
                f"{self.path}: another run is writing here, its processes: {pids}. Wait for its "
                "end, end them (they stay when their command was killed), or choose another folder "
                "with --out"
            ) from None
        except OSError as error:
            click.echo(
                f"{self.path}: its file system has no locks ({error.strerror}): see to it that no "
                "other run writes here",
                err=True,
            )

    def processes(self) -> list[int]:
        """Ids of the processes on this machine that belong to a run in this folder."""
        return processes_of(f'"records":{json.dumps(str(self.path), ensure_ascii=False)}')

    def check(self) -> None:
        """Checks that a run may write here.

        Raises:
            ConfigError: the folder holds a finished run, or files that are none of a run's.
        """
        if self.model.exists():
            raise ConfigError(
                f"{self.path} holds a finished run: choose another folder with --out, or remove it"
            )
        place = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{self.path} cannot be a run's folder: {place} is no folder that can be written to"
            )
        if not self.path.is_dir() or self._is_a_runs():
            return
        if other := next((path for path in self.path.iterdir() if path.name != _LOCK), None):
            raise ConfigError(
                f"{self.path} is no run's folder and not empty, it holds {other.name}: choose a "
                "new folder with --out"
            )

    def _is_a_runs(self) -> bool:
        """By what the first file holds that a run writes."""
        return set(self._record()) - {"begun"} == {"digest", "device", "versions"}

    def _record(self) -> dict[str, Any]:
        """What versions.json holds; nothing where it is no file of a run's."""
        try:
            record = json.loads(self.versions.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def begun(self) -> str:
        """When the run was last started, as texts that sort by time; "" where that is not known."""
        return str(self._record().get("begun", ""))

    def finished(self, recipe: str) -> bool:
        """Whether a run of this recipe has ended well.

        Args:
            recipe: the resolved recipe, as `Recipe.to_yaml` gives it.

        Raises:
            ConfigError: the folder holds the finished run of another recipe; names the keys that
                differ.
        """
        if not self.model.exists():
            return False
        self._must_be_of(recipe, "a finished run")
        return True

    def checkpoint(self, step: int) -> Path:
        """The folder of supervised fine-tuning's checkpoint after a step."""
        return self.checkpoints / f"checkpoint-{step}"  # transformers' own name

    def close_checkpoint(self, step: int, best: int | None = None) -> None:
        """Marks a checkpoint of supervised fine-tuning as whole, after all else was written; then
        removes all others but one, the best or else the last.

        Args:
            step: the checkpoint's step.
            best: the step that had the lowest evaluation loss, if that is known.
        """
        new = self.checkpoint(step)
        files = [str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()]
        (new / _WHOLE).write_text("\n".join(files), encoding="utf-8")
        others = [path for path in self.checkpoints.glob("checkpoint-*") if path != new]
        others.sort(key=lambda path: (_step(path) == best, _is_whole(path), _step(path)))
        for other in others[:-1]:
            (other / _WHOLE).unlink(missing_ok=True)  # first, in case the removal breaks off
            shutil.rmtree(other, ignore_errors=True)

    def whole_checkpoint(self, step: int) -> Path:
        """The folder of supervised fine-tuning's checkpoint after a step.

        Raises:
            ConfigError: the checkpoint is not there, or files of it are missing.
        """
        folder = self.checkpoint(step)
        if not _is_whole(folder):
            raise ConfigError(
                f"{folder}, which the run needs, is missing or not whole: bring it back, or remove "
                f"{self.path} and begin anew"
            )
        return folder

    @property
    def last_checkpoint(self) -> Path | None:
        """The last whole checkpoint of supervised fine-tuning; None without any."""
        whole = filter(_is_whole, self.checkpoints.glob("checkpoint-*"))
        return max(whole, key=_step, default=None)

    @property
    def checkpoint_parts(self) -> int:
        """Between how many processes ZeRO divided the last checkpoint of supervised fine-tuning; 0
        where it did not."""
        last = self.last_checkpoint
        return 0 if last is None else len(list(last.glob("*/*_optim_states.pt")))

    def resumes(self, recipe: str) -> bool:
        """Whether a run of this recipe goes on from a checkpoint.

        Args:
            recipe: the resolved recipe, as `Recipe.to_yaml` gives it.

        Raises:
            ConfigError: the folder holds checkpoints of another recipe; names the keys that differ.
        """
        if not has_checkpoint(self.checkpoints) and self.last_checkpoint is None:
            return False
        self._must_be_of(recipe, "checkpoints of an unfinished run")
        return True

    def _must_be_of(self, recipe: str, what: str) -> None:
        there = self.recipe.read_text(encoding="utf-8") if self.recipe.is_file() else ""
        where = str(self.recipe)
        if keys := _differing(_asked(there, where), _asked(recipe, where)):
            raise ConfigError(
                f"{self.path} holds {what} whose recipe was another (compare its recipe.yaml; not "
                f"the same: {', '.join(keys)}): choose another folder with --out, or remove it"
            )

    def begin(self, recipe: str, device: str, command: str = "", resumes: bool = False) -> None:
        """Makes the folder and writes what the run is: the resolved recipe, its digest, the
        command, the time, and all versions that matter. Of an earlier start nothing stays that
        would be taken for the run's: a model that was being written and, unless the run goes on
        from a checkpoint, records and checkpoints that were not written to their end."""
        shutil.rmtree(self.unsaved, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        if not resumes:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for records_of_another in (self.steps, self.failures, self.trainable):
                records_of_another.unlink(missing_ok=True)
        found = [installed(package) for package in ("valor-rrg", "flash-attn", *TESTED)]
        record = {
            "digest": hashlib.sha256(recipe.encode()).hexdigest(),
            "device": device,
            "begun": datetime.now(UTC).isoformat(timespec="microseconds"),
            "versions": {"python": sys.version.split()[0]}
            | {package.name: package.version for package in found if package},
        }
        self.versions.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        self.recipe.write_text(recipe, encoding="utf-8")
        if command:
            self.command.write_text(f"{command}\n", encoding="utf-8")

    def finish(self) -> Path:
        """Moves the model, which is whole now, to its place."""
        return self.unsaved.rename(self.model)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and every file of it is still there."""
    mark = checkpoint / _WHOLE
    return mark.is_file() and all(
        (checkpoint / name).is_file() for name in mark.read_text(encoding="utf-8").splitlines()
    )


def _asked(text: str, where: str) -> Any:
    """What a resolved recipe asks for, on whatever devices, and however its model is named."""
    recipe = parse_yaml(text, where)
    if isinstance(recipe, dict):
        for key in ("devices", "micro_batch_size"):
            recipe.get("sft", {}).pop(key, None)
        if "model" in recipe:
            recipe["model"]["path"] = os.path.abspath(recipe["model"]["path"])
    return recipe


def _differing(one: Any, other: Any, key: str = "") -> list[str]:
    """Dotted names of the keys that two resolved recipes do not share, or not with one value."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {**one, **other}
        pairs = ((f"{key}.{name}".lstrip("."), one.get(name), other.get(name)) for name in names)
        return [found for pair in pairs for found in _differing(pair[1], pair[2], pair[0])]
    return [] if one == other else [key or "everything"]
