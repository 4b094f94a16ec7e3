"""Make pairs that are evaluated like any other of a model without a guide, and of a model of all data together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import seeded
from pyro_vae.program.arguments import sizes_of_plates
from pyro_vae.program.automatic import gaussian_of, laplace_of
from pyro_vae.program.in_turn import PLATE_OF_UNUSED, UNUSED, InTurn
from pyro_vae.program.refusals import refusing_noisy_modules
from pyro_vae.program.sites import plates_of, sample_sites
from pyro_vae.program.structure import traced

__all__ = ["Pair", "as_one_datum", "dims_of_rows", "prior_of", "with_rows_first", "with_unused_latent"]

DATA_SET = "_data_set"
"""The plate whose data are data sets."""


def prior_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """Make a guide that draws from the model's prior: the model. What it observes is no part of a guide's density.

    It is not hidden from handlers, for in `pyro.markov` they have to see each site.
    """

    def prior(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return prior


def with_unused_latent(program: Callable[..., Any], data_dim: int, turns: InTurn | None) -> Callable[..., Any]:
    """Add a latent on which nothing depends, for programs whose latents are all summed out.

    The weight of each of its draws is p(x). Where the program visits its data in turn, so does its plate.
    """

    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        if turns is None:
            with pyro.plate(PLATE_OF_UNUSED, len(x), dim=data_dim):
                pyro.sample(UNUSED, Normal(0.0, 1.0))
        else:
            for place in pyro.plate(PLATE_OF_UNUSED, len(x)):
                pyro.sample(f"{UNUSED}_{place + turns.first}", Normal(0.0, 1.0))
        return program(x, *args, **kwargs)

    return run


def dims_of_rows(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], plate: str | int | None
) -> list[tuple[int | None, ...]]:
    """List where the rows of each argument may lie, from the plate that holds all sites, if not all come first.

    A size may occur twice in a tensor, as in (time, data) with as many steps as data: an inspection tells which it is.
    """
    x = args[0] if args else None
    if isinstance(plate, int) or not isinstance(x, Tensor) or x.ndim < 2:
        return []
    sizes = sorted(sizes_of_plates(model, args, kwargs, plate))
    found = [dims for size in sizes for dims in product(*(_dims_of_size(arg, size) for arg in args)) if any(dims)]
    return found[:MOST_READINGS]


MOST_READINGS = 8


def _dims_of_size(arg: Any, size: int) -> list[int] | list[None]:
    """List the dimensions of that size; None for what is no tensor."""
    if not isinstance(arg, Tensor) or arg.ndim == 0:
        return [None]
    return [dim for dim in range(arg.ndim) if arg.shape[dim] == size]


def with_rows_first(program: Callable[..., Any], dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """Make a program whose arguments have their rows in the first dimension."""

    def run(*args: Any, **kwargs: Any) -> Any:
        turned = (arg if dim is None else arg.movedim(0, dim) for arg, dim in zip(args, dims, strict=True))
        return program(*turned, **kwargs)

    return run


class Pair(NamedTuple):
    """A model and a guide, with what they are called on."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None
    plate: str | int | None
    """The plate over data, by name, or their batch dimension."""


def as_one_datum(pair: Pair) -> Pair:
    """Make a pair whose only datum is the data set: log p(x) is then that of all data together.

    Several data sets lie in one more plate, to the left of the program's own; one alone is run as the program is.
    """
    kwargs = _checks.keyword_arguments(pair.kwargs)
    for i, arg in enumerate(pair.args):
        if isinstance(arg, Tensor) and 0 in arg.shape:
            raise ValueError(f"args[{i}]: expected data; got a tensor of shape {tuple(arg.shape)}; pass some.")
    if isinstance(pair.guide, AutoDelta):
        pair = pair._replace(guide=_about_points(pair.guide, pair.model, pair.args, kwargs))
    if isinstance(pair.guide, AutoLaplaceApproximation):
        with poutine.block(), seeded(torch.get_default_device(), 0), refusing_noisy_modules():
            pair = pair._replace(guide=laplace_of(pair.guide, pair.args, kwargs))
    depth = _deepest_plate([pair.model] if pair.guide is None else [pair.guide, pair.model], pair.args, kwargs)

    def whole(program: Callable[..., Any]) -> Callable[[Tensor], Any]:
        def run(data_sets: Tensor) -> Any:
            several = pyro.plate(DATA_SET, len(data_sets), dim=-depth - 1) if len(data_sets) > 1 else nullcontext()
            with several:
                return program(*pair.args, **kwargs)

        return run

    guide = None if pair.guide is None else whole(pair.guide)
    tensors = [arg for arg in (*pair.args, *kwargs.values()) if isinstance(arg, Tensor)]
    device = tensors[0].device if tensors else torch.get_default_device()
    return Pair(whole(pair.model), guide, (torch.zeros(1, device=device),), None, -depth - 1)


def _about_points(
    guide: AutoDelta, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """Make a guide with a density of one that has none, for Laplace's Gaussian to start from."""
    _checks.warn(
        "guide: expected a density; got AutoDelta, an automatic guide of points; Gaussians of unit variance about them "
        "take its place, also for the ELBO."
    )
    about: Callable[..., Any] = gaussian_of(guide, model, args, kwargs)
    return about


@torch.no_grad()
def _deepest_plate(programs: list[Callable[..., Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Count the dimensions that plates take. The run also sets up automatic guides, for the model as it is."""
    device = torch.get_default_device()
    with poutine.block(), seeded(device, 0), refusing_noisy_modules(), pyro.validation_enabled(False):
        traces = [traced(program, args, kwargs) for program in programs]
    sites = (site for trace in traces for _, site in sample_sites(trace))
    return max((-frame.dim for site in sites for frame in plates_of(site)), default=0)
