"""A (model, guide) pair with its data: how it is run, with how many draws, and what its sites are."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae._random import seeded
from pyro_vae.program.draws import AS_ROWS, SIDE_BY_SIDE, Fixed, Given, apart, as_rows, widened
from pyro_vae.program.masks import elements_of, mask_of
from pyro_vae.program.points import IS_POINT
from pyro_vae.program.refusals import refuse_subsampling
from pyro_vae.program.sites import drawn_sites, kind_of, sample_sites
from pyro_vae.program.structure import Structure
from pyro_vae.program.summing import NOTHING, Summed, summing

__all__ = [
    "LOOKED_AT_TOGETHER",
    "GuideOfRows",
    "Latents",
    "ObservedSite",
    "Runs",
    "Sites",
    "UntilDrawn",
    "has_rows",
    "in_place_of_rows",
    "num_draws",
]


Latents = dict[str, Tensor]


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


def _refuse_other_latents(draws: Iterable[Latents]) -> None:
    names = {frozenset(each) for each in draws}
    some = sorted(frozenset.union(*names) - frozenset.intersection(*names))
    if some:
        raise ValueError(
            f"model, guide: expected the same latents in each draw; got {', '.join(map(repr, some))} in some of them; "
            "draw them in all, and mask them where they do not count."
        )


def num_draws(latents: Latents) -> int:
    """Count the draws."""
    return len(next(iter(latents.values())))


class _AllDrawn(Exception):
    """Raised when a run has drawn its last latent."""


class UntilDrawn(Messenger):
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
class Runs:
    """A Pyro model and guide, with the data they are called on, as they can be run.

    Of `args` the tensors have one row a datum, the first of them x. What else is among them, and `kwargs`, goes to
    model and guide as it is.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    structure: Structure

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

    def with_rows(self, rows: Iterable[Tensor]) -> Self:
        """Replace the rows; which parts of the latents count stays."""
        return replace(self, args=in_place_of_rows(self.args, rows))

    def knowing(self, guide_has_density: bool) -> Self:
        """Keep whether the guide's density is known at values that it has not drawn."""
        return replace(self, structure=replace(self.structure, guide_has_density=guide_has_density))

    def with_guide(self, guide: Callable[..., Any]) -> Self:
        """Replace the guide."""
        return replace(self, guide=guide)

    def _latent_sites(self, latents: Latents) -> dict[str, Any]:
        """Return the model's latent sites for given latents, running the model no further than needed."""
        given = {name: value for name, value in latents.items() if name in self.structure.latents}
        return {name: site for name, site in sample_sites(self._run_of_latents(given)) if name in given}

    def _run_of_latents(self, latents: Latents) -> poutine.Trace:
        """Run the model on given latents, no further than needed."""
        until_drawn = UntilDrawn(self.structure.latents)(self.model)
        return self._run(until_drawn, num_draws(latents), self.structure.summed, latents)

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
        hidden = {name for name, site in sites.items() if site["infer"].get(IS_POINT)} | latents.keys()
        return Sites(latent, {name: site for name, site in sites.items() if name not in hidden}, drawn)

    def observed_values(self) -> dict[str, ObservedSite]:
        """Return what was observed at each site."""
        pieces = [each for _, each in self.sites_of_pieces()]
        parts = [{name: self._observed_site(site) for name, site in each.observed.items()} for each in pieces]
        return {name: ObservedSite.joined([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def sites_of_pieces(self) -> Iterator[tuple[Self, Sites]]:
        """Yield the program on some rows at a time, with its sites."""
        for rows in self.rows_at_a_time():
            some = self.at(rows)
            with seeded(rows.device, 0), pyro.validation_enabled(False):
                sites = some.sites()
            yield some, sites

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

    def rows_at_a_time(self) -> Iterator[Tensor]:
        """Yield all rows; some at a time, if the pair runs on any number of them."""
        everyone = torch.arange(self.num_data, device=self.args[0].device)
        yield from everyone.split(LOOKED_AT_TOGETHER if self.structure.amortized else self.num_data)

    def guide_sites(self, num_samples: int) -> dict[str, Any]:
        """Run the guide, and return the sites that it draws."""
        drawn = self._drawn_sites(self._run(self.guide, num_samples))
        return {name: self._in_layout(site) for name, site in drawn.items()}

    def guide_sites_at(self, given: Latents) -> dict[str, Any]:
        """Run the guide with one draw of some of its sites, and return all of its sites."""
        trace = self._run(self.guide, 1, given=given)
        return {name: self._in_layout(site) for name, site in sample_sites(trace)}

    def model_sites(self, latents: Latents) -> dict[str, Any]:
        """Run the model with these latents. Where draws are rows, its sites have the layout of one draw."""
        num_samples = num_draws(latents)
        if self.structure.draws == AS_ROWS and num_samples > 1:
            rows = {name: as_rows(value, self.structure.data_axis) for name, value in latents.items()}
            return self._repeated(num_samples).model_sites(rows)
        sites = sample_sites(self._run(self.model, num_samples, given=latents))
        return {name: self._in_layout(site) for name, site in sites}

    def at(self, rows: Tensor) -> Self:
        """Select data by row."""
        guide = self.guide.at(rows) if isinstance(self.guide, GuideOfRows) else self.guide
        return replace(self.with_rows(tuple(arg[rows] for arg in self.rows)), guide=guide)

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """Select the latents of some of the data."""
        return {name: value.index_select(self.structure.data_axis, rows) for name, value in latents.items()}

    def _of_each_draw(
        self, run: Callable[[Any, Latents], tuple[Tensor, ...]], latents: Latents, axis: int = 1
    ) -> tuple[Tensor, ...]:
        """Evaluate draws in the program's arrangement; `axis` is where data lie in what is found."""
        num_samples = num_draws(latents)
        if self._is_side_by_side or num_samples == 1:
            return run(self, latents)
        if self.structure.draws == AS_ROWS:
            rows = {name: as_rows(value, self.structure.data_axis) for name, value in latents.items()}
            return tuple(apart(each, num_samples, axis) for each in run(self._repeated(num_samples), rows))
        found = [run(self, {name: value[k : k + 1] for name, value in latents.items()}) for k in range(num_samples)]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def _drawn(
        self, draw: Callable[[Any, int], tuple[Latents, tuple[Tensor, ...]]], num_samples: int
    ) -> tuple[Latents, tuple[Tensor, ...]]:
        """Draw latents in the program's arrangement, with their densities."""
        if self._is_side_by_side or num_samples == 1:
            return draw(self, num_samples)
        if self.structure.draws == AS_ROWS:
            rows, densities = draw(self._repeated(num_samples), 1)
            latents = {name: apart(value, num_samples, self.structure.data_axis) for name, value in rows.items()}
            return latents, tuple(apart(each, num_samples, 1) for each in densities)
        draws, found = zip(*(draw(self, 1) for _ in range(num_samples)), strict=True)
        _refuse_other_latents(draws)
        latents = {name: torch.cat([each[name] for each in draws]) for name in draws[0]}
        return latents, tuple(map(torch.cat, zip(*found, strict=True)))

    def _repeated(self, num_samples: int) -> Self:
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

        Where data are visited in turn, the run has no dimension for them, and its sites are joined.
        """
        turns, particle_dim = self.structure.in_turn, self.structure.particle_dim
        if turns is None:
            return self._trace(fn, num_samples, particle_dim, summed, given, fixed)
        given, fixed = (None if values is None else turns.parts_of(values) for values in (given, fixed))
        return turns.joined(self._trace(fn, num_samples, particle_dim + 1, summed, given, fixed))

    def _trace(
        self,
        fn: Callable[..., Any],
        num_samples: int,
        particle_dim: int,
        summed: Summed,
        given: Latents | None,
        fixed: Latents | None,
    ) -> poutine.Trace:
        """Trace a run, with handlers in the order of Pyro's `TraceEnum_ELBO`."""
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
