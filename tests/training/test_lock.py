"""A run's lock: one process at a time, freed when that one ends, however it ends."""

import errno
import os
import signal
import sys
import types

import pytest

from pyro_vae.training.lock import Lock
from pyro_vae.training.run import Run

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(act):
    """Run something in a child process; return the pid, once it is done, and the child waits to be killed."""
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(60)  # whatever becomes of the test
            act()
            os.write(sink, b"done")
            signal.pause()
        finally:
            os._exit(1)
    os.close(sink)
    assert os.read(source, 4) == b"done"
    os.close(source)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@needs_fork
def test_the_lock_of_a_dead_process_is_free(tmp_path):
    kept = []
    child = in_child(lambda: kept.append(Lock(tmp_path / "lock")))
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "lock")
    end(child)
    Lock(tmp_path / "lock").release()


@needs_fork
def test_two_processes_at_once(tmp_path):
    """The second is refused, and resumes when the first has ended."""
    kept = []
    child = in_child(lambda: kept.append(Run(tmp_path / "run", {"a": 1}, "auto")))
    for resume in (True, "auto"):
        with pytest.raises(ValueError, match="run: expected a folder that no other process trains in; got '.*run'"):
            Run(tmp_path / "run", {"a": 1}, resume)
    end(child)
    Run(tmp_path / "run", {"a": 1}, True).close()


@needs_fork
def test_children_do_not_hold_it(tmp_path):
    """Workers of a data loader live on for a while when their parent is killed."""
    pids = []

    def with_a_worker():
        lock = Lock(tmp_path / "lock")
        pids.append(in_child(lambda: None))
        (tmp_path / "worker").write_text(str(pids[0]))
        assert lock.is_in_place

    parent = in_child(with_a_worker)
    end(parent)
    Lock(tmp_path / "lock").release()
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


@needs_fork
def test_a_released_lock_is_free_while_children_live(tmp_path):
    lock = Lock(tmp_path / "lock")
    child = in_child(lambda: None)
    lock.release()
    lock.release()  # twice is once
    Lock(tmp_path / "lock").release()
    end(child)


def test_a_lock_that_was_replaced_is_seen(tmp_path):
    lock = Lock(tmp_path / "lock")
    assert lock.is_in_place
    (tmp_path / "lock").unlink()
    assert not lock.is_in_place
    (tmp_path / "lock").touch()
    assert not lock.is_in_place
    lock.release()


def test_a_lock_that_cannot_be_had(tmp_path):
    """Some file systems of a network have none."""
    fcntl = types.SimpleNamespace(LOCK_EX=2, LOCK_NB=4, LOCK_UN=8)

    def flock(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "fcntl", fcntl)
        with pytest.raises(
            ValueError, match=r"run: expected a folder that can be written to; .*\(No locks available\)"
        ):
            Run(tmp_path / "run", {}, False)


class Msvcrt(types.ModuleType):
    """What Microsoft's documentation says of `_locking`: bytes from the place in the file; EACCES if they are held."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self):
        super().__init__("msvcrt")
        self.held = {}

    def locking(self, descriptor, mode, num_bytes):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), num_bytes
        if mode == self.LK_UNLCK:
            assert self.held.pop(place) == descriptor
        elif place in self.held:
            raise PermissionError(errno.EACCES, "Permission denied")
        else:
            self.held[place] = descriptor


def test_the_lock_of_windows(tmp_path, monkeypatch):
    """On a stand-in; nothing was run on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    lock = Lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "lock")
    with pytest.raises(ValueError, match="expected a folder that no other process trains in"):
        (tmp_path / "run").mkdir()
        first = Lock(tmp_path / "run" / "lock")
        Run(tmp_path / "run", {}, False)
    first.release()
    lock.release()
    Lock(tmp_path / "lock").release()
