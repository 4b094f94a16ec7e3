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

from pyro_vae import _checks
from pyro_vae._masks import Counting, elements_of, mask_of, parts_that_count
from pyro_vae._structure import (
    Structure,
    drawn_sites,
    initialise,
    is_angle,
    is_circular,
    kind_of,
    look_at,
    name_of_latent,
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
NUM_MASKED_DRAWS = 64  # on which nothing that counts may depend


def _joint_shape(site: dict[str, Any]) -> torch.Size:
    return torch.broadcast_shapes(site["value"].shape, site["fn"].shape())


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    return fn.log_prob(value)


def _within_support(fn: Any, value: Tensor) -> Tensor:
    """log p, and -inf outside the support, where some distributions make up a density.

    And where it is +inf: at a pole, such as that of Gamma's at 0, where rounding alone can put a value.
    """
    log_prob = fn.log_prob(value)
    inside = fn.support.check(value) & ~log_prob.isposinf()
    if is_circular(fn):
        inside = inside & is_angle(value, inside.ndim)
    return torch.where(inside, log_prob, -torch.inf)


class _AllDrawn(Exception):
    """A run has come to its last latent."""


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
        some = (
            program.at(torch.zeros(1, dtype=torch.long, device=rows[0].device))
            if program.structure.amortized
            else program
        )
        structure = replace(
            program.structure, guide_has_density=_guide_has_density(some), can_draw_prior=_can_draw_prior(some)
        )
        return _with_masks(replace(program, structure=structure))

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
        """The same program on some of the data."""
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
        """Latents drawn from the guide, and log q(z|x) of each, `(K, N)`."""
        drawn = drawn_sites(self.run_guide(num_samples))
        return {name: site["value"] for name, site in drawn.items()}, self._log_latents(drawn)

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each `(K, N)`; where log p(z) is -inf, log p(x|z) is 0, for it may be no number."""
        sites = dict(sample_sites(self.run_model(latents)))
        observed = {name: site for name, site in sites.items() if name not in latents}
        latent = {name: site for name, site in sites.items() if name in latents}
        for name, counting in self.counting.items():
            counting.refuse_another(latent[name])
        prior = self._log_latents(latent, _within_support)
        return prior, self._log_observed(observed).masked_fill(prior.isneginf(), 0.0)

    def log_guide(self, latents: Latents) -> Tensor:
        """log q(z|x) of given latents, `(K, N)`: of any that have the guide's sites, not only of its own draws.

        Where a guide makes a latent of an auxiliary draw of its own, as automatic guides do, both are given.
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
        return self._log_given({name: site for name, site in sample_sites(trace) if name in latents})

    def _log_given(self, sites: dict[str, Any]) -> Tensor:
        """log q(z|x) of values that the guide need not have drawn."""
        try:
            return self._log_latents(sites, _within_support)
        except (KeyError, NotImplementedError) as error:  # of a transform that cannot be inverted
            raise ValueError(
                "guide: expected a density at values that it has not drawn; got a distribution that cannot say it "
                f"({type(error).__name__}: {error}), such as a planar flow, whose inverse is not known; use "
                "proposal='guide' or 'laplace', ais from Laplace's Gaussian or the prior, or a flow with an inverse."
            ) from error

    def draw_prior(self, num_samples: int) -> Latents:
        """Latents drawn from the model's prior; the model is run no further than that takes."""
        try:
            sites = drawn_sites(self._run(_UntilDrawn(self.structure.latents)(self.model), num_samples))
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"model: expected a prior that can be drawn from; got {type(error).__name__} ({error}); use "
                "importance_sampling with proposal='guide' or 'laplace'."
            ) from error
        return {name: site["value"] for name, site in sites.items()}

    def log_prior(self, latents: Latents) -> Tensor:
        """log p(z) of given latents, `(K, N)`; the model is run no further than that takes."""
        given = {name: value for name, value in latents.items() if name in self.structure.latents}
        model = poutine.condition(self.model, data=given)
        sites = dict(
            sample_sites(self._run(_UntilDrawn(self.structure.latents)(model), len(next(iter(given.values())))))
        )
        return self._log_latents({name: site for name, site in sites.items() if name in given}, _within_support)

    def sites(self, num_samples: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's latent and observed sites in one run, with latents from the guide."""
        latents, _ = self.draw(num_samples)
        sites = dict(sample_sites(self.run_model(latents)))
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
        """The observed sites, of some rows at a time."""
        for rows in self.rows_at_a_time():
            with seeded(rows.device, 0), pyro.validation_enabled(False):
                yield self.at(rows).sites()[1]

    def _observed_site(self, site: dict[str, Any]) -> ObservedSite:
        value = self.draws_first(site["value"].expand(_joint_shape(site)))[0]
        masks = () if elements_of(site).mask is None else (self.draws_first(mask_of(site))[0],)
        return ObservedSite(value, kind_of(site), masks)

    def draws_first(self, value: Tensor) -> Tensor:
        """A site's value with its dimensions in the order draws, data, others: `(K, N, ...)`."""
        return value.movedim(self.structure.data_axis, 1)

    def draw_alone(self) -> poutine.Trace:
        """A run of the guide without a dimension of draws."""
        with poutine.block():
            return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)

    def alone(self, guide_trace: poutine.Trace) -> _Alone:
        """What model and guide say of a draw alone; its latents get the dimension that draws have side by side."""
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
        """log q(z|x) of all that a guide draws, `(K, N)`; None if it cannot say it of values that are given."""
        num_samples = next(iter(latents.values())).shape[0]
        trace = self._run(poutine.condition(self.guide, data=latents), num_samples)
        try:
            return self._log_given({name: site for name, site in sample_sites(trace) if name in latents})
        except ValueError:
            return None

    def exchanged(self, latents: Latents, others: Latents) -> Latents:
        """Latents, with others where they do not count."""
        sites = dict(sample_sites(self.run_model(latents)))
        changed = dict(latents)
        for name, counting in self.counting.items():
            mask = counting.mask_in(sites[name])
            mask = mask.reshape(*mask.shape, *(1,) * (latents[name].ndim - mask.ndim))
            changed[name] = torch.where(mask, latents[name], others[name])
        return changed

    def rows_at_a_time(self) -> Iterator[Tensor]:
        """All rows; where the pair runs on any number of them, some at a time."""
        everyone = torch.arange(self.num_data, device=self.args[0].device)
        yield from everyone.split(LOOKED_AT_TOGETHER if self.structure.amortized else self.num_data)

    def run_guide(self, num_samples: int) -> poutine.Trace:
        """A run of the guide."""
        return self._run(self.guide, num_samples)

    def run_model(self, latents: Latents) -> poutine.Trace:
        """A run of the model, with these latents."""
        num_samples = next(iter(latents.values())).shape[0]
        return self._run(poutine.condition(self.model, data=latents), num_samples)

    def choose(self, latents: Latents, rows: Tensor) -> Latents:
        """The latents of some of the data."""
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
        """The density of a latent, of all that it has or of the parts that count."""
        fn = elements_of(site).fn
        each = log_prob(fn, site["value"])
        counting = self.counting.get(name_of_latent(site))
        if counting is None:
            return sum_rightmost(each, site["fn"].event_dim - fn.event_dim)
        return counting.total(site, each)

    def _sum(self, log_probs: Iterable[Tensor]) -> Tensor:
        return torch.stack([self._per_datum(each.double()) for each in log_probs]).sum(0)

    def _per_datum(self, log_prob: Tensor) -> Tensor:
        """A site's log density summed over all but draws and data. A plate's scale is no part of it."""
        keep = (self.structure.particle_dim, self.structure.data_dim)
        log_prob = log_prob[(None,) * (-self.structure.particle_dim - log_prob.ndim)]
        others = [dim for dim in range(-log_prob.ndim, 0) if dim not in keep]
        return log_prob.sum(others) if others else log_prob


