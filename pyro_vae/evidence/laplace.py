"""Find the modes of each datum's posterior, with the curvature there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.gaussians import FullNormal, NormalMixture, moments
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["LaplaceFit", "Summits", "fit_laplace", "is_twice_differentiable", "seek_summits"]

NUM_STEPS, MAX_ROUNDS = 10, 6
NUM_EXPLORING = 15  # steps from another start, before a Hessian is spent where they end
NUM_CLIMBING = 12  # of the climbs that every datum pays for
CONVERGED = 1e-2  # bound on the squared length of a Newton step, which is twice its gain in nats
NUM_PRIOR_STARTS, NUM_FAR_STARTS, MAX_STARTS_ELSEWHERE = 2, 2, 2
SHARE_ELSEWHERE = 0.01  # of p(x), beyond which another start is worth its cost
SAME_MODE = 2.0  # distance, in the standard deviations of one of two Gaussians
SMALLEST_SHARE = 0.08  # of the draws, for a mode of little mass: at least one in 16 chains
NEGLIGIBLE = 10.0  # nats below the mass of the first mode
NUM_MORE_STARTS, MAX_MORE_MODES = 16, 8  # where climbs found several modes, of which there may be more
UNCOVERED = 2.0  # nats by which the weight of a place exceeds p(x), where draws would have missed it
MAX_PAIRS = 16_384  # (direction, datum) pairs for which products with the Hessian are formed together


class LaplaceFit(NamedTuple):
    """Laplace's Gaussians of each datum's posterior, and what it took to find them."""

    gaussians: NormalMixture
    converged: Tensor
    """Whether the search for the main mode converged, `(N,)`."""
    num_evaluations: Tensor
    """Evaluations of log p(x, z), `(N,)`, int64. A product with the Hessian counts as two."""


class Summits(NamedTuple):
    """Where K climbs from afar ended for each of N data, and what they found that draws had missed."""

    places: Tensor
    """`(K, N, D)`."""
    log_mass: Tensor
    """Laplace's approximation of the mass of p(x, u) there, `(K, N)`; -inf where there is nothing new."""
    num_evaluations: Tensor
    """`(N,)`, int64."""

    def at(self, rows: Tensor) -> Summits:
        """Select rows by index."""
        return Summits(self.places[:, rows], self.log_mass[:, rows], self.num_evaluations[rows])

    def spread(self, rows: Tensor, num_data: int) -> Summits:
        """Place these as rows among more data; the others get none."""
        places = self.places.new_zeros(len(self.places), num_data, self.places.shape[-1])
        log_mass = self.log_mass.new_full((len(places), num_data), -math.inf)
        num_evaluations = self.num_evaluations.new_zeros(num_data)
        places[:, rows], log_mass[:, rows], num_evaluations[rows] = self
        return Summits(places, log_mass, num_evaluations)


class _Modes(NamedTuple):
    """Where N searches ended."""

    gaussian: FullNormal
    value: Tensor
    """log p(x, u) there."""
    converged: Tensor
    num_evaluations: Tensor

    def at(self, rows: Tensor) -> _Modes:
        """Select rows by index."""
        return _Modes(self.gaussian.at(rows), *(each[rows] for each in self[1:]))

    def spread(self, like: _Modes, rows: Tensor) -> _Modes:
        """Place these as rows among all data; a value of -inf says that the others have no such mode."""
        loc, scale_tril = like.gaussian.loc.clone(), like.gaussian.scale_tril.clone()
        loc[rows], scale_tril[rows] = self.gaussian
        value = torch.full_like(like.value, -math.inf)
        value[rows] = self.value
        return _Modes(FullNormal(loc, scale_tril), value, like.converged, like.num_evaluations)

    @property
    def log_mass(self) -> Tensor:
        """Laplace's approximation of log p(x), `(N,)`."""
        return self.value + self.gaussian.log_volume


