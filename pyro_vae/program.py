"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """What was observed at a site of the model."""

    value: Tensor
    """`(N, ...)`."""
    kind: str
    """Whether its likelihood is a "probability", a "density", or a "factor", whose data cannot be seen."""
    masks: tuple[Tensor, ...]
    """Where it counts, `(N, ...)`."""

    @classmethod
    def joined(cls, parts: list[ObservedSite]) -> ObservedSite:
        values, kinds, masks = zip(*parts, strict=True)
        return cls(torch.cat(values), kinds[0], tuple(map(torch.cat, zip(*masks, strict=True))))


LOOKED_AT_TOGETHER = 8192  # data


def _joint_shape(site: dict[str, Any]) -> torch.Size:
    return torch.broadcast_shapes(site["value"].shape, site["fn"].shape())


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    return fn.log_prob(value)


def _within_support(fn: Any, value: Tensor) -> Tensor:
    """log p, and -inf outside the support, where some distributions make up a density.

    And where it is +inf: at a pole, such as that of Gamma's at 0, where rounding alone can put a value.
    """
    log_prob = fn.log_prob(value)
    return torch.where(fn.support.check(value) & ~log_prob.isposinf(), log_prob, -torch.inf)


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
        program = _amortized(model, guide, rows, kwargs, plate) or _not_amortized(model, guide, rows, kwargs, plate)
        program.refuse_impossible_data()
        return program

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

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each `(K, N)`; where log p(z) is -inf, log p(x|z) is 0, for it may be no number."""
        num_samples = next(iter(latents.values())).shape[0]
        sites = dict(sample_sites(self._run(poutine.condition(self.model, data=latents), num_samples)))
        observed = {name: site for name, site in sites.items() if name not in latents}
        prior = self._total({name: site for name, site in sites.items() if name in latents}, _within_support)
        return prior, self._total(observed).masked_fill(prior.isneginf(), 0.0)

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
        parts = [{name: self._observed_site(site) for name, site in observed.items()} for observed in self._observed()]
        return {name: ObservedSite.joined([part[name] for part in parts]) for name in parts[0]}

    def refuse_impossible_data(self) -> None:
        """Stop if an observed value is outside the support of its distribution."""
        for observed in self._observed():
            refuse_impossible_data(observed)

    @torch.no_grad()
    def _observed(self) -> Iterator[dict[str, Any]]:
        """The observed sites; where the pair runs on any number of rows, of some at a time."""
        everyone = torch.arange(self.num_data, device=self.args[0].device)
        for rows in everyone.split(LOOKED_AT_TOGETHER if self.structure.amortized else self.num_data):
            with seeded(rows.device, 0), pyro.validation_enabled(False):
                yield self.at(rows).sites()[1]

    def _observed_site(self, site: dict[str, Any]) -> ObservedSite:
        value = self.draws_first(site["value"].expand(_joint_shape(site)))[0]
        return ObservedSite(value, kind_of(site), tuple(self.draws_first(mask)[0] for mask in masks_of(site)))

    def draws_first(self, value: Tensor) -> Tensor:
        """A site's value with its dimensions in the order draws, data, others: `(K, N, ...)`."""
        return value.movedim(self.structure.data_axis, 1)

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """The latents of some of the data."""
        return {name: value.index_select(self.structure.data_axis, rows) for name, value in latents.items()}

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


def _amortized(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    rows: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
) -> Program | None:
    """The program, if it runs on any rows, each for itself."""
    # What runs on another number of rows runs on any. Two are tried, as there may be a plate of the first's size.
    for trial in (_repeated(rows, 7), _repeated(rows, 11)):
        try:
            found = Program(model, guide, trial, kwargs, look_at(model, guide, trial, kwargs, plate, True))
            _refuse_fixed_shapes(found)
            _refuse_place(found)
            program = replace(found, args=rows)
            _refuse_place(program.at(torch.arange(min(program.num_data, LOOKED_AT_TOGETHER), device=rows[0].device)))
            return program
        except Exception:  # whatever it is: on all data at a time it may run, or fail with the same
            continue
    return None


def _not_amortized(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    rows: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
) -> Program:
    """The program, which runs on all rows together."""
    program = Program(model, guide, rows, kwargs, look_at(model, guide, rows, kwargs, plate, False))
    _refuse_fixed_shapes(program)
    _refuse_company(program)
    return program


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
        return sum(program.log_joint(latents)) - guide


def _rows_of_data(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if not args:
        raise TypeError("x: expected the data after model and guide; got nothing; pass a tensor (N, ...).")
    for i, arg in enumerate(args[1:], start=1):
        if not hasattr(arg, "__len__"):
            raise TypeError(
                f"args[{i}]: expected a tensor with one row a datum, as all positional arguments; got {arg!r}; pass "
                "what has no rows by name, such as num_samples=1000 or an argument of the model's."
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


def _refuse_place(program: Program) -> None:
    """Stop if a row's density depends on its place, on the number of rows or on others: halves must give the same."""
    for half in (torch.arange(first, program.num_data, 2).flip(0) for first in range(min(2, program.num_data))):
        if not _has_same_density(program, half, slice(None)):
            raise ValueError("model: got other densities of the same rows in another place, or among fewer.")


def _refuse_company(program: Program) -> None:
    """Stop if a row's density depends on other rows or their latents: put one row in the place of every second."""
    places = torch.arange(program.num_data)
    for first in range(min(2, program.num_data)):
        beside_others = torch.where(places % 2 == first, places, first)
        if not _has_same_density(program, beside_others, slice(first, None, 2)):
            raise ValueError(
                "model: expected each datum's density to depend on its own row and latents; got others where different "
                "data lay beside it; use no statistics of the batch, let no latent reach other data, pass what they "
                "share as a keyword argument, and say plate=... if the rows of x are those of another plate."
            )


@torch.no_grad()
def _has_same_density(program: Program, rows: Tensor, compared: slice) -> bool:
    """Whether these rows with their latents have the density that they have among all."""
    rows = rows.to(program.args[0].device)
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        latents, _ = program.draw(1)
        among_all = program.log_joint(latents)
        here = program.at(rows).log_joint(program.choose(latents, rows))
    return all(
        torch.allclose(one[:, rows[compared]], other[:, compared], rtol=1e-5, atol=1e-3, equal_nan=True)
        for one, other in zip(among_all, here, strict=True)
    )


def _repeated(args: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Some rows, and not as many as there are."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)
