"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae._random import seeded
from pyro_vae.program.masks import Counting, elements_of, mask_of
from pyro_vae.program.structure import (
    Structure,
    drawn_sites,
    is_angle,
    is_circular,
    kind_of,
    name_of_latent,
    refuse_impossible_data,
    refuse_subsampling,
    sample_sites,
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
    """Its masks, `(N, ...)`: True where it counts."""

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
    """Return log p, and -inf outside the support, where some distributions return a finite density.

    Also -inf at a pole, where log p is +inf: rounding alone can put a value there, as at 0 under a Gamma.
    """
    log_prob = fn.log_prob(value)
    inside = fn.support.check(value) & ~log_prob.isposinf()
    if is_circular(fn):
        inside = inside & is_angle(value, inside.ndim)
    return torch.where(inside, log_prob, -torch.inf)


class _AllDrawn(Exception):
    """Raised when a run has drawn its last latent."""


class _UntilDrawn(Messenger):
    """End a run when these sites are drawn, before a decoder is run."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def __enter__(self) -> Any:
        self.left = set(self.names)
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        self.left.discard(msg["name"])
        if not self.left:
            raise _AllDrawn


class _Alone(NamedTuple):
    """A draw in a run without a dimension of draws, and its densities, `(1, N)` each."""

    latents: Latents
    densities: tuple[Tensor, ...]


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
    counting: dict[str, Counting] = field(default_factory=dict)
    """Which parts of the latents count, for those that are masked: densities are of these parts alone."""

    @property
    def guide_has_density(self) -> bool:
        """Whether `log_guide` knows the density of values that the guide has not drawn."""
        return self.structure.guide_has_density

    @property
    def can_draw_prior(self) -> bool:
        """Whether `draw_prior` works: some distributions have a density and no sampler."""
        return self.structure.can_draw_prior

    @property
    def num_data(self) -> int:
        return len(self.args[0])

    def at(self, rows: Tensor) -> Program:
        """Select data by row."""
        masks = {name: each.mask for name, each in self.counting.items() if each.mask is not None}
        chosen = self.choose(masks, rows)
        counting = {name: each._replace(mask=chosen.get(name)) for name, each in self.counting.items()}
        return replace(self, args=tuple(arg[rows] for arg in self.args), counting=counting)

    @property
    def with_masked_latents(self) -> Program:
        """The same program with the densities that masked latents would have, which integrate to one.

        For proposals that draw all latents: log p(x) is the same.
        """
        return replace(self, counting={})

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        """Draw latents from the guide, with log q(z|x) of each, `(K, N)`."""
        drawn = drawn_sites(self.run_guide(num_samples))
        latents = {name: site["value"] for name, site in drawn.items()}
        return latents, self._with_masks_of(latents)._log_latents(drawn)

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log p(x|z), each `(K, N)`. Where log p(z) is -inf, log p(x|z), which may be NaN, is 0."""
        sites = dict(sample_sites(self.run_model(latents)))
        observed = {name: site for name, site in sites.items() if name not in latents}
        latent = {name: site for name, site in sites.items() if name in latents}
        for name, counting in self.counting.items():
            counting.refuse_another(latent[name])
        prior = self._log_latents(latent, _within_support)
        return prior, self._log_observed(observed).masked_fill(prior.isneginf(), 0.0)

    def log_guide(self, latents: Latents) -> Tensor:
        """Return log q(z|x) of given latents, `(K, N)`, which the guide need not have drawn.

        Where a guide makes a latent of an auxiliary draw, as automatic guides do, both are given.
        """
        num_samples = next(iter(latents.values())).shape[0]
        made = {name.removesuffix("_unconstrained") for name in latents.keys() & self.structure.auxiliary}
        given = {name: value for name, value in latents.items() if name not in made}
        trace = self._run(poutine.condition(self.guide, data=given), num_samples)
        unknown = sorted(drawn_sites(trace).keys() - made)
        if unknown:
            raise ValueError(
                f"guide: expected a density of the model's latent sites, for values that are given; got the auxiliary "
                f"site {unknown[0]!r}; start from the prior or from Laplace's Gaussian, or write the guide by hand."
            )
        counted = self._with_masks_of(latents)
        return counted._log_given({name: site for name, site in sample_sites(trace) if name in latents})

    def _with_masks_of(self, latents: Latents) -> Program:
        """Return the program with the model's masks for these draws, where masks depend on the draw."""
        if all(each.mask is not None for each in self.counting.values()):
            return self
        sites = self._latent_sites(latents)
        counting = {name: each._replace(mask=each.mask_in(sites[name])) for name, each in self.counting.items()}
        return replace(self, counting=counting)

    def _latent_sites(self, latents: Latents) -> dict[str, Any]:
        """Return the model's latent sites for given latents, running the model no further than needed."""
        given = {name: value for name, value in latents.items() if name in self.structure.latents}
        model = poutine.condition(self.model, data=given)
        trace = self._run(_UntilDrawn(self.structure.latents)(model), len(next(iter(given.values()))))
        return {name: site for name, site in sample_sites(trace) if name in given}

    def _log_given(self, sites: dict[str, Any]) -> Tensor:
        """Return log q(z|x) of values that the guide need not have drawn."""
        try:
            return self._log_latents(sites, _within_support)
        except (KeyError, NotImplementedError) as error:  # from a transform without an inverse
            raise ValueError(
                "guide: expected a density at values that it has not drawn; got a distribution that cannot say it "
                f"({type(error).__name__}: {error}), such as a planar flow, whose inverse is not known; use "
                "proposal='guide' or 'laplace', ais from Laplace's Gaussian or the prior, or a flow with an inverse."
            ) from error

    def draw_prior(self, num_samples: int) -> Latents:
        """Draw latents from the model's prior, running the model no further than needed."""
        try:
            sites = drawn_sites(self._run(_UntilDrawn(self.structure.latents)(self.model), num_samples))
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"model: expected a prior that can be drawn from; got {type(error).__name__} ({error}); use "
                "importance_sampling with proposal='guide' or 'laplace'."
            ) from error
        return {name: site["value"] for name, site in sites.items()}

    def log_prior(self, latents: Latents) -> Tensor:
        """Return log p(z) of given latents, `(K, N)`, running the model no further than needed."""
        return self._log_latents(self._latent_sites(latents), _within_support)

    def sites(self, num_samples: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the model's latent and observed sites in one run, with latents from the guide."""
        latents, _ = self.draw(num_samples)
        sites = dict(sample_sites(self.run_model(latents)))
        return (
            {name: site for name, site in sites.items() if name in latents},
            {name: site for name, site in sites.items() if name not in latents},
        )

    def observed_values(self) -> dict[str, ObservedSite]:
        """Return what was observed at each site."""
        parts = [{name: self._observed_site(site) for name, site in observed.items()} for observed in self._observed()]
        return {name: ObservedSite.joined([part[name] for part in parts]) for name in parts[0]}

    def refuse_impossible_data(self) -> None:
        """Raise if an observed value is outside the support of its distribution."""
        for observed in self._observed():
            refuse_impossible_data(observed)

    @torch.no_grad()
    def _observed(self) -> Iterator[dict[str, Any]]:
        """Yield the observed sites, some rows at a time."""
        for rows in self.rows_at_a_time():
            with seeded(rows.device, 0), pyro.validation_enabled(False):
                yield self.at(rows).sites()[1]

    def _observed_site(self, site: dict[str, Any]) -> ObservedSite:
        value = self.draws_first(site["value"].expand(_joint_shape(site)))[0]
        masks = () if elements_of(site).mask is None else (self.draws_first(mask_of(site))[0],)
        return ObservedSite(value, kind_of(site), masks)

    def draws_first(self, value: Tensor) -> Tensor:
        """Reorder a site's dimensions to draws, data, others: `(K, N, ...)`."""
        return value.movedim(self.structure.data_axis, 1)

    def draw_alone(self) -> poutine.Trace:
        """Run the guide without a dimension of draws."""
        with poutine.block():
            return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)

    def alone(self, guide_trace: poutine.Trace) -> _Alone:
        """Evaluate model and guide without a dimension of draws, and add this dimension to the latents."""
        drawn = drawn_sites(guide_trace)
        given = {name: site["value"] for name, site in drawn.items()}
        with poutine.block():
            trace = poutine.trace(poutine.condition(self.model, data=given)).get_trace(*self.args, **self.kwargs)
        sites = dict(sample_sites(trace))
        prior = self._log_latents({name: site for name, site in sites.items() if name in given}, _within_support)
        observed = self._log_observed({name: site for name, site in sites.items() if name not in given})
        densities = (prior, observed.masked_fill(prior.isneginf(), 0.0), self._log_latents(drawn))
        batch_ndim = -self.structure.particle_dim
        widened = {
            name: value[(None,) * (batch_ndim - value.ndim + drawn[name]["fn"].event_dim)]
            for name, value in given.items()
        }
        return _Alone(widened, densities)

    def log_drawn(self, latents: Latents) -> Tensor | None:
        """Return log q(z|x) of all that a guide draws, `(K, N)`; None if it has no density at given values."""
        num_samples = next(iter(latents.values())).shape[0]
        trace = self._run(poutine.condition(self.guide, data=latents), num_samples)
        try:
            return self._log_given({name: site for name, site in sample_sites(trace) if name in latents})
        except ValueError:
            return None

    def exchanged(self, latents: Latents, others: Latents) -> Latents:
        """Replace latents by others where they do not count."""
        sites = dict(sample_sites(self.run_model(latents)))
        changed = dict(latents)
        for name, counting in self.counting.items():
            mask = counting.mask_in(sites[name])
            mask = mask.reshape(*mask.shape, *(1,) * (latents[name].ndim - mask.ndim))
            changed[name] = torch.where(mask, latents[name], others[name])
        return changed

    def rows_at_a_time(self) -> Iterator[Tensor]:
        """Yield all rows; some at a time, if the pair runs on any number of them."""
        everyone = torch.arange(self.num_data, device=self.args[0].device)
        yield from everyone.split(LOOKED_AT_TOGETHER if self.structure.amortized else self.num_data)

    def run_guide(self, num_samples: int) -> poutine.Trace:
        """Run the guide."""
        return self._run(self.guide, num_samples)

    def run_model(self, latents: Latents) -> poutine.Trace:
        """Run the model with these latents."""
        num_samples = next(iter(latents.values())).shape[0]
        return self._run(poutine.condition(self.model, data=latents), num_samples)

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """Select the latents of some of the data."""
        return {name: value.index_select(self.structure.data_axis, rows) for name, value in latents.items()}

    def _run(self, fn: Callable[..., Any], num_samples: int) -> poutine.Trace:
        with poutine.block(), contextlib.suppress(_AllDrawn):
            particles = pyro.plate("_particles", num_samples, dim=self.structure.particle_dim)
            tracer = poutine.trace(particles(fn))
            tracer(*self.args, **self.kwargs)
        refuse_subsampling(tracer.trace)
        return tracer.trace

    def _log_observed(self, sites: dict[str, Any]) -> Tensor:
        return self._sum(
            scale_and_mask(_log_prob(site["fn"], site["value"]), mask=site["mask"]) for site in sites.values()
        )

    def _log_latents(self, sites: dict[str, Any], log_prob: Callable[[Any, Tensor], Tensor] = _log_prob) -> Tensor:
        return self._sum(self._log_latent(site, log_prob) for site in sites.values())

    def _log_latent(self, site: dict[str, Any], log_prob: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return the log density of a latent: of all of it, or of the parts that count."""
        fn = elements_of(site).fn
        each = log_prob(fn, site["value"])
        counting = self.counting.get(name_of_latent(site))
        if counting is None:
            return sum_rightmost(each, site["fn"].event_dim - fn.event_dim)
        return counting.total(site, each)

    def _sum(self, log_probs: Iterable[Tensor]) -> Tensor:
        return torch.stack([self._per_datum(each.double()) for each in log_probs]).sum(0)

    def _per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum a site's log density over all but draws and data, without the scale of plates."""
        keep = (self.structure.particle_dim, self.structure.data_dim)
        log_prob = log_prob[(None,) * (-self.structure.particle_dim - log_prob.ndim)]
        others = [dim for dim in range(-log_prob.ndim, 0) if dim not in keep]
        return log_prob.sum(others) if others else log_prob