def fit_laplace(
    view: Unconstrained,
    start: Tensor,
    prior: Tensor,
    places: Tensor | None = None,
    log_ratio: Tensor | None = None,
    summits: Summits | None = None,
) -> LaplaceFit:
    r"""Fit N(m, H^{-1}), with m a mode of $\log p(x, u)$ over u and $H = -\nabla^2 \log p(x, m)$; or a mixture.

    Each round forms H and takes ten steps $m \leftarrow m + a |H|^{-1} \nabla$, where $|H|$ has the absolute
    eigenvalues of H and each datum its own a, halved when its density falls. So the steps climb even away from a mode,
    and where the density bends upwards. There are at most six rounds; they end when a step would gain next to nothing.
    Eigenvalues are kept above that of a Gaussian ten times as wide as the prior.

    Searches for other modes start from a few draws of the prior, from those of them that are farthest from all that is
    known, one after the other, and from where draws of a wider density g show that
    some of p(x) lies away from the known modes. They climb in the metric of the first mode; where that ends away from
    the known modes, rounds follow. What they find becomes one more part of the mixture, in proportion to its mass.

    Args:
        view: the posterior.
        start: where to begin, `(N, D)`.
        prior: draws from the prior, `(K, N, D)`.
        summits: where former climbs ended, from which searches start too.
        places, log_ratio: draws of g `(M, N, D)`, and log p / g of them `(M, N)`.

    References:
        Tierney and Kadane (1986); Dauphin et al. (2014), on |H|.
    """
    floor = _smallest_curvature(prior)
    first = _search(view, start, floor)
    search = _Searches(view, floor, [first], first.num_evaluations)
    everyone = torch.arange(len(start), device=start.device)
    if summits is not None:
        for place, log_mass in zip(summits.places, summits.log_mass, strict=True):
            rows = log_mass.isfinite().nonzero().flatten()
            if len(rows):
                search.go_on(rows, place[rows])
        search.look_around(summits.log_mass.isfinite().any(0).nonzero().flatten(), prior[-NUM_MORE_STARTS:])
    for other in prior[:NUM_PRIOR_STARTS]:
        search.go_on(everyone, other.where(other.isfinite(), first.gaussian.loc))
    for _ in range(NUM_FAR_STARTS):
        other = search.farthest(prior)
        search.go_on(everyone, other.where(other.isfinite(), first.gaussian.loc))
    if places is not None and log_ratio is not None:
        share = log_ratio.softmax(0).nan_to_num()
        for _ in range(MAX_STARTS_ELSEWHERE):
            share = share.where(_distances(search.found, places) > _away(view.dim), 0.0)
            left = (share.sum(0) > SHARE_ELSEWHERE).nonzero().flatten()
            if not len(left):
                break
            index = share[:, left].argmax(0)
            search.go_on(left, places[index, left])
            share[index, left] = 0.0
    return LaplaceFit(_mixture(search.found), first.converged, search.num_evaluations)


@torch.no_grad()
def seek_summits(
    view: Unconstrained, around: FullNormal, prior: Tensor, log_prob: Callable[[Tensor], Tensor], log_evidence: Tensor
) -> Summits:
    r"""Climb from draws of the prior, to find mass that draws of a density q around a Gaussian cannot have seen.

    Climbs start from a few draws of the prior, and from those that are farthest from the Gaussian and from each other.
    They climb in its metric. A summit is new if it lies away from the Gaussian, if a draw of q there would have had a
    weight well above p(x), and if its mass, $\log p(x, u) + \frac12 |\nabla|^2_{H^{-1}} + \frac12 \log |2 \pi H^{-1}|$,
    is no negligible share of p(x). So a datum whose posterior has one mode costs the climbs alone.

    Args:
        view: the posterior.
        around: where the draws of q lie.
        prior: draws from the prior, `(K, N, D)`.
        log_prob: log q(u).
        log_evidence: log p(x) as q's draws found it, `(N,)`.
    """
    starts = _far_starts(around, prior)
    density = _density(view)
    end = _climb(density, around, starts, NUM_CLIMBING)
    spent = torch.full_like(log_evidence, NUM_CLIMBING * len(starts), dtype=torch.int64)
    is_away = (around.whitened(end.position).norm(dim=-1) > _away(view.dim)) & (end.gain < view.dim)
    is_new = is_away & (end.value - log_prob(end.position) > log_evidence + UNCOVERED)
    log_mass = torch.full_like(end.value, -math.inf)
    floor = _smallest_curvature(prior)
    for place, new, mass in zip(end.position, is_new, log_mass, strict=True):
        rows = new.nonzero().flatten()
        if len(rows):
            mass[rows] = _log_mass(_density(view.at(rows)), place[rows], floor[rows])
            spent[rows] += 1 + 2 * view.dim
    is_large = log_mass > log_evidence + math.log(SHARE_ELSEWHERE)
    return Summits(end.position, log_mass.where(is_large, -math.inf), spent)


