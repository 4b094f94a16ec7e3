"""Arguments of any kind: which tensors among them have a row for each datum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae import _checks
from pyro_vae._private import tree_flatten, tree_leaves, tree_unflatten
from pyro_vae._random import seeded
from pyro_vae.program.refusals import refusing_noisy_modules
from pyro_vae.program.runs import has_rows
from pyro_vae.program.sites import sample_sites

__all__ = ["as_tensors", "rows_alone", "sizes_of_plates"]


@dataclass(frozen=True, eq=False)
class OfRows:
    """A program that takes, of its arguments, the tensors with a row for each datum; the others are kept."""

    program: Callable[..., Any]
    spec: Any
    places: tuple[int, ...]
    """Of the rows among the leaves."""

    def __call__(self, *rows: Tensor, **kwargs: Any) -> Any:
        leaves = list(kwargs.pop(OTHERS))
        for place, row in zip(self.places, rows, strict=True):
            leaves.insert(place, row)
        args, by_name = tree_unflatten(leaves, self.spec)
        return self.program(*args, **by_name, **kwargs)


OTHERS = "_others"
"""The keyword under which the other leaves are kept, among what decides the numbers of an evaluation."""


def rows_alone(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str | int | None,
) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """Return model, guide and arguments such that the first argument has rows, wherever they lie.

    They may lie in dictionaries, tuples and lists, after what all data share, or among keyword arguments where there
    are no others. The plate over data says how many they are. What has as many rows is cut where fewer data are run;
    all else goes to the program as it is. Where nothing of this applies, nothing is changed.
    """
    if args and _has_rows_first(args):
        return model, guide, args, kwargs
    leaves, spec = tree_flatten((args, {} if args else kwargs), is_leaf=lambda each: isinstance(each, PackedSequence))
    leaves = [_checks.tensor("x", leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    sizes = {len(leaf) for leaf in leaves if has_rows(leaf)}
    try:
        found = sizes & sizes_of_plates(model, args, kwargs, plate)
    except Exception:  # a model that does not run on these arguments has no plate to tell
        return model, guide, args, kwargs
    is_as_it_should_be = args and has_rows(args[0]) and len(args[0]) in found  # what has other rows is refused
    if is_as_it_should_be or len(found) != 1 or any(_may_have_rows_elsewhere(leaf, *found) for leaf in leaves):
        return model, guide, args, kwargs
    places = tuple(place for place, leaf in enumerate(leaves) if has_rows(leaf) and {len(leaf)} == found)
    others = tuple(leaf for place, leaf in enumerate(leaves) if place not in places)
    taken = OfRows(model, spec, places), None if guide is None else OfRows(guide, spec, places)
    return *taken, tuple(leaves[place] for place in places), {**(kwargs if args else {}), OTHERS: others}


def _has_rows_first(args: tuple[Any, ...]) -> bool:
    """Whether the first argument has rows, and all tensors by position have as many or none."""
    first, *others = args
    if not isinstance(first, (Tensor, np.ndarray)):
        return False
    return all(not has_rows(arg) or len(arg) == len(first) for arg in others) if has_rows(first) else True


def _may_have_rows_elsewhere(leaf: Any, num_data: int) -> bool:
    """Whether a tensor's rows could lie in another dimension than the first, as in (time, data)."""
    return has_rows(leaf) and len(leaf) != num_data and num_data in leaf.shape


@torch.no_grad()
def sizes_of_plates(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], plate: str | int | None
) -> set[int]:
    """Return the sizes of the plates that hold all sites of a model, or of that with the name."""
    some = next(filter(has_rows, tree_leaves((args, kwargs))), None)
    device = torch.get_default_device() if some is None else some.device
    with poutine.block(), seeded(device, 0), refusing_noisy_modules(), pyro.validation_enabled(False):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    frames = [{(frame.name, frame.size) for frame in site["cond_indep_stack"]} for _, site in sample_sites(trace)]
    return {size for name, size in set.intersection(*frames) if plate in (None, name)} if frames else set()


def as_tensors(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check the positional arguments, and make tensors of arrays."""
    if not args:
        raise TypeError("x: expected the data after model and guide; got nothing; pass a tensor (N, ...).")
    x, *others = _checks.tensor("x", args[0]), *args[1:]
    found = [x]
    for i, arg in enumerate(others, start=1):
        is_array = isinstance(arg, np.ndarray) or has_rows(arg)
        found.append(_checks.tensor(f"args[{i}]", arg) if is_array else arg)
    return tuple(found)