@torch.no_grad()
def _guide_has_density(program: Program) -> bool:
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        drawn = drawn_sites(program.run_guide(1))
        made = {f"{name}_unconstrained" for name in program.structure.latents}
        given = {
            name: site["value"].clone() for name, site in drawn.items() if name in program.structure.latents | made
        }
        try:
            program.log_guide(given)
        except ValueError:
            return False
    return True


@torch.no_grad()
def _can_draw_prior(program: Program) -> bool:
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        try:
            program.draw_prior(1)
        except ValueError:
            return False
    return True


@torch.no_grad()
def _with_masks(program: Program) -> Program:
    """The program that leaves out what is masked among its latents."""
    counting = _counting(program)
    if not counting:
        return program
    masked = replace(program, counting=counting)
    if not _masked_latents_matter(masked):
        return masked
    if any(each.mask is None for each in counting.values()):
        return program  # the latents' own densities integrate to one, whatever depends on them
    raise ValueError(
        "model: expected masked latents on which nothing depends that counts; got other densities of what counts for "
        "other values of what is masked; mask what depends on it too, or take the mask off the latent, whose prior "
        "then counts."
    )


class _Masked(NamedTuple):
    """What is masked of a latent in some draws."""

    mask: Tensor
    """Of its parts, in all of these draws."""
    event_dim: int
    agreed: bool
    """Whether the guide masks the same."""

    @property
    def by_draw(self) -> bool:
        return bool((self.mask != self.mask[:1]).any())