def _far_starts(around: FullNormal, prior: Tensor) -> Tensor:
    """Select draws of the prior, those farthest from a Gaussian and each other, and its mirror image at their mean."""
    middle, _ = moments(prior)
    white = around.whitened(prior)
    distance = white.norm(dim=-1)
    starts = [*prior[:NUM_PRIOR_STARTS], 2 * middle - around.loc]
    rows = torch.arange(prior.shape[1], device=prior.device)
    for _ in range(NUM_FAR_STARTS):
        index = distance.nan_to_num(nan=-1.0, posinf=-1.0).argmax(0)
        starts.append(prior[index, rows])
        distance = torch.minimum(distance, (white - white[index, rows]).norm(dim=-1))
    found = torch.stack(starts)
    return found.where(found.isfinite(), around.loc)


def _log_mass(density: Callable[[Tensor], Tensor], place: Tensor, floor: Tensor) -> Tensor:
    """Return Laplace's approximation of the mass about a place near a mode, `(N,)`."""
    value, gradient = _with_gradient(density, place[None])
    gaussian = FullNormal(place, _scale_tril(_hessian(density, place), floor))
    return value[0] + 0.5 * gaussian.scaled_transposed(gradient)[0].square().sum(-1) + gaussian.log_volume


def is_twice_differentiable(view: Unconstrained, place: Tensor) -> bool:
    """Tell whether log p(x, u) has second derivatives, as the search for modes needs, at a place `(N, D)`."""
    try:
        _hessian_products(_density(view), place, torch.ones_like(place[:1]))
    except RuntimeError:  # from what has no gradient
        return False
    return True


