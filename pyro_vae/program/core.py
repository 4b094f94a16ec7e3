"""A (model, guide) pair seen as functions of its latents: per datum, and vectorised over draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_vae.program.draws import ONE_BY_ONE
from pyro_vae.program.masks import Counting, elements_of, parts_that_count
from pyro_vae.program.refusals import said
from pyro_vae.program.runs import Latents, Runs, UntilDrawn, num_draws
from pyro_vae.program.sites import (
    drawn_sites,
    log_prob,
    log_prob_in_support,
    log_prob_observed,
    log_prob_of_all,
    name_of_latent,
    sample_sites,
)
from pyro_vae.program.summing import at_one_value, log_sum

__all__ = ["LogDensities", "Program"]


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


@dataclass(frozen=True)
class Program(Runs):
    """A pair with its data as log densities of its latents, for each datum."""

    counting: dict[str, Counting] = field(default_factory=dict)
    """Which parts of the latents count, for those that are masked: densities are of these parts alone."""

    def at(self, rows: Tensor) -> Self:
        masks = {name: each.mask for name, each in self.counting.items() if each.mask is not None}
        chosen = self.choose(masks, rows)
        counting = {name: each._replace(mask=chosen.get(name)) for name, each in self.counting.items()}
        return replace(super().at(rows), counting=counting)

    @property
    def with_masked_latents(self) -> Self:
        """The same program with the densities that masked latents would have, which integrate to one.

        For proposals that draw all latents: log p(x) is the same.
        """
        return replace(self, counting={})

    def latents_of(self, drawn: Latents) -> list[str]:
        """List the model's latents among what a guide draws: an automatic guide has auxiliary draws beside them."""
        return [name for name in drawn if name in self.structure.latents]

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

    def densities_at_one_value(
        self, latents: Latents, place: int, note: Callable[[str], None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluate model and guide at one value of what is summed out: among all values, and alone, `(1, N)` each.

        A program that does not run on a value alone is left out, and `note` is told why.
        """
        plain = replace(self, structure=replace(self.structure, draws=ONE_BY_ONE))
        for fn, summed in ((self.model, self.structure.summed), (self.guide, self.structure.summed_in_guide)):
            if summed:
                among = self._run(fn, 1, summed, latents)
                values, pickers = at_one_value(among, summed, place)
                try:
                    alone = plain._run(fn, 1, given=latents, fixed=values)
                except Exception as error:  # written for all values at once, the only meaning that it then has
                    note(said(error))
                    continue
                names = [name for name, site in sample_sites(among) if name in alone]
                log_probs = (pickers[name](log_prob_of_all(among.nodes[name])) for name in names)
                yield (
                    self._sum(each.reshape(each.shape[max(0, each.ndim - self._batch_ndim) :]) for each in log_probs),
                    self._sum(log_prob_of_all(alone.nodes[name]) for name in names),
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
        trace = self._run(self.model, num_draws(latents), self.structure.summed, latents)
        sites = dict(sample_sites(trace))
        latent = {name: site for name, site in sites.items() if name in latents}
        for name, counting in self.counting.items():
            counting.refuse_another(latent[name])
        if self.structure.summed:
            prior = self._log_summed(trace, latents, latents.keys())
            likelihood = self._log_summed(trace, latents, sites.keys()) - prior
        else:
            prior = self._log_latents(latent, log_prob_in_support)
            likelihood = self._log_observed({name: site for name, site in sites.items() if name not in latents})
        return prior, likelihood.masked_fill(prior.isneginf(), 0.0)

    def _log_guide(self, latents: Latents) -> tuple[Tensor]:
        made = {name.removesuffix("_unconstrained") for name in latents.keys() & self.structure.auxiliary}
        given = {name: value for name, value in latents.items() if name not in made}
        if self.structure.summed_in_guide:
            return (self._log_guide_summed(given),)
        trace = self._run(self.guide, num_draws(given), given=given)
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
        trace = self._run(self.guide, num_draws(latents), given=latents)
        return (self._log_given({name: site for name, site in sample_sites(trace) if name in latents}),)

    def _draw_prior(self, num_samples: int) -> tuple[Latents, tuple[Tensor, ...]]:
        try:
            sites = self._drawn_sites(self._run(UntilDrawn(self.structure.latents)(self.model), num_samples))
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
        return (self._log_latents(self._latent_sites(latents), log_prob_in_support),)

    def _with_masks_of(self, latents: Latents) -> Self:
        """Return the program with the model's masks for these draws, where masks depend on the draw."""
        if all(each.mask is not None for each in self.counting.values()):
            return self
        sites = self._latent_sites(latents)
        counting = {name: each._replace(mask=each.mask_in(sites[name])) for name, each in self.counting.items()}
        return replace(self, counting=counting)

    def _log_given(self, sites: dict[str, Any]) -> Tensor:
        """Return log q(z|x) of values that the guide need not have drawn."""
        try:
            return self._log_latents(sites, log_prob_in_support)
        except (KeyError, NotImplementedError) as error:  # from a transform without an inverse
            raise ValueError(
                "guide: expected a density at values that it has not drawn; got a distribution that cannot say it "
                f"({type(error).__name__}: {error}), such as a planar flow, whose inverse is not known; use "
                "proposal='guide' or 'laplace', ais from Laplace's Gaussian or the prior, or a flow with an inverse."
            ) from error

    def _log_guide_summed(self, latents: Latents) -> Tensor:
        """Return log q(z|x), summed over the discrete latents on which the others depend."""
        trace = self._run(self.guide, num_draws(latents), self.structure.summed_in_guide, latents)
        return self._log_summed(trace, latents, latents.keys())

    def _log_summed(self, trace: poutine.Trace, latents: Latents, names: Iterable[str]) -> Tensor:
        """Return the log density of these sites, summed over the discrete latents without a draw, `(K, N)`."""
        open_sites = self.structure.summed.names | latents.keys()
        log_probs = {
            name: self._log_latent(site, log_prob_in_support) if name in open_sites else log_prob_observed(site)
            for name, site in sample_sites(trace)
            if name in self.structure.summed.names.union(names)
        }
        kept = {self.structure.data_dim: self.num_data}
        if self._is_side_by_side:
            kept = {self.structure.particle_dim: num_draws(latents)} | kept
        log_prob = log_sum(trace, {name: value.double() for name, value in log_probs.items()}, kept)
        return log_prob.reshape(-1, self.num_data)

    def exchanged(self, latents: Latents, others: Latents) -> Latents:
        """Replace latents by others where they do not count."""
        masks = self.parts_that_count(latents, {name: each.event_dim for name, each in self.counting.items()})
        changed = dict(latents)
        for name, mask in masks.items():
            whole = mask.reshape(*mask.shape, *(1,) * (latents[name].ndim - mask.ndim))
            changed[name] = torch.where(whole, latents[name], others[name])
        return changed

    def _log_observed(self, sites: dict[str, Any]) -> Tensor:
        return self._sum(map(log_prob_observed, sites.values()))

    def _log_latents(self, sites: dict[str, Any], log_prob: Callable[[Any, Tensor], Tensor] = log_prob) -> Tensor:
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