def _counting(program: Program) -> dict[str, Counting]:
    """Which parts of the latents count; all of them where that depends on the draw and the guide masks others."""
    pieces = [_masked(program.at(rows)) for rows in program.rows_at_a_time()]
    names = pieces[0].keys()
    if any(piece.keys() != names for piece in pieces):
        return {}
    if any(each.by_draw for piece in pieces for each in piece.values()):
        agreed = all(each.agreed for piece in pieces for each in piece.values())
        return {name: Counting(None, each.event_dim) for name, each in pieces[0].items()} if agreed else {}
    axis = program.structure.data_axis
    return {
        name: Counting(torch.cat([piece[name].mask[:1] for piece in pieces], axis), each.event_dim)
        for name, each in pieces[0].items()
    }


def _masked(program: Program) -> dict[str, _Masked]:
    """The masked latents; none if the guide draws jointly what the model draws apart."""
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        drawn, sites = _drawn_with_model(program, 1)
        if all(elements_of(site).mask is None for name, site in sites.items() if name in drawn):
            return {}
        drawn, sites = _drawn_with_model(program, NUM_MASKED_DRAWS)
    if any(name_of_latent(site) not in sites for site in drawn.values()):
        return {}
    found = {}
    for name in drawn.keys() & sites.keys():
        if elements_of(sites[name]).mask is not None:
            event_dim = max(elements_of(site).fn.event_dim for site in (sites[name], drawn[name]))
            model, guide = (parts_that_count(site, event_dim) for site in (sites[name], drawn[name]))
            found[name] = _Masked(model, event_dim, torch.equal(model, guide))
    return found


def _drawn_with_model(program: Program, num_samples: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sites that the guide draws, and all sites of the model on these draws."""
    drawn = drawn_sites(program.run_guide(num_samples))
    return drawn, dict(sample_sites(program.run_model({name: site["value"] for name, site in drawn.items()})))


def _masked_latents_matter(program: Program) -> bool:
    """Whether what counts depends on what does not: log p(x) would be an integral over a flat density."""
    for rows in program.rows_at_a_time():
        some = program.at(rows)
        with seeded(rows.device, 0), pyro.validation_enabled(False):
            (latents, _), (others, _) = some.draw(NUM_MASKED_DRAWS), some.draw(NUM_MASKED_DRAWS)
            before, after = some.log_joint(latents), some.log_joint(some.exchanged(latents, others))
        if not all(map(_agree, before, after)):
            return True
    return False


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
            _refuse_draws_that_meet(found)
            _refuse_place(found)
            _refuse_company_of_one(found)
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
    _refuse_draws_that_meet(program)
    _refuse_company(program)
    return program


def _refuse_fixed_shapes(program: Program) -> None:
    """Run the pair on two draws at once, which is how it is evaluated."""
    expected = (2, program.num_data)
    found: Any
    try:
        found = tuple(_weights_of_two_draws(program).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
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


def _refuse_draws_that_meet(program: Program) -> None:
    """Stop if a draw has another density among draws than alone, in a run without a dimension of draws."""
    alone, together = _two_draws(program)
    for name, one, other in zip(("model", "model", "guide"), zip(*alone, strict=True), together, strict=True):
        if other is not None and not _agree(torch.cat(one), other):
            size = len(program.args[0])
            raise ValueError(
                f"{name}: expected the same density of a draw alone, among {size} data, as beside another, in a "
                f"dimension to the left, of shape (2, {size}, ...); got another one; let every function say "
                "which dimension it is about, counted from the right: Softmax(dim=-1), mean(-1); the channels of "
                "BatchNorm1d, PReLU and GroupNorm are dimension 1, so give them rows by a reshape to (-1, channels)."
            )


@torch.no_grad()
def _two_draws(program: Program) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor | None, ...]]:
    """log p(z), log p(x|z) and log q(z|x) of two draws, `(1, N)` each alone, and `(2, N)` side by side."""
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        alone = [program.alone(program.draw_alone()) for _ in range(2)]
        latents = {name: torch.cat([each.latents[name] for each in alone]) for name in alone[0].latents}
        together = (*program.log_joint(latents), program.log_drawn(latents))
    return [each.densities for each in alone], together


def _refuse_company_of_one(program: Program) -> None:
    """Stop if a datum has another density among others than in a batch of one."""
    for row in range(min(2, program.num_data)):
        if not _has_same_density(program, torch.tensor([row]), slice(None)):
            raise ValueError("model: got other densities of the same row in a batch of one.")


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
    return all(_agree(one[:, rows[compared]], other[:, compared]) for one, other in zip(among_all, here, strict=True))


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether densities are the same, to rounding in float32."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-3, equal_nan=True)


def _repeated(args: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Some rows, and not as many as there are."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)