@dataclass
class _Searches:
    """The known modes, and what it took to find them."""

    view: Unconstrained
    floor: Tensor
    found: list[_Modes]
    num_evaluations: Tensor
    chosen: list[Tensor] = field(default_factory=list)
    """Starts that were chosen far from what was known."""

    def farthest(self, places: Tensor) -> Tensor:
        """Select each datum's place that is farthest from its known modes and from former choices, `(N, D)`."""
        whitened = self.found[0].gaussian.whitened
        white = whitened(places)
        distance = _distances(self.found, places)
        for former in self.chosen:
            distance = torch.minimum(distance, (white - whitened(former[None])).norm(dim=-1))
        index = distance.nan_to_num(nan=-1.0, posinf=-1.0).argmax(0)
        self.chosen.append(places[index, torch.arange(places.shape[1], device=places.device)])
        return self.chosen[-1]

    def go_on(self, rows: Tensor, start: Tensor) -> None:
        """Look for one more mode of these data."""
        end = self._climb(rows, start[None]).at(0)
        known = [each.at(rows) for each in self.found]
        is_away = _distances(known, end.position[None])[0] > _away(self.view.dim)
        new = (is_away & (end.gain < self.view.dim)).nonzero().flatten()
        self._add(rows[new], end.position[new])

    def look_around(self, rows: Tensor, starts: Tensor) -> None:
        """Look for more modes of these data from all of the starts `(K, N, D)`, the highest summits first."""
        if not len(rows):
            return
        end = self._climb(rows, starts[:, rows].where(starts[:, rows].isfinite(), 0.0))
        value = end.value.where(end.gain < self.view.dim, -torch.inf)
        for _ in range(MAX_MORE_MODES):
            known = [each.at(rows) for each in self.found]
            value = value.where(_distances(known, end.position) > _away(self.view.dim), -torch.inf)
            best, index = value.max(0)
            new = best.isfinite().nonzero().flatten()
            if not len(new):
                return
            self._add(rows[new], end.position[index[new], new])
            value[index[new], new] = -torch.inf

    def _climb(self, rows: Tensor, start: Tensor) -> _Climbed:
        spent = torch.full_like(rows, len(start) * NUM_EXPLORING)
        self.num_evaluations = self.num_evaluations.index_add(0, rows, spent)
        return _climb(_density(self.view.at(rows)), self.found[0].gaussian.at(rows), start, NUM_EXPLORING)

    def _add(self, rows: Tensor, start: Tensor) -> None:
        """Search from a summit, and keep the mode if it is new."""
        if not len(rows):
            return
        mode = _search(self.view.at(rows), start, self.floor[rows])
        is_new = _distances([each.at(rows) for each in self.found], mode.gaussian.loc[None])[0] > SAME_MODE
        mode = mode._replace(value=mode.value.where(is_new & mode.converged, -torch.inf))
        self.found.append(mode.spread(self.found[0], rows))
        self.num_evaluations = self.num_evaluations.index_add(0, rows, mode.num_evaluations)


def _away(dim: int) -> float:
    """Return the distance from a mode, in standard deviations, beyond which a place does not belong to it."""
    return 1 + math.sqrt(dim)


def _smallest_curvature(prior: Tensor) -> Tensor:
    """Return a hundredth of the prior's least precision, `(N, 1)`."""
    loc, _ = moments(prior)
    centred = (prior - loc).nan_to_num().movedim(0, 1)
    largest = torch.linalg.matrix_norm(centred, ord=2).square() / len(prior)
    return 1e-2 / largest.clamp(min=1e-12)[:, None]


def _density(view: Unconstrained) -> Callable[[Tensor], Tensor]:
    def density(u: Tensor) -> Tensor:
        prior, likelihood = view.log_joint(u)
        return prior + likelihood

    return density


def _search(view: Unconstrained, loc: Tensor, floor: Tensor) -> _Modes:
    """Run rounds of Newton steps from one start for each datum."""
    num_data, dim = loc.shape
    spent = torch.zeros(num_data, dtype=torch.int64, device=loc.device)
    converged = torch.zeros(num_data, dtype=torch.bool, device=loc.device)
    value = torch.full_like(loc[:, 0], -math.inf)
    loc = loc.clone()
    for _ in range(MAX_ROUNDS):
        left = (~converged).nonzero().flatten()
        if not len(left):
            break
        density = _density(view.at(left))
        metric = FullNormal(loc[left], _scale_tril(_hessian(density, loc[left]), floor[left]))
        climbed = _climb(density, metric, loc[left][None], NUM_STEPS).at(0)
        loc[left], value[left], converged[left] = climbed.position, climbed.value, climbed.gain < CONVERGED
        spent[left] += NUM_STEPS + 2 * dim
    scale_tril = _scale_tril(_hessian(_density(view), loc), floor)
    return _Modes(FullNormal(loc, scale_tril), value, converged, spent + 2 * dim)


class _Climbed(NamedTuple):
    """Where K climbs ended for each of N data."""

    position: Tensor
    value: Tensor
    gain: Tensor
    """The squared length of the next step."""

    def at(self, index: int) -> _Climbed:
        """Select one of the K."""
        return _Climbed(*(each[index] for each in self))


