"""Optimizers of Pyro's, of torch's and our own, by what training needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.optim import FusedAdam

__all__ = ["Schedule", "as_pyro", "clipping", "learning_rate", "restore", "set_learning_rate", "state_of"]


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate, by step."""

    factor: Callable[[int], float]
    base: float

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        factor = self.factor(step)
        if not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
            raise ValueError(
                f"schedule: expected a factor of the learning rate, 0 or more, for each step; got {factor!r} for step "
                f"{step}; return such a number."
            )
        return self.base * factor


def as_pyro(optim: Any) -> PyroOptim:
    """Return one of Pyro's optimizers for it, a torch class, or a torch class with its options in `functools.partial`.

    Raises:
        TypeError: for anything else, a schedule by a metric among it.
    """
    if optim is None:
        return FusedAdam({"lr": 1e-3})
    made_by = optim.func if isinstance(optim, partial) else optim
    if isinstance(made_by, type) and issubclass(made_by, torch.optim.Optimizer):
        given = optim.keywords if isinstance(optim, partial) else {}
        optim = PyroOptim(made_by, {"lr": 1e-3, **given})
    if not isinstance(optim, PyroOptim):
        raise TypeError(
            "optim: expected one of Pyro's optimizers, FusedAdam, or a torch optimizer's class (with options, "
            f"functools.partial(torch.optim.AdamW, lr=1e-3)); got {optim!r}; make one."
        )
    if getattr(optim, "pt_scheduler_constructor", None) is torch.optim.lr_scheduler.ReduceLROnPlateau:
        raise TypeError(
            "optim: expected a schedule of epochs alone; got ReduceLROnPlateau; use CosineAnnealingLR, say."
        )
    if isinstance(optim.pt_optim_args, dict) and "lr" in optim.pt_optim_args:
        _checks.positive("optim: lr, the learning rate", optim.pt_optim_args["lr"])
    return optim


def learning_rate(optim: PyroOptim) -> float:
    """Return the one learning rate of an optimizer, for a schedule to multiply.

    Raises:
        ValueError: if parameters have learning rates of their own, or a schedule already.
    """
    options = optim.pt_optim_args
    has_schedule = hasattr(optim, "pt_scheduler_constructor") or getattr(optim, "lr_scheduler", None) is not None
    if has_schedule or not isinstance(options, dict) or "lr" not in options:
        raise ValueError(
            'schedule: expected an optimizer with one learning rate, {"lr": 1e-3}, and no schedule of its own; got '
            f"{optim!r}; leave one of the two out."
        )
    return float(options["lr"])


def set_learning_rate(optim: PyroOptim, rate: float) -> None:
    """Set the learning rate of all parameters, also of those that the optimizer has not seen yet."""
    optim.pt_optim_args["lr"] = rate
    for _, optimizer, _ in _parts(optim):
        for group in optimizer.param_groups:
            group["lr"] = rate


@contextmanager
def clipping(optim: PyroOptim, largest: float | None) -> Iterator[float | None]:
    """Have `FusedAdam` clip gradients to this norm, as part of its step; yield the norm that is left to others.

    Raises:
        ValueError: if the optimizer has a norm of its own.
    """
    if largest is None or not isinstance(optim, FusedAdam):
        yield largest
        return
    if optim.clip_grad_norm is not None:
        raise ValueError(
            f"clip_grad_norm: expected one norm; got {largest} beside the optimizer's own, {optim.clip_grad_norm}; "
            "leave one of the two out."
        )
    optim.clip_grad_norm = largest
    try:
        yield None
    finally:
        optim.clip_grad_norm = None  # the optimizer is the user's


class _Part(NamedTuple):
    param: Tensor
    optimizer: torch.optim.Optimizer
    scheduler: Any


def _parts(optim: PyroOptim) -> Iterator[_Part]:
    """Yield each parameter with its torch optimizer and its schedule, if there is one."""
    for param, found in optim.optim_objs.items():
        if isinstance(optim, FusedAdam):
            scheduler = optim.schedulers[optim.optimizers.index(found)] if optim.schedulers else None
            yield _Part(param, found, scheduler)
        elif isinstance(found, torch.optim.Optimizer):
            yield _Part(param, found, None)
        else:
            yield _Part(param, found.optimizer, found)


def state_of(optim: PyroOptim, name_of: Callable[[Tensor], str]) -> dict[str, Any]:
    """Return the state of each parameter, by name: numbers and tensors."""
    return {
        name_of(param): {
            "state": {key: _copied(value) for key, value in optimizer.state.get(param, {}).items()},
            "group": {key: value for key, value in optimizer.param_groups[0].items() if key != "params"},
            "scheduler": None if scheduler is None else scheduler.state_dict(),
        }
        for param, optimizer, scheduler in _parts(optim)
    }


def restore(optim: PyroOptim, states: dict[str, Any], name_of: Callable[[Tensor], str]) -> None:
    """Put a state back, in place: a graph that has the state's tensors as inputs stays valid."""
    for param, optimizer, scheduler in _parts(optim):
        saved = states.get(name_of(param))
        if saved is None or not saved["state"]:
            optimizer.state.pop(param, None)
        else:
            _restore_tensors(optimizer.state[param], saved["state"])
        if saved is not None:
            group = optimizer.param_groups[0]
            group.update({key: value for key, value in saved["group"].items() if group.get(key) != value})
            if scheduler is not None:
                scheduler.load_state_dict(saved["scheduler"])


@torch.no_grad()
def _restore_tensors(state: dict[str, Any], saved: dict[str, Any]) -> None:
    for key, value in saved.items():
        if isinstance(state.get(key), Tensor) and isinstance(value, Tensor):
            state[key].copy_(value)
        else:
            state[key] = value


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
