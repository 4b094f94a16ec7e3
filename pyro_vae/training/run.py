"""A run's folder: its configuration, its last checkpoint, and a lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pyro_vae._files import as_json, refuse, replace_file
from pyro_vae.training.checkpoint import FORMAT, RESTORE, Checkpoint, read_checkpoint, read_json, write_checkpoint
from pyro_vae.training.lock import Lock

__all__ = ["Run", "last_checkpoint"]

CONFIG, LAST, CHECKPOINTS, LOCK = "config.json", "last.json", "checkpoints", "lock"
FREE_TO_CHANGE = {"num_epochs", "versions", "compile"}
"""Settings that a resumed run may have otherwise."""
SHARE_OF_TIME = 0.02
"""Of training that may be spent on writing checkpoints."""
NAME = r"step-\d+(-again)*"
UNFINISHED = r"\.(config|last)\.json\.\d+"


class Run:
    """A folder that one process at a time trains in.

    A checkpoint is a folder of its own, complete before `last.json` names it: a process that is killed at any moment
    leaves the last one as it was. `last.json` is there from the start, and before `config.json`, which makes the folder
    a run: that one of them is missing is damage, and never a new start.
    """

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any], resume: bool | Literal["auto"]) -> None:
        self.folder = Path(folder)
        if resume not in (True, False, "auto"):
            raise ValueError(f'resume: expected True, False or "auto"; got {resume!r}; pass one of these.')
        with self._as_a_folder_to_write_to():
            self._is_a_run(resume)
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            self.lock = Lock(self.folder / LOCK)
        try:
            self._start(config, self._is_a_run(resume))  # once more: another process may have been faster
        except BaseException:
            self.lock.release()
            raise
        self.saved_at, self.cost = time.monotonic(), 0.0

    saved: str | None = None
    """The name of the last checkpoint."""

    @property
    def is_due(self) -> bool:
        """Whether another checkpoint costs little, beside the time since the last."""
        return self.cost <= SHARE_OF_TIME * (time.monotonic() - self.saved_at)

    def last(self) -> Checkpoint | None:
        """Read the last checkpoint, if there is one, and remove what killed processes left."""
        self.saved, _ = _named(self.folder)
        checkpoint = None if self.saved is None else last_checkpoint(self.folder)
        self._remove_leftovers()
        return checkpoint

    def save(self, checkpoint: Checkpoint, name: str) -> None:
        """Write a checkpoint, name it as the last, and remove those before.

        Raises:
            OSError: if that fails; the last checkpoint is then the one before, or this one, complete.
        """
        started = time.monotonic()
        if not self.lock.is_in_place:
            raise FileNotFoundError(f"{str(self.folder)!r} is no longer the folder that this process began to train in")
        while os.path.lexists(self.folder / CHECKPOINTS / name):  # never in the place of one that `last.json` may name
            name += "-again"
        sha256 = write_checkpoint(self.folder / CHECKPOINTS / name, checkpoint)
        self._name(name, sha256)
        self._remove_leftovers()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def close(self) -> None:
        """Let other processes in."""
        self.lock.release()

    def _is_a_run(self, resume: bool | Literal["auto"]) -> bool:
        """Tell whether the folder has a run, or raise an error if that is not what was asked for."""
        is_there = os.path.lexists(self.folder / CONFIG)
        if resume is True and not is_there:
            raise ValueError(
                f"run: expected a folder with a run to resume; got {str(self.folder)!r}; leave resume out."
            )
        found = os.listdir(self.folder) if self.folder.is_dir() else []
        is_free = all(name in (CHECKPOINTS, LOCK, LAST) or re.fullmatch(UNFINISHED, name) for name in found)
        if resume is False and not is_free:
            raise ValueError(
                f"run: expected a new or an empty folder; got {str(self.folder)!r}, which is not; pass resume=True to "
                "go on with the run in it, or name another."
            )
        return is_there

    def _start(self, config: dict[str, Any], is_there: bool) -> None:
        if is_there:
            _refuse_other_config(self.folder / CONFIG, config)
        elif os.path.lexists(self.folder / LAST) and _named(self.folder)[0] is not None:
            refuse(self.folder / CONFIG, f"the settings of the run that {LAST} belongs to", "no file", RESTORE)
        else:
            with self._as_a_folder_to_write_to():
                self._name(None, None)
                replace_file(self.folder / CONFIG, as_json({"format": FORMAT, **config}))

    def _name(self, name: str | None, sha256: str | None) -> None:
        replace_file(self.folder / LAST, as_json({"format": FORMAT, "checkpoint": name, "manifest": sha256}))
        self.saved = name

    def _remove_leftovers(self) -> None:
        """Remove all checkpoints but the last, and files that were not finished."""
        with suppress(OSError):  # which take room, and do no harm
            for path in (self.folder / CHECKPOINTS).iterdir():
                if path.name != self.saved and re.fullmatch(rf"{NAME}|\.{NAME}\.\d+", path.name):
                    shutil.rmtree(path, ignore_errors=True)
            for path in self.folder.iterdir():
                if re.fullmatch(UNFINISHED, path.name):
                    path.unlink()

    @contextmanager
    def _as_a_folder_to_write_to(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"run: expected a folder that no other process trains in; got {str(self.folder)!r}, which one "
                    "does; wait for it, or name another."
                ) from None
            raise ValueError(
                f"run: expected a folder that can be written to; got {str(self.folder)!r} ({error.strerror}); make "
                "room or get leave to write there, or name another."
            ) from error


def last_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint that `last.json` names."""
    name, sha256 = _named(folder)
    if name is None or sha256 is None:
        refuse(folder / LAST, "the name of a checkpoint", "none, as no epoch was finished", "train on")
    if not (folder / CHECKPOINTS / name).is_dir():
        refuse(folder / LAST, f"the name of a folder in {CHECKPOINTS}", repr(name), RESTORE)
    return read_checkpoint(folder / CHECKPOINTS / name, sha256)


def _named(folder: Path) -> tuple[str | None, str | None]:
    """Return the name of the last checkpoint and the sha256 of its manifest, if there is one."""
    found = read_json(folder / LAST)
    name, sha256 = found.get("checkpoint"), found.get("manifest")
    if found.keys() == {"format", "checkpoint", "manifest"}:
        if name is None and sha256 is None:
            return None, None
        if isinstance(name, str) and isinstance(sha256, str) and re.fullmatch(NAME, name, re.ASCII):
            return name, sha256
    refuse(
        folder / LAST, "the name of a checkpoint, and the sha256 of its manifest", repr(found),
        "name one that is there",
    )  # fmt: skip


def _refuse_other_config(path: Path, config: dict[str, Any]) -> None:
    found = read_json(path)
    config = json.loads(as_json({"format": FORMAT, **config}))
    others = [
        f"{key}={config.get(key)!r} instead of {found.get(key)!r}"
        for key in sorted(config.keys() | found.keys())
        if key not in FREE_TO_CHANGE and config.get(key) != found.get(key)
    ]
    if others:
        raise ValueError(
            f"run: expected the settings that the run in {str(path.parent)!r} was started with; got "
            f"{'; '.join(others)[:600]}; pass the same, or name another folder."
        )
