"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._structure import (
    Structure,
    initialise,
    kind_of,
    look_at,
    masks_of,
    refuse_autocast,
    refuse_impossible_data,
    refuse_subsampling,
    sample_sites,
    seeded,
)

__all__ = ["Latents", "LogDensities", "Program"]

Latents = dict[str, Tensor]


class LogDensities(NamedTuple):
    """Log densities of K draws for each of N data, nats: three tensors `(K, N)` of float64."""

    prior: Tensor
    """log p(z), of all latent sites of the model."""
    likelihood: Tensor
    """log p(x|z), of all observed sites of the model."""
    guide: Tensor
    """log q(z|x)."""

    @property
    def weight(self) -> Tensor:
        """log w = log p(z) + log p(x|z) - log q(z|x)."""
        return self.prior + self.likelihood - self.guide


class ObservedSite(NamedTuple):
    value: Tensor
    """`(N, ...)`."""
    kind: str
    """Whether its likelihood is a "probability", a "density", or a "factor", whose data cannot be seen."""
    masks: tuple[Tensor, ...]
    """Where it counts, `(N, ...)`."""


def _joint_shape(site: dict[str, Any]) -> torch.Size:
    return torch.broadcast_shapes(site["value"].shape, site["fn"].shape())


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    return fn.log_prob(value)


def _within_support(fn: Any, value: Tensor) -> Tensor:
    """log p, and -inf outside the support, where some distributions make up a density."""
    return torch.where(fn.support.check(value), fn.log_prob(value), -torch.inf)


