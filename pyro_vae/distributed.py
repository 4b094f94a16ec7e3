"""The processes that torchrun started, working as one: who does what, and what they tell each other."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import rendezvous

from pyro_vae._private import end_with_parent

__all__ = ["Team", "alike", "alone", "ends_all", "is_first", "shared", "team"]

Item = TypeVar("Item")
Result = TypeVar("Result")

TIME_LIMIT = timedelta(minutes=30)
"""How long a process waits for the others in a step. One that ends is noticed at once, as its connections close."""
PATIENCE = timedelta(hours=12)
"""How long it waits where others may have more to do, or the first alone has."""
MEETING = timedelta(minutes=5)
"""How long they wait for the first process to answer, and for the last to come."""
FAREWELL = timedelta(seconds=10)
"""How long the others wait for the one that says what is wrong."""
GONE = ("Connection", "connection", "Timed out", "timed out", "Read error", "Write error", "remote process")
"""What torch says of a process that does not answer."""
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)


class Team:
    """Several processes of one program. Each calls the same methods in the same order."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.patient = _patient_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank, with tensors on this process's devices."""
        content = io.BytesIO()
        torch.save(value, content)
        contents: list[Any] = [None] * self.size
        with _expecting_all():
            dist.all_gather_object(contents, content.getvalue(), group=self.patient)
        return [torch.load(io.BytesIO(each), map_location=_here, weights_only=False) for each in contents]

    def require(self, device: torch.device) -> None:
        """Raise an error where tensors of a device cannot be sent, or two processes would use one GPU."""
        if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
            raise ValueError(
                f"program: expected a program on this process's own GPU, cuda:{torch.cuda.current_device()}; got it on "
                f"{device}; call pv.distributed.is_first() before anything is moved to a GPU, and move it to "
                '"cuda".'
            )
        try:
            dist.all_reduce(torch.zeros(1, device=device))
        except RuntimeError as error:
            message = (
                f"backend: expected one for tensors on {device.type}; got {dist.get_backend_config()} "
                f'({str(error).splitlines()[0][:100]}); call init_process_group("cpu:gloo,cuda:nccl"), or leave that '
                "to pyro_vae."
            )
            if self.is_first:
                raise ValueError(message) from error
            sys.exit(1)

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place, to the same bits in each."""
        with _expecting_all():
            dist.all_reduce(tensor)

    def told(self, value: Any) -> Any:
        """Return the value of the first process."""
        return self.by_the_first(lambda: value)

    def by_the_first(self, do: Callable[[], Result]) -> Result:
        """Have the first process do something, and tell the others what came of it. An error of its ends all."""
        found, error = (None, None) if not self.is_first else _tried(do)
        contents: list[Any] = [found, error is not None]
        with _expecting_all():
            dist.broadcast_object_list(contents, src=0, group=self.patient)
        found, has_failed = contents
        if has_failed:
            self.leave_the_word_to(0, error)
        return found

    def together(self, do: Callable[[], Result]) -> list[Result]:
        """Have each process do something, and return what came of it, by rank. An error of one ends all."""
        found, error = _tried(do)
        results = self.gathered((found, error is not None))
        failed = [rank for rank, (_, has_failed) in enumerate(results) if has_failed]
        if failed:
            self.leave_the_word_to(failed[0], error)
        return [result for result, _ in results]

    def refuse_others(self, what: str, mine: dict[str, Any], remedy: str) -> None:
        """Raise an error, in the first process, where one of the others has other values than it."""
        first, *others = self.gathered(mine)
        for rank, theirs in enumerate(others, start=1):
            names = [name for name in first if first[name] != theirs.get(name)]
            if names:
                message = f"{what}: expected the same in each process; got another {', '.join(names)} in that of rank "
                self.leave_the_word_to(0, ValueError(f"{message}{rank} than in that of rank 0; {remedy}."))

    def leave_the_word_to(self, rank: int, error: BaseException | None) -> None:
        """Raise an error that all processes know of, in one of them; the others end quietly, a moment later."""
        if self.rank == rank and error is not None:
            error.ends_all = True  # type: ignore[attr-defined]
            raise error
        with suppress(RuntimeError):  # as soon as its connections close
            dist.barrier(group=self.patient, async_op=True).wait(FAREWELL)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)  # an orderly end would wait for the one that raises


def team() -> Team | None:
    """Return the processes that work together here; None for one alone.

    Processes that torchrun started meet at the first call, unless `init_process_group` was called before: on a CPU by
    gloo, on GPUs by nccl.

    Raises:
        ValueError: where the others cannot be reached.
    """
    if _is_alone.get() or not dist.is_available():
        return None
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return None
        _meet()
    return Team() if dist.get_world_size() > 1 else None


def is_first() -> bool:
    """Tell whether this process is the only one, or the first: the one to write files and print."""
    found = team()
    return found is None or found.is_first


@contextmanager
def alone() -> Iterator[None]:
    """Work alone here, without the other processes that torchrun started: they need not do the same.

    Examples:
        >>> import pyro_vae as pv
        >>> if pv.distributed.is_first():
        ...     with pv.distributed.alone():
        ...         pass  # evaluate here what only the first process needs
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def alike(do: Callable[[], Result]) -> Result:
    """Do something that has to succeed in all processes: an error of one ends all."""
    found = team()
    if found is None:
        return do()
    results: list[Result] = []
    found.together(lambda: results.append(do()))
    return results[0]


