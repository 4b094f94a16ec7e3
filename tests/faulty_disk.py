"""A disk that fails, or a process that ends, at one of the operations on files that some code does."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from fuzz import as_plain

from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.run import Run, last_checkpoint

FREEING = ("unlink", "rmdir")
CALLS = ("mkdir", "rename", "replace", "open", "fsync", *FREEING)


class Operations:
    """Counts operations on files, and calls `act` at the one that is `at`; a write is two, its halves."""

    def __init__(self, act: Callable[[str], None], at: int | None = None) -> None:
        self.act, self.at = act, at
        self.num_operations = self.num_bytes = 0
        self.names: list[str] = []

    def note(self, name: str) -> None:
        self.num_operations += 1
        self.names.append(name)
        if self.num_operations == self.at:
            self.act(name)

    @contextmanager
    def watched(self) -> Iterator["Operations"]:
        """Count inside of a `with`."""
        calls = {name: getattr(os, name) for name in CALLS}
        patches = [patch.object(os, name, self._counted(name, call)) for name, call in calls.items()]
        patches.append(patch.object(io, "open", self._opened(io.open)))
        for each in patches:
            each.start()
        try:
            yield self
        finally:
            for each in patches:
                each.stop()

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note(name)
            return call(*args, **kwargs)

        return counted

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" not in mode:
                return call(path, mode, *args, **kwargs)
            self.note("open")
            return _Written(call(path, mode, *args, **kwargs), self)

        return opened

    def write(self, file: Any, content: bytes) -> None:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            self.note("write")
            file.write(half)
            file.flush()
            self.num_bytes += len(half)


class Failing(Operations):
    """Fails with an error number at one operation, or from there on, as a disk that is full."""

    def __init__(self, number: int, at: int, for_good: bool) -> None:
        super().__init__(self._fail, at)
        self.number, self.for_good = number, for_good

    def _fail(self, name: str) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def note(self, name: str) -> None:
        super().note(name)
        is_full = self.number in (errno.ENOSPC, errno.EDQUOT)
        if self.for_good and self.num_operations > (self.at or 0) and not (is_full and name in FREEING):
            self._fail(name)


class Full(Operations):
    """Has room for so many bytes, and fails in the middle of the write that needs more."""

    def __init__(self, room: int) -> None:
        super().__init__(lambda name: None)
        self.room = room

    def write(self, file: Any, content: bytes) -> None:
        fits = content[: max(0, self.room - self.num_bytes)]
        file.write(fits)
        file.flush()
        self.num_bytes += len(fits)
        if len(fits) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Written:
    """A file whose writes are counted."""

    def __init__(self, file: Any, operations: Operations) -> None:
        self.file, self.operations = file, operations

    def write(self, content: bytes) -> int:
        self.operations.write(self.file, content)
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):
            self.file.close()


# Saves on such disks

CONFIG = {"batch_size": 10}


def checkpoint_of(step):
    weights = {"w": torch.full((50,), float(step))}
    columns = ("train_elbo", "validation_elbo", "rate", "distortion", "seconds")
    training = {
        "place": {"epoch": step, "batch": 0, "loss": 0.0, "seconds": 1.0},
        "num_steps": step,
        "history": {name: [0.5] * step for name in columns},
        "optimizer": {"w": {"state": {"step": torch.tensor(1.0)}, "group": {"lr": 0.1}, "scheduler": None}},
        "generator": torch.Generator().get_state(),
    }
    return Checkpoint(weights, training, weights)


def saved(folder, step):
    run = Run(folder, CONFIG, "auto")
    try:
        run.last()
        run.save(checkpoint_of(step), f"step-{step:09d}")
    finally:
        run.close()


def assert_saved_whole(folder, disk, act):
    """Do something on a disk that fails: either checkpoint is left, whole, and the run can go on."""
    saved(folder, 1)
    was_saved = True
    with disk.watched():
        try:
            act()
        except (OSError, ValueError) as error:
            was_saved = False
            assert any(os.strerror(n) in str(error) for n in (errno.ENOSPC, errno.EIO, errno.EROFS)), error
    found = as_plain(last_checkpoint(folder))
    assert found == as_plain(checkpoint_of(2)) or (not was_saved and found == as_plain(checkpoint_of(1)))
    saved(folder, 3)
    assert as_plain(last_checkpoint(folder)) == as_plain(checkpoint_of(3))
    assert sorted(os.listdir(folder)) == ["checkpoints", "config.json", "last.json", "lock"]
    assert os.listdir(folder / "checkpoints") == ["step-000000003"]


def operations_of(folder, act):
    counted = Operations(lambda name: None)
    saved(folder, 1)
    with counted.watched():
        act()
    return counted


def rooms_of(folder, num_bytes):
    """Return numbers of bytes: around the ends of the files of a save, and between them."""
    ends, checkpoint = [0], folder / "checkpoints" / "step-000000002"
    for name in ("weights.safetensors", "training.json", "training.safetensors", "best.safetensors", "manifest.json"):
        ends.append(ends[-1] + (checkpoint / name).stat().st_size)
    ends.append(ends[-1] + (folder / "last.json").stat().st_size)
    assert ends[-1] == num_bytes
    around = {end + step for end in ends for step in (-1, 0, 1) if end + step >= 0}
    return sorted(around | {sum(pair) // 2 for pair in pairwise(ends)})
