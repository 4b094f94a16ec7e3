"""A VAE's parameters in Pyro's store: their layout, and what lies there already."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

__all__ = [
    "Values",
    "is_loaded",
    "keep_layout",
    "note_registered",
    "replaced",
    "taken_by_another",
    "trainable",
    "warn_of_loaded",
]

Values = dict[str, Tensor]


_registered = WeakTensorKeyDictionary()
"""The parameters that VAEs of this process have put into Pyro's store."""
_told = WeakIdKeyDictionary()
"""The `Datum` of each VAE whose user was warned of loaded parameters."""


def note_registered(parameter: Tensor) -> None:
    """Note that a VAE of this process has put this parameter into Pyro's store."""
    if parameter not in _registered:
        _registered[parameter] = True


def keep_layout(name: str, parameter: Tensor) -> None:
    """Put a parameter into Pyro's store as it is laid out in memory: `pyro.param` would put a contiguous copy there."""
    store = pyro.get_param_store()
    if name not in store and not parameter.is_contiguous():
        store.set_state({"params": {name: parameter}, "constraints": {name: constraints.real}})


def is_loaded(named: Mapping[str, Tensor]) -> bool:
    """Tell whether other values for all of these parameters lie under their names in Pyro's store, from elsewhere.

    Values from a VAE of this process, such as another without a name or one that is gone, are not from elsewhere.
    """
    store = pyro.get_param_store()
    if not named or not all(name in store for name in named):
        return False
    pairs = [(store[name].unconstrained(), value) for name, value in named.items()]
    if any(stored in _registered or stored.shape != value.shape for stored, value in pairs):
        return False
    return not all(_is_equal(stored, value) for stored, value in pairs)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.device == other.device and one.dtype == other.dtype and torch.equal(one, other))


def warn_of_loaded(names: Sequence[str], own_name: str | None, datum: Any) -> None:
    """Warn, once for each VAE, that it does not use the parameters in Pyro's store.

    Model and guide of a VAE share its `datum`, which identifies the VAE.
    """
    if datum in _told:
        return
    _told[datum] = True
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    elsewhere = "" if own_name is None else f", which lie under {own_name!r}"
    name = names[0].split("$$$")[0].rpartition(".")[0]
    named = "" if name == "vae" else f", {name!r}"
    warnings.warn(
        "name: expected no loaded parameters in Pyro's store under the name of this VAE; got "
        f"{names[0]!r}{others}, of the shapes of its parameters, from no VAE of this process, as after "
        "pyro.get_param_store().load(...); they are not used, and this VAE goes on with the values of its own"
        f"{elsewhere}; load trained values with vae.load_state_dict(...), or take over the store's with "
        f"vae.load_param_store(pyro.get_param_store().get_state(){named}); pass name=... to the VAE if it has nothing "
        "to do with them.",
        UserWarning,
        stacklevel=2,
    )


def trainable(name: str, module: nn.Module) -> dict[str, tuple[str, nn.Parameter]]:
    """Return the parameters that are not frozen, by name in the module, with their names in Pyro's store."""
    named = module.named_parameters()
    return {key: (param_with_module_name(name, key), value) for key, value in named if value.requires_grad}


def replaced(full_name: str, module: nn.Module) -> Values:
    """Register parameters; return values that handlers put in their place, under all their names in the module."""
    values = {}
    for name, parameter in trainable(full_name, module).values():
        keep_layout(name, parameter)
        value = pyro.param(name, parameter)
        if value is parameter:
            note_registered(parameter)
            continue
        if value.shape != parameter.shape:
            raise ValueError(
                f"{name}: expected a value of shape {tuple(parameter.shape)}, the parameter's; got "
                f"{tuple(value.shape)}, from a handler such as poutine.lift; give it priors of the parameters' shapes, "
                "distribution.expand(shape).to_event(), and put it outside of all plates, particles among them."
            )
        values[parameter] = value
    named = module.named_parameters(remove_duplicate=False) if values else ()
    return {key: values[parameter] for key, parameter in named if parameter in values}


def taken_by_another(name: str, module: nn.Module) -> bool:
    """Tell whether other parameters than the module's lie under this name in Pyro's store."""
    store = pyro.get_param_store()
    return any(
        key in store and store[key].unconstrained() is not value for key, value in trainable(name, module).values()
    )
