"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
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
from pyro_vae.program.draws import AS_ROWS, ONE_BY_ONE, SIDE_BY_SIDE, Fixed, Given, apart, as_rows, widened
from pyro_vae.program.masks import Counting, elements_of, mask_of, parts_that_count
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
from pyro_vae.program.summing import NOTHING, Summed, at_one_value, log_sum, summing

__all__ = ["GuideOfRows", "Latents", "LogDensities", "Program", "has_rows", "in_place_of_rows"]

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


class Sites(NamedTuple):
    """The sites of one run of guide and model, by name."""

    latent: dict[str, Any]
    """The model's latent sites."""
    observed: dict[str, Any]
    """The model's observed sites."""
    drawn: dict[str, Any]
    """What the guide drew."""


LOOKED_AT_TOGETHER = 8192  # data


def has_rows(arg: Any) -> bool:
    """Tell whether an argument has one row a datum."""
    return isinstance(arg, Tensor) and arg.ndim > 0


def in_place_of_rows(args: tuple[Any, ...], rows: Iterable[Tensor]) -> tuple[Any, ...]:
    """Replace the rows among the arguments."""
    remaining = iter(rows)
    return tuple(next(remaining) if has_rows(arg) else arg for arg in args)


def _num_draws(latents: Latents) -> int:
    return len(next(iter(latents.values())))


def _unmasked(site: dict[str, Any]) -> Tensor:
    """Evaluate all of a site, one number for each element of its batch."""
    fn = elements_of(site).fn
    return sum_rightmost(_log_prob(fn, site["value"]), site["fn"].event_dim - fn.event_dim)


def _log_observed(site: dict[str, Any]) -> Tensor:
    """Evaluate an observed site where it counts. A plate's scale is no part of its density."""
    return scale_and_mask(_log_prob(site["fn"], site["value"]), mask=site["mask"])


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


class GuideOfRows(ABC):
    """A guide that has something of its own for each row."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the latents of the rows."""

    @abstractmethod
    def at(self, rows: Tensor) -> GuideOfRows:
        """Select rows by index."""


