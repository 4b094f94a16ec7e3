"""A file that one process holds; the system frees it when the process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

__all__ = ["Lock"]


class Lock:
    """Holds a file until it is released.

    Raises:
        BlockingIOError: where another process holds it.
        OSError: where the file cannot be opened, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a+")
        try:
            take, self._let_go = _calls_of_the_system()
            take(self.file)
        except BaseException:
            self.file.close()
            raise
        _close_in_children()
        _held.add(self)

    @property
    def is_in_place(self) -> bool:
        """Whether the file that is held is the one of that name: folders can be removed, moved and replaced."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let other processes in."""
        if not self.file.closed:
            self._let_go(self.file)
            self.file.close()


_Call = Callable[[IO[str]], None]
_held: WeakSet[Lock] = WeakSet()
_is_watching = False


def _close_in_children() -> None:
    """Have the workers of a data loader close the file: they would hold it for a while after a kill."""
    global _is_watching  # noqa: PLW0603
    if not _is_watching and hasattr(os, "register_at_fork"):
        _is_watching = True
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for lock in _held:
        lock.file.close()


def _calls_of_the_system() -> tuple[_Call, _Call]:
    """Return what takes a lock without waiting, and what lets it go: fcntl's, or those of Windows."""
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError:
        return _calls_of_windows(import_module("msvcrt"))
    return (
        lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda file: fcntl.flock(file, fcntl.LOCK_UN),
    )


def _calls_of_windows(msvcrt: Any) -> tuple[_Call, _Call]:
    def locking(file: IO[str], mode: int) -> None:
        file.seek(0)  # it locks bytes from the place in the file, which need not exist
        try:
            msvcrt.locking(file.fileno(), mode, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error

    return lambda file: locking(file, msvcrt.LK_NBLCK), lambda file: locking(file, msvcrt.LK_UNLCK)