def shared(items: Iterable[Item], do: Callable[[Item], Result]) -> list[Result]:
    """Do something with each item, in turns among the processes; return all results in the order of the items."""
    found = team()
    if found is None:
        return [do(item) for item in items]
    with_others = found.together(lambda: [do(item) for item in islice(items, found.rank, None, found.size)])
    longest = max(map(len, with_others))
    return [results[i] for i in range(longest) for results in with_others if i < len(results)]


@contextmanager
def _expecting_all() -> Iterator[None]:
    """Say in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in GONE):
            raise
        raise ConnectionError(
            f"torchrun: expected all processes to go on; got no answer from one ({str(error).splitlines()[0][:200]}); "
            "see what that one said, or what ended it. A run's last checkpoint is as it was."
        ) from None


def _tried(do: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Do what one process does by itself."""
    with alone():
        try:
            return do(), None
        except Exception as error:  # raised again, once the others know
            return None, error


def ends_all(error: BaseException) -> bool:
    """Tell whether the other processes end because of an error."""
    return getattr(error, "ends_all", False)


_patient: list[Any] = []


def _patient_group() -> Any:
    """Make a group for objects, which waits longer; all processes do so at their first call."""
    if not _patient:
        _patient.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    return _patient[0]


def _here(storage: Any, location: str) -> Any:
    """Put what was on some GPU on this process's own."""
    return storage.cuda() if location.startswith("cuda") else storage


def _meet() -> None:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"{missing[0]}: expected where the first process is, beside WORLD_SIZE={os.environ['WORLD_SIZE']}; got "
            "nothing; start by torchrun, which sets it, or unset WORLD_SIZE."
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if torch.cuda.is_available():
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())
    if sys.platform == "linux":  # a launcher that is killed leaves no process behind
        end_with_parent(signal.SIGTERM)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlasts those before, who are gone
        store = dist.PrefixStore(f"pyro_vae, attempt {attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIME_LIMIT)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"MASTER_ADDR: expected a first process that answers at {place}; got {str(error).splitlines()[0]!r}; check "
            "the address, the port and the network between."
        ) from error
    atexit.register(_part)


def _take_gpu(place: int, number: int) -> None:
    """Take a GPU of this process's own."""
    if place >= number:
        raise ValueError(
            f"--nproc-per-node: expected at most a process for each of {number} GPUs; got {place + 1}; start fewer, or "
            'hide the GPUs by CUDA_VISIBLE_DEVICES="".'
        )
    torch.cuda.set_device(place)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