@dataclass(frozen=True)
class Program:
    """A Pyro model and guide, with the data they are called on.

    Of `args` the tensors have one row a datum, the first of them x. What else is among them, and `kwargs`, goes to
    model and guide as it is.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
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

    @property
    def device(self) -> torch.device:
        return self.args[0].device

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Return the arguments that have one row a datum."""
        return tuple(arg for arg in self.args if has_rows(arg))

    def with_rows(self, rows: Iterable[Tensor]) -> Program:
        """Replace the rows; which parts of the latents count stays."""
        return replace(self, args=in_place_of_rows(self.args, rows))

    def with_guide(self, guide: Callable[..., Any]) -> Program:
        """Replace the guide."""
        return replace(self, guide=guide)

    def at(self, rows: Tensor) -> Program:
        """Select data by row."""
        masks = {name: each.mask for name, each in self.counting.items() if each.mask is not None}
        chosen = self.choose(masks, rows)
        counting = {name: each._replace(mask=chosen.get(name)) for name, each in self.counting.items()}
        guide = self.guide.at(rows) if isinstance(self.guide, GuideOfRows) else self.guide
        return replace(self.with_rows(tuple(arg[rows] for arg in self.rows)), guide=guide, counting=counting)

    @property
    def with_masked_latents(self) -> Program:
        """The same program with the densities that masked latents would have, which integrate to one.

        For proposals that draw all latents: log p(x) is the same.
        """
        return replace(self, counting={})

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        """Draw latents from the guide, with log q(z|x) of each, `(K, N)`."""
        latents, (log_q,) = self._drawn(Program._draw_guide, num_samples)
        return latents, log_q

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log p(x|z), each `(K, N)`. Where log p(z) is -inf, log p(x|z), which may be NaN, is 0."""
        prior, likelihood = self._of_each_draw(Program._log_joint, latents)
        return prior, likelihood

    def log_guide(self, latents: Latents) -> Tensor:
        """Return log q(z|x) of given latents, `(K, N)`, which the guide need not have drawn.

        Where a guide makes a latent of an auxiliary draw, as automatic guides do, both are given.
        """
        (log_q,) = self._of_each_draw(Program._log_guide, latents)
        return log_q

    def log_drawn(self, latents: Latents) -> Tensor | None:
        """Return log q(z|x) of all that a guide draws, `(K, N)`; None if it has no density at given values."""
        try:
            (log_q,) = self._of_each_draw(Program._log_drawn, latents)
        except ValueError:
            return None
        return log_q

    def draw_prior(self, num_samples: int) -> Latents:
        """Draw latents from the model's prior, running the model no further than needed."""
        latents, _ = self._drawn(Program._draw_prior, num_samples)
        return latents

    def log_prior(self, latents: Latents) -> Tensor:
        """Return log p(z) of given latents, `(K, N)`, running the model no further than needed."""
        (log_p,) = self._of_each_draw(Program._log_prior, latents)
        return log_p

    def densities_at_one_value(self, latents: Latents, place: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluate model and guide at one value of what is summed out: among all values, and alone, `(1, N)` each."""
        plain = replace(self, structure=replace(self.structure, draws=ONE_BY_ONE))
        for fn, summed in ((self.model, self.structure.summed), (self.guide, self.structure.summed_in_guide)):
            if summed:
                among = self._run(fn, 1, summed, latents)
                values, pickers = at_one_value(among, summed, place)
                try:
                    alone = plain._run(fn, 1, given=latents, fixed=values)
                except Exception:  # written for all values at once, which are then the only meaning that it has
                    continue
                names = [name for name, site in sample_sites(among) if name in alone]
                log_probs = (pickers[name](_unmasked(among.nodes[name])) for name in names)
                yield (
                    self._sum(each.reshape(each.shape[max(0, each.ndim - self._batch_ndim) :]) for each in log_probs),
                    self._sum(_unmasked(alone.nodes[name]) for name in names),
                )

    def parts_that_count(self, latents: Latents, event_dims: dict[str, int]) -> dict[str, Tensor]:
        """Return which parts of the latents count, `(K, ..., N, ...)`, for parts of so many dimensions."""

        def parts(program: Program, some: Latents) -> tuple[Tensor, ...]:
            sites = program.model_sites(some)
            return tuple(parts_that_count(sites[name], event_dim) for name, event_dim in event_dims.items())

        found = self._of_each_draw(parts, latents, self.structure.data_axis)
        return dict(zip(event_dims, found, strict=True))

    def _draw_guide(self, num_samples: int) -> tuple[Latents, tuple[Tensor, ...]]:
        drawn = self._drawn_sites(self._run(self.guide, num_samples))
        latents = {name: self._in_layout(site)["value"] for name, site in drawn.items()}
        if self.structure.summed_in_guide:
            return latents, (self._log_guide_summed(latents),)
        return latents, (self._with_masks_of(latents)._log_latents(drawn),)

    def _log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        trace = self._run(self.model, _num_draws(latents), self.structure.summed, latents)
        sites = dict(sample_sites(trace))
        latent = {name: site for name, site in sites.items() if name in latents}
        for name, counting in self.counting.items():
            counting.refuse_another(latent[name])
        if self.structure.summed:
            prior = self._log_summed(trace, latents, latents.keys())
            likelihood = self._log_summed(trace, latents, sites.keys()) - prior
        else:
            prior = self._log_latents(latent, _within_support)
            likelihood = self._log_observed({name: site for name, site in sites.items() if name not in latents})
        return prior, likelihood.masked_fill(prior.isneginf(), 0.0)

    def _log_guide(self, latents: Latents) -> tuple[Tensor]:
        made = {name.removesuffix("_unconstrained") for name in latents.keys() & self.structure.auxiliary}
        given = {name: value for name, value in latents.items() if name not in made}
        if self.structure.summed_in_guide:
            return (self._log_guide_summed(given),)
        trace = self._run(self.guide, _num_draws(given), given=given)
        unknown = sorted(drawn_sites(trace).keys() - made)
        if unknown:
            raise ValueError(
                f"guide: expected a density of the model's latent sites, for values that are given; got the auxiliary "
                f"site {unknown[0]!r}; start from the prior or from Laplace's Gaussian, or write the guide by hand."
            )
        counted = self._with_masks_of(latents)
        return (counted._log_given({name: site for name, site in sample_sites(trace) if name in latents}),)

    def _log_drawn(self, latents: Latents) -> tuple[Tensor]:
        if self.structure.summed_in_guide:
            return (self._log_guide_summed(latents),)
        trace = self._run(self.guide, _num_draws(latents), given=latents)
        return (self._log_given({name: site for name, site in sample_sites(trace) if name in latents}),)

    def _draw_prior(self, num_samples: int) -> tuple[Latents, tuple[Tensor, ...]]:
        try:
            sites = self._drawn_sites(self._run(_UntilDrawn(self.structure.latents)(self.model), num_samples))
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"model: expected a prior that can be drawn from; got {type(error).__name__} ({error}); use "
                "importance_sampling with proposal='guide' or 'laplace'."
            ) from error
        return {name: self._in_layout(site)["value"] for name, site in sites.items()}, ()

    def _log_prior(self, latents: Latents) -> tuple[Tensor]:
        if self.structure.summed:
            latents = {name: value for name, value in latents.items() if name in self.structure.latents}
            return (self._log_summed(self._run_of_latents(latents), latents, latents.keys()),)
        return (self._log_latents(self._latent_sites(latents), _within_support),)

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
        return {name: site for name, site in sample_sites(self._run_of_latents(given)) if name in given}

    def _run_of_latents(self, latents: Latents) -> poutine.Trace:
        """Run the model on given latents, no further than needed."""
        until_drawn = _UntilDrawn(self.structure.latents)(self.model)
        return self._run(until_drawn, _num_draws(latents), self.structure.summed, latents)

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

    def _log_guide_summed(self, latents: Latents) -> Tensor:
        """Return log q(z|x), summed over the discrete latents on which the others depend."""
        trace = self._run(self.guide, _num_draws(latents), self.structure.summed_in_guide, latents)
        return self._log_summed(trace, latents, latents.keys())

    def _log_summed(self, trace: poutine.Trace, latents: Latents, names: Iterable[str]) -> Tensor:
        """Return the log density of these sites, summed over the discrete latents without a draw, `(K, N)`."""
        open_sites = self.structure.summed.names | latents.keys()
        log_probs = {
            name: self._log_latent(site, _within_support) if name in open_sites else _log_observed(site)
            for name, site in sample_sites(trace)
            if name in self.structure.summed.names.union(names)
        }
        kept = {self.structure.data_dim: self.num_data}
        if self._is_side_by_side:
            kept = {self.structure.particle_dim: _num_draws(latents)} | kept
        log_prob = log_sum(trace, {name: value.double() for name, value in log_probs.items()}, kept)
        return log_prob.reshape(-1, self.num_data)

    def sites(self) -> Sites:
        """Return the sites of one draw from the guide.

        Where discrete latents are summed out, the model's distributions have dimensions for them.
        """
        drawn = self.guide_sites(1)
        latents = {name: site["value"] for name, site in drawn.items()}
        trace = self._run(self.model, 1, self.structure.summed, latents)
        sites = {
            name: self._in_layout(site) for name, site in sample_sites(trace) if name not in self.structure.summed.names
        }
        latent = {name: {**site, "value": latents[name]} for name, site in sites.items() if name in latents}
        return Sites(latent, {name: site for name, site in sites.items() if name not in latents}, drawn)

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
                yield self.at(rows).sites().observed

    def _observed_site(self, site: dict[str, Any]) -> ObservedSite:
        value, ndim = site["value"], self._batch_ndim + site["fn"].event_dim
        value = value[(0,) * (value.ndim - ndim)]  # of the first value of what is summed out
        shape = torch.broadcast_shapes(value.shape, site["fn"].shape()[-ndim:])
        value = value.expand(shape)
        masks: tuple[Tensor, ...] = ()
        if elements_of(site).mask is not None:
            masks = (self._of_one_draw(mask_of(site), len(site["fn"].batch_shape)),)
        return ObservedSite(self.draws_first(value)[0], kind_of(site), masks)

    def draws_first(self, value: Tensor) -> Tensor:
        """Reorder a site's dimensions to draws, data, others: `(K, N, ...)`."""
        return value.movedim(self.structure.data_axis, 1)

    def exchanged(self, latents: Latents, others: Latents) -> Latents:
        """Replace latents by others where they do not count."""
        masks = self.parts_that_count(latents, {name: each.event_dim for name, each in self.counting.items()})
        changed = dict(latents)
        for name, mask in masks.items():
            whole = mask.reshape(*mask.shape, *(1,) * (latents[name].ndim - mask.ndim))
            changed[name] = torch.where(whole, latents[name], others[name])
        return changed

    def rows_at_a_time(self) -> Iterator[Tensor]:
        """Yield all rows; some at a time, if the pair runs on any number of them."""
        everyone = torch.arange(self.num_data, device=self.args[0].device)
        yield from everyone.split(LOOKED_AT_TOGETHER if self.structure.amortized else self.num_data)

    def guide_sites(self, num_samples: int) -> dict[str, Any]:
        """Run the guide, and return the sites that it draws."""
        drawn = self._drawn_sites(self._run(self.guide, num_samples))
        return {name: self._in_layout(site) for name, site in drawn.items()}

    def model_sites(self, latents: Latents) -> dict[str, Any]:
        """Run the model with these latents. Where draws are rows, its sites have the layout of one draw."""
        num_samples = _num_draws(latents)
        if self.structure.draws == AS_ROWS and num_samples > 1:
            rows = {name: as_rows(value, self.structure.data_axis) for name, value in latents.items()}
            return self._repeated(num_samples).model_sites(rows)
        sites = sample_sites(self._run(self.model, num_samples, given=latents))
        return {name: self._in_layout(site) for name, site in sites}

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """Select the latents of some of the data."""
        return {name: value.index_select(self.structure.data_axis, rows) for name, value in latents.items()}

    def _of_each_draw(
        self, run: Callable[[Program, Latents], tuple[Tensor, ...]], latents: Latents, axis: int = 1
    ) -> tuple[Tensor, ...]:
        """Evaluate draws in the program's arrangement; `axis` is where data lie in what is found."""
        num_samples = _num_draws(latents)
        if self._is_side_by_side or num_samples == 1:
            return run(self, latents)
        if self.structure.draws == AS_ROWS:
            rows = {name: as_rows(value, self.structure.data_axis) for name, value in latents.items()}
            return tuple(apart(each, num_samples, axis) for each in run(self._repeated(num_samples), rows))
        found = [run(self, {name: value[k : k + 1] for name, value in latents.items()}) for k in range(num_samples)]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _drawn(
        self, draw: Callable[[Program, int], tuple[Latents, tuple[Tensor, ...]]], num_samples: int
    ) -> tuple[Latents, tuple[Tensor, ...]]:
        """Draw latents in the program's arrangement, with their densities."""
        if self._is_side_by_side or num_samples == 1:
            return draw(self, num_samples)
        if self.structure.draws == AS_ROWS:
            rows, densities = draw(self._repeated(num_samples), 1)
            latents = {name: apart(value, num_samples, self.structure.data_axis) for name, value in rows.items()}
            return latents, tuple(apart(each, num_samples, 1) for each in densities)
        draws, found = zip(*(draw(self, 1) for _ in range(num_samples)), strict=True)
        latents = {name: torch.cat([each[name] for each in draws]) for name in draws[0]}
        return latents, tuple(map(torch.cat, zip(*found, strict=True)))

    def _repeated(self, num_samples: int) -> Program:
        """Repeat each row for its draws, one draw of all rows after the other."""
        return self.at(torch.arange(self.num_data, device=self.device).repeat(num_samples))

    @property
    def _is_side_by_side(self) -> bool:
        return self.structure.draws == SIDE_BY_SIDE

    @property
    def _batch_ndim(self) -> int:
        return -self.structure.particle_dim

    def _of_one_draw(self, value: Tensor, batch_ndim: int) -> Tensor:
        """Select the first draw of a tensor with so many batch dimensions, and put data first."""
        value = value[(None,) * (self._batch_ndim - batch_ndim)] if batch_ndim < self._batch_ndim else value
        return self.draws_first(value[(0,) * (batch_ndim - self._batch_ndim)])[0]

    def _in_layout(self, site: dict[str, Any]) -> dict[str, Any]:
        """Give the site a dimension of draws, where the program ran without."""
        return site if self._is_side_by_side else widened(site, self._batch_ndim)

    def _drawn_sites(self, trace: poutine.Trace) -> dict[str, Any]:
        return {name: site for name, site in drawn_sites(trace).items() if name not in self.structure.summed.names}

    def _run(
        self,
        fn: Callable[..., Any],
        num_samples: int,
        summed: Summed = NOTHING,
        given: Latents | None = None,
        fixed: Latents | None = None,
    ) -> poutine.Trace:
        """Run with so many draws. Sites that are summed out take all their values at once, others those that are given.

        The order of handlers is that of Pyro's `TraceEnum_ELBO`.
        """
        particle_dim = self.structure.particle_dim
        with poutine.block(), contextlib.suppress(_AllDrawn):
            if self._is_side_by_side:
                fn = pyro.plate("_particles", num_samples, dim=particle_dim)(fn)
            if summed:  # in dimensions to the left of the draws', or in its place where there is none
                fn = summing(fn, summed, particle_dim - self._is_side_by_side)
            if fixed is not None:
                fn = Fixed(fixed)(fn)
            if given is not None:
                fn = Given(given)(fn)
            tracer = poutine.trace(fn)
            tracer(*self.args, **self.kwargs)
        refuse_subsampling(tracer.trace)
        return tracer.trace

    def _log_observed(self, sites: dict[str, Any]) -> Tensor:
        return self._sum(map(_log_observed, sites.values()))

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