@dataclass(frozen=True)
class Program:
    """A Pyro model and guide, with the data they are called on.

    `args` are tensors with one row a datum, the first of them x; `kwargs` go to model and guide as they are.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    structure: Structure

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        plate: str | None = None,
    ) -> Program:
        """Look at a run of the pair, and refuse one that has no log p(x) for each datum."""
        refuse_autocast()
        rows, kwargs = _rows_of_data(args), kwargs or {}
        initialise(guide, rows, kwargs)
        failure: Exception | None = None
        # What runs on two other numbers of rows runs on any. Two, as there may be a plate of the first's size.
        for trial, amortized in ((_repeated(rows, 7), True), (_repeated(rows, 11), True), (rows, False)):
            try:
                structure = look_at(model, guide, trial, kwargs, plate, amortized)
                _refuse_fixed_shapes(cls(model, guide, trial, kwargs, structure))
                _refuse_company(cls(model, guide, trial, kwargs, structure))
                if amortized:
                    _refuse_order_of_rows(cls(model, guide, trial, kwargs, structure))
                return cls(model, guide, rows, kwargs, structure)
            except (RuntimeError, ValueError, IndexError) as error:
                failure = error
        assert failure is not None
        raise failure

    @property
    def num_data(self) -> int:
        return len(self.args[0])

    def at(self, rows: Tensor) -> Program:
        """The same program on some of the data."""
        return replace(self, args=tuple(arg[rows] for arg in self.args))

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        """Latents drawn from the guide, and log q(z|x) of each, `(K, N)`."""
        trace = self._run(self.guide, num_samples)
        latents = {name: site["value"] for name, site in sample_sites(trace)}
        return latents, self._total(dict(sample_sites(trace)))

    def log_joint(self, latents: Latents, check_support: bool = True) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each `(K, N)`."""
        num_samples = next(iter(latents.values())).shape[0]
        sites = dict(sample_sites(self._run(poutine.condition(self.model, data=latents), num_samples)))
        observed = {name: site for name, site in sites.items() if name not in latents}
        if check_support:
            refuse_impossible_data(observed)
        prior = self._total({name: site for name, site in sites.items() if name in latents}, _within_support)
        return prior, self._total(observed)

    def log_guide(self, latents: Latents) -> Tensor:
        """log q(z|x) of given latents, `(K, N)`: of any that have the guide's sites, not only of its own draws."""
        num_samples = next(iter(latents.values())).shape[0]
        sites = dict(sample_sites(self._run(poutine.condition(self.guide, data=latents), num_samples)))
        unknown = sorted(name for name, site in sites.items() if not site["is_observed"])
        if unknown:
            raise ValueError(
                f"guide: expected a density of the model's latent sites, for values that are given; got the auxiliary "
                f"site {unknown[0]!r}; start from the prior or from Laplace's Gaussian, or write the guide by hand."
            )
        return self._total(sites, _within_support)

    def draw_prior(self, num_samples: int) -> Latents:
        """Latents drawn from the model's prior."""
        sites = sample_sites(self._run(self.model, num_samples))
        return {name: site["value"] for name, site in sites if not site["is_observed"]}

    def sites(self, num_samples: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's latent and observed sites in one run, with latents from the guide."""
        latents, _ = self.draw(num_samples)
        sites = dict(sample_sites(self._run(poutine.condition(self.model, data=latents), num_samples)))
        return (
            {name: site for name, site in sites.items() if name in latents},
            {name: site for name, site in sites.items() if name not in latents},
        )

    def observed_values(self) -> dict[str, ObservedSite]:
        """What was observed at each site."""
        with seeded(self.args[0].device, 0), pyro.validation_enabled(False):
            _, observed = self.sites()
        return {name: self._observed_site(site) for name, site in observed.items()}

    def _observed_site(self, site: dict[str, Any]) -> ObservedSite:
        value = self.draws_first(site["value"].expand(_joint_shape(site)))[0]
        shape = site["fn"].batch_shape
        masks = tuple(self.draws_first(mask.expand(shape))[0] for mask in masks_of(site))
        return ObservedSite(value, kind_of(site), masks)

    def refuse_impossible_data(self) -> None:
        """Stop if an observed value is outside the support of its distribution."""
        with seeded(self.args[0].device, 0), pyro.validation_enabled(False), torch.no_grad():
            refuse_impossible_data(self.sites()[1])

    def draws_first(self, value: Tensor) -> Tensor:
        """A site's value with its dimensions in the order draws, data, others: `(K, N, ...)`."""
        return value.movedim(self.structure.data_dim - self.structure.particle_dim, 1)

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """The latents of some of the data."""
        axis = self.structure.data_dim - self.structure.particle_dim
        return {name: value.index_select(axis, rows) for name, value in latents.items()}

    def _run(self, fn: Callable[..., Any], num_samples: int) -> poutine.Trace:
        with poutine.block():
            particles = pyro.plate("_particles", num_samples, dim=self.structure.particle_dim)
            trace = poutine.trace(particles(fn)).get_trace(*self.args, **self.kwargs)
        refuse_subsampling(trace)
        return trace

    def _total(self, sites: dict[str, Any], log_prob: Callable[[Any, Tensor], Tensor] = _log_prob) -> Tensor:
        each = [scale_and_mask(log_prob(site["fn"], site["value"]), mask=site["mask"]) for site in sites.values()]
        return torch.stack([self._per_datum(one.double()) for one in each]).sum(0)

    def _per_datum(self, log_prob: Tensor) -> Tensor:
        """A site's log density summed over all but draws and data. A plate's scale is no part of it."""
        keep = (self.structure.particle_dim, self.structure.data_dim)
        log_prob = log_prob[(None,) * (-self.structure.particle_dim - log_prob.ndim)]
        others = [dim for dim in range(-log_prob.ndim, 0) if dim not in keep]
        return log_prob.sum(others) if others else log_prob


def _refuse_fixed_shapes(program: Program) -> None:
    """Run the pair on two draws at once, which is how it is evaluated."""
    expected = (2, program.num_data)
    found: Any
    try:
        found = tuple(_weights_of_two_draws(program).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        found = str(error).splitlines()[0]
    if found != expected:
        raise ValueError(
            f"model, guide: expected log weights of shape {expected} for 2 draws at once; got {found}; let the "
            "functions inside accept dimensions to the left of the plate's, as Pyro's vectorize_particles=True needs."
        )


@torch.no_grad()
def _weights_of_two_draws(program: Program) -> Tensor:
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        latents, guide = program.draw(2)
        return sum(program.log_joint(latents, check_support=False)) - guide


def _rows_of_data(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if not args:
        raise TypeError("x: expected the data after model and guide; got nothing; pass a tensor (N, ...).")
    for i, arg in enumerate(args[1:], start=1):
        if not hasattr(arg, "__len__"):
            raise TypeError(
                f"args[{i}]: expected a tensor with one row a datum, as all positional arguments; got {arg!r}; pass "
                "others by name, such as num_samples=1000."
            )
    names = ["x", *(f"args[{i}]" for i in range(1, len(args)))]
    rows = tuple(_checks.tensor(name, arg) for name, arg in zip(names, args, strict=True))
    for name, arg in zip(names, rows, strict=True):
        if len(arg) != len(rows[0]):
            raise ValueError(
                f"{name}: expected one row for each of the {len(rows[0])} data, as all positional arguments; got "
                f"{len(arg)} rows; pass what is shared by the data as a keyword argument."
            )
    return rows


def _refuse_order_of_rows(program: Program) -> None:
    """Stop if a row's density depends on its place, as where a function closes over tensors of its own."""
    backwards = torch.arange(program.num_data - 1, -1, -1, device=program.args[0].device)
    if not _is_same_density(program, backwards, backwards, slice(None)):
        raise ValueError(
            "model: expected each datum's density to depend on its own row; got others for the rows in reverse; "
            "pass every tensor with a row for each datum as a positional argument."
        )


def _refuse_company(program: Program) -> None:
    """Stop if a row's density depends on the values of other rows, such as their mean."""
    places = torch.arange(program.num_data, device=program.args[0].device)
    first_for_odd = torch.where(places % 2 == 1, 0, places)
    if not _is_same_density(program, first_for_odd, places, slice(0, None, 2)):
        raise ValueError(
            "model: expected each datum's density to depend on its own row; got others where different data lay beside "
            "it; use no statistics of the batch."
        )


@torch.no_grad()
def _is_same_density(program: Program, rows: Tensor, latents_of: Tensor, compared: slice) -> bool:
    """Whether data at other places have the density that they have with the rows as they are."""
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        latents, _ = program.draw(2)
        here = program.log_joint(latents, check_support=False)
        there = program.at(rows).log_joint(program.choose(latents, latents_of), check_support=False)
    return all(
        torch.allclose(one[:, latents_of][:, compared], other[:, compared], rtol=1e-5, atol=1e-3, equal_nan=True)
        for one, other in zip(here, there, strict=True)
    )


def _repeated(args: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Some rows, and not as many as there are."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)