def _climb(density: Callable[[Tensor], Tensor], metric: FullNormal, start: Tensor, num_steps: int) -> _Climbed:
    """Climb from `(K, N, D)` by a number of steps in the metric of a Gaussian."""
    size = torch.ones_like(start[..., :1])
    best, value, step = start, torch.full_like(start[..., 0], -math.inf), torch.zeros_like(start)
    gain = torch.full_like(value, math.inf)
    for _ in range(num_steps):
        proposed = best + size * step
        new_value, gradient = _with_gradient(density, proposed)
        better = new_value > value
        value = new_value.where(better, value)
        best = proposed.where(better[..., None], best)
        whitened = metric.scaled_transposed(gradient)
        gain = whitened.square().sum(-1).where(better, gain)
        step = metric.scaled(whitened).where(better[..., None], step)
        size = torch.where(better[..., None], (1.5 * size).clamp(max=1.0), 0.5 * size)
    return _Climbed(best, value, gain)


def _distances(known: list[_Modes], u: Tensor) -> Tensor:
    """Measure how far places `(M, N, D)` are from the nearest known mode, in its standard deviations: `(M, N)`."""
    each = [mode.gaussian.whitened(u).norm(dim=-1).where(mode.value.isfinite(), torch.inf) for mode in known]
    return torch.stack(each).amin(0)


def _mixture(found: list[_Modes]) -> NormalMixture:
    """Mix the modes in proportion to their mass, with a smallest share. The mode of most mass comes first."""
    log_mass = torch.stack([each.log_mass for each in found])
    log_mass = log_mass.where(log_mass.isfinite(), -torch.inf)
    log_mass[0] = log_mass[0].nan_to_num(neginf=0.0)
    log_mass, order = log_mass.sort(0, descending=True)
    log_mass = log_mass.where(log_mass > log_mass[0] - NEGLIGIBLE, -torch.inf)
    num_parts = int(log_mass.isfinite().sum(0).max())
    share = log_mass[:num_parts].softmax(0).clamp(min=SMALLEST_SHARE).where(log_mass[:num_parts].isfinite(), 0.0)
    locs, scale_trils = (torch.stack(each) for each in zip(*(mode.gaussian for mode in found), strict=True))
    rows = torch.arange(locs.shape[1], device=locs.device)
    parts = tuple(FullNormal(locs[index, rows], scale_trils[index, rows]) for index in order[:num_parts])
    return NormalMixture(parts, (share / share.sum(0)).log())


def _with_gradient(density: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.detach().requires_grad_()
    with torch.enable_grad():
        value = density(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient.nan_to_num()


def _hessian(density: Callable[[Tensor], Tensor], loc: Tensor) -> Tensor:
    """Return the Hessians `(N, D, D)` at points `(N, D)`, from products with all D directions, a few at a time."""
    num_data, dim = loc.shape
    directions = torch.eye(dim, dtype=loc.dtype, device=loc.device)
    height = max(1, MAX_PAIRS // num_data)
    rows = [_hessian_products(density, loc, some) for some in directions.split(height)]
    hessian = torch.cat(rows).movedim(0, 1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (hessian + hessian.mT) / 2


def _hessian_products(density: Callable[[Tensor], Tensor], loc: Tensor, directions: Tensor) -> Tensor:
    u = loc.expand(len(directions), *loc.shape).clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(density(u).sum(), u, create_graph=True)
        if not gradient.requires_grad:  # linear in u
            return torch.zeros_like(u)
        (products,) = torch.autograd.grad((gradient * directions[:, None]).sum(), u, allow_unused=True)
    return torch.zeros_like(u) if products is None else products


def _scale_tril(hessian: Tensor, floor: Tensor) -> Tensor:
    """Factor |H|^{-1} = V S V^T as L L^T: L = R^T of the QR decomposition of (V S^{1/2})^T, which always exists."""
    eigenvalues, vectors = torch.linalg.eigh(-hessian)
    root = vectors * eigenvalues.abs().clamp(min=floor).rsqrt()[:, None]
    factor = torch.linalg.qr(root.mT).R.mT
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign()[:, None]
