"""A run's folder: its configuration, its last checkpoint, and a lock."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pyro_vae._files import LARGEST_JSON, RESTORE, read_file, read_json, replace_file
from pyro_vae.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

__all__ = ["Run", "last_checkpoint"]

CONFIG, LAST, CHECKPOINTS, LOCK = "config.json", "last.json", "checkpoints", "lock"
FREE_TO_CHANGE = {"num_epochs", "versions", "compile", "undescribed"}
"""Settings that a resumed run may have otherwise, and the reason why a VAE has no description."""
SHARE_OF_TIME = 0.02
"""Of training that may be spent on writing checkpoints."""


class Run:
    """A folder that one process at a time trains in.

    A checkpoint is a folder of its own, complete before `last.json` names it: a process that is killed at any moment
    leaves the last one as it was.
    """

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any], resume: bool | Literal["auto"]) -> None:
        self.folder = Path(folder)
        if resume not in (True, False, "auto"):
            raise ValueError(f'resume: expected True, False or "auto"; got {resume!r}; pass one of these.')
        is_there = (self.folder / CONFIG).exists()
        if resume is True and not is_there:
            raise ValueError(f"run: expected a folder with a run to resume; got {str(folder)!r}; leave resume out.")
        if resume is False and self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"run: expected a new or an empty folder; got {str(folder)!r}, which is not; pass resume=True to go "
                "on with the run in it, or name another."
            )
        try:
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            self.lock = _Lock(self.folder / LOCK)
        except OSError as error:
            raise ValueError(
                f"run: expected a folder that can be written to; got {str(folder)!r} ({error.strerror}); name another."
            ) from error
        try:
            if is_there:
                _refuse_other_config(self.folder / CONFIG, config)
            else:
                replace_file(self.folder / CONFIG, json.dumps(config, indent=1).encode())
        except BaseException:
            self.lock.release()
            raise
        self.saved_at, self.cost = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether another checkpoint costs little, beside the time since the last."""
        return self.cost <= SHARE_OF_TIME * (time.monotonic() - self.saved_at)

    def last(self) -> Checkpoint | None:
        """Read the last checkpoint, if there is one."""
        return last_checkpoint(self.folder) if (self.folder / LAST).exists() else None

    def save(self, checkpoint: Checkpoint, name: str) -> None:
        """Write a checkpoint, name it as the last, and remove those before."""
        started = time.monotonic()
        while (self.folder / CHECKPOINTS / name).exists():  # never in the place of one that `last.json` may name
            name += "-again"
        sha256 = write_checkpoint(self.folder / CHECKPOINTS / name, checkpoint)
        last = {"checkpoint": name, "manifest": sha256, "config": _sha256(self.folder / CONFIG)}
        replace_file(self.folder / LAST, json.dumps(last).encode())
        for other in (self.folder / CHECKPOINTS).iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def close(self) -> None:
        """Let other processes in."""
        self.lock.release()


def last_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint that `last.json` names, if the configuration is as it was when that was written."""
    last = read_json(folder / LAST)
    name, sha256 = last.get("checkpoint"), last.get("manifest")
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or not isinstance(sha256, str):
        raise ValueError(
            f"{folder / LAST}: expected the name of a checkpoint, and the sha256 of its manifest; got {last!r}; name "
            "one that is there."
        )
    if _sha256(folder / CONFIG) != last.get("config"):
        raise ValueError(
            f"{folder / CONFIG}: expected sha256 {str(last.get('config'))[:12]}, as with the last checkpoint; got "
            f"{_sha256(folder / CONFIG)[:12]}; {RESTORE}."
        )
    return read_checkpoint(folder / CHECKPOINTS / name, sha256)


def _refuse_other_config(path: Path, config: dict[str, Any]) -> None:
    others = [*_differences("", json.loads(json.dumps(config)), read_json(path))]
    if others:
        raise ValueError(
            f"run: expected the settings that the run in {str(path.parent)!r} was started with; got "
            f"{'; '.join(others)[:600]}; pass the same, or name another folder."
        )


def _differences(path: str, config: Any, found: Any) -> Iterator[str]:
    """Yield what is set otherwise, the innermost entries by their path."""
    if isinstance(config, dict) and isinstance(found, dict):
        for key in sorted((config.keys() | found.keys()) - FREE_TO_CHANGE):
            yield from _differences(f"{path}.{key}" if path else key, config.get(key), found.get(key))
    elif config != found:
        yield f"{path}={config!r} instead of {found!r}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_file(path, LARGEST_JSON)).hexdigest()


class _Lock:
    """A file that one process holds; the system frees it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        import fcntl

        self.file = path.open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise ValueError(
                f"run: expected a folder that no other process trains in; got {str(path.parent)!r}, which one does; "
                "wait for it, or name another."
            ) from None

    def release(self) -> None:
        self.file.close()
