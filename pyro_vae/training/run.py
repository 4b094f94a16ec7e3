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
from typing import Any, Literal, NamedTuple

from pyro_vae._files import LARGEST_JSON, as_json, read_own_file, refuse, replace_file, sha256_of
from pyro_vae.training.checkpoint import FORMAT, RESTORE, Checkpoint, of_our_format, read_checkpoint, write_checkpoint
from pyro_vae.training.lock import Lock

__all__ = ["Run", "last_checkpoint", "read_config"]

CONFIG, LAST, CHECKPOINTS, LOCK = "config.json", "last.json", "checkpoints", "lock"
FREE_TO_CHANGE = {"num_epochs", "versions", "compile", "undescribed"}
"""Settings that a resumed run may have otherwise, and the reason why a VAE has no description."""
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
        self.saved = _last(self.folder).checkpoint
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
        self._name(_Last(name, sha256, _sha256_of_file(self.folder / CONFIG)))
        self._remove_leftovers()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def close(self) -> None:
        """Let other processes in."""
        self.lock.release()

    def _is_a_run(self, resume: bool | Literal["auto"]) -> bool:
        """Tell whether the folder has a run, or raise an error if that is not what was asked for."""
        is_there = os.path.lexists(self.folder / CONFIG)
        if not is_there and os.path.lexists(self.folder / LAST) and _last(self.folder).checkpoint is not None:
            refuse(self.folder / CONFIG, f"the settings of the run that {LAST} belongs to", "no file", RESTORE)
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
        content = as_json({"format": FORMAT, **config})
        if is_there:
            _refuse_other_config(self.folder, json.loads(content))
        else:
            with self._as_a_folder_to_write_to():
                self._name(_Last(None, None, sha256_of(content)))
                replace_file(self.folder / CONFIG, content)

    def _name(self, last: _Last) -> None:
        replace_file(self.folder / LAST, as_json({"format": FORMAT, **last._asdict()}))
        self.saved = last.checkpoint

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


def read_config(folder: Path) -> dict[str, Any]:
    """Read what a run was started with."""
    return of_our_format(folder / CONFIG, read_own_file(folder / CONFIG, LARGEST_JSON, RESTORE))


def last_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint that `last.json` names, if the configuration is as it was when that was written."""
    last = _last(folder)
    if _sha256_of_file(folder / CONFIG) != last.config:
        refuse(
            folder / CONFIG, f"sha256 {str(last.config)[:12]}, as {LAST} says",
            _sha256_of_file(folder / CONFIG)[:12], RESTORE,
        )  # fmt: skip
    if last.checkpoint is None or last.manifest is None:
        refuse(folder / LAST, "the name of a checkpoint", "none, as no epoch was finished", "train on")
    if not (folder / CHECKPOINTS / last.checkpoint).is_dir():
        refuse(folder / LAST, f"the name of a folder in {CHECKPOINTS}", repr(last.checkpoint), RESTORE)
    return read_checkpoint(folder / CHECKPOINTS / last.checkpoint, last.manifest)


class _Last(NamedTuple):
    """What `last.json` says: the name of the last checkpoint, if there is one, and sha256 of files."""

    checkpoint: str | None
    manifest: str | None
    config: str


def _last(folder: Path) -> _Last:
    found = of_our_format(folder / LAST, read_own_file(folder / LAST, LARGEST_JSON, RESTORE))
    name, manifest, config = (found.get(field) for field in _Last._fields)
    is_new = name is None and manifest is None
    is_named = isinstance(name, str) and isinstance(manifest, str) and re.fullmatch(NAME, name, re.ASCII) is not None
    if found.keys() != {"format", *_Last._fields} or not isinstance(config, str) or not (is_new or is_named):
        refuse(
            folder / LAST, "the name of a checkpoint, and the sha256 of its manifest and of the settings", repr(found),
            "name one that is there",
        )  # fmt: skip
    return _Last(name, manifest, config)


def _sha256_of_file(path: Path) -> str:
    return sha256_of(read_own_file(path, LARGEST_JSON, RESTORE))


def _refuse_other_config(folder: Path, config: dict[str, Any]) -> None:
    others = [*_differences("", config, read_config(folder))]
    if others:
        raise ValueError(
            f"run: expected the settings that the run in {str(folder)!r} was started with; got "
            f"{'; '.join(others)[:600]}; pass the same, or name another folder."
        )


def _differences(path: str, config: Any, found: Any) -> Iterator[str]:
    """Yield what is set otherwise, the innermost entries by their path."""
    if isinstance(config, dict) and isinstance(found, dict):
        for key in sorted((config.keys() | found.keys()) - FREE_TO_CHANGE):
            yield from _differences(f"{path}.{key}" if path else key, config.get(key), found.get(key))
    elif config != found:
        yield f"{path}={config!r} instead of {found!r}"
