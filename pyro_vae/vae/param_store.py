"""Take over parameters from a saved store of Pyro's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import pyro.distributions.constraints as pyro_constraints
import torch
import torch.distributions.constraints as torch_constraints
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.vae.store import trainable

__all__ = ["load"]

REMEDY = "load it into a VAE of the same parts, or pass the name that they lie under"


@torch.no_grad()
def load(saved: Any, name: str, halves: Mapping[str, nn.Module]) -> None:
    """Set the parameters of model and guide to those saved under the name of a VAE."""
    values = _params(saved)
    own = {key: value for role, half in halves.items() for key, value in trainable(f"{name}.{role}", half).values()}
    prefixes = tuple(f"{name}.{role}$$$" for role in halves)
    there = {key: value for key, value in values.items() if key.startswith(prefixes)}
    problems = [
        *(f"no {key!r}" for key in own.keys() - there.keys()),
        *(f"{key!r}, which this VAE has not" for key in there.keys() - own.keys()),
        *(
            f"{key!r} of shape {tuple(there[key].shape)} for {tuple(own[key].shape)}"
            for key in own.keys() & there.keys()
            if own[key].shape != there[key].shape
        ),
    ]
    if problems:
        raise ValueError(
            f"saved: expected the parameters of this VAE; got {'; '.join(sorted(problems)[:4])}; {REMEDY}."
        )
    for key, parameter in own.items():
        parameter.copy_(there[key])
    _warn_of_buffers(halves)


def _params(saved: Any) -> dict[str, Tensor]:
    """Return the tensors of a store, or raise an error if it is none."""
    state = saved if isinstance(saved, Mapping) else _read(saved)
    params = state.get("params") if isinstance(state, Mapping) else None
    if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
        raise ValueError(
            "saved: expected a saved parameter store of Pyro's, with tensors under 'params'; got "
            f"{type(state).__name__} without; pass what pyro.get_param_store() has saved, or its get_state()."
        )
    return dict(params)


def _read(path: str | PathLike[str]) -> Any:
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"saved: expected a path, or get_state() of a store; got {path!r:.200}; pass one.")
    try:
        with _constraints_allowed():
            return torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch's reader raises errors of many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: expected a file of pyro.get_param_store().save, with tensors and constraints alone; got {first}; "
            "pass another."
        ) from error


@contextmanager
def _constraints_allowed() -> Iterator[None]:
    """Let torch's reader make constraints, which are kept beside the parameters: objects without code."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [
            kind
            for module in (torch_constraints, pyro_constraints)
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, torch_constraints.Constraint)
        ]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _warn_of_buffers(halves: Mapping[str, nn.Module]) -> None:
    parameters = {key for half in halves.values() for key, _ in half.named_parameters(remove_duplicate=False)}
    buffers = [key for half in halves.values() for key in half.state_dict() if key not in parameters]
    if buffers:
        _checks.warn(
            f"saved: expected all that the VAE keeps; got no buffers, such as {buffers[0]!r}, which Pyro's store does "
            "not hold: they stay as they are; keep a VAE by vae.save(path), or by its state_dict()."
        )
