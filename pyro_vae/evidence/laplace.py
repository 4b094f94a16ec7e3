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

__all__ = ["LaplaceFit", "fit_laplace"]

NUM_STEPS, MAX_ROUNDS = 10, 6
NUM_EXPLORING = 15  # steps from another start, before a Hessian is spent where they end
CONVERGED = 1e-2  # bound on the squared length of a Newton step, which is twice its gain in nats
NUM_PRIOR_STARTS, NUM_FAR_STARTS, MAX_STARTS_ELSEWHERE = 2, 2, 2
SHARE_ELSEWHERE = 0.01  # of p(x), beyond which another start is worth its cost
SAME_MODE = 2.0  # distance, in the standard deviations of one of two Gaussians
SMALLEST_SHARE = 0.08  # of the draws, for a mode of little mass: at least one in 16 chains
NEGLIGIBLE = 10.0  # nats below the mass of the first mode
MAX_PAIRS = 16_384  # (direction, datum) pairs for which products with the Hessian are formed together


class LaplaceFit(NamedTuple):
    """Laplace's Gaussians of each datum's posterior, and what it took to find them."""

    gaussians: NormalMixture
    converged: Tensor
    """Whether the search for the main mode converged, `(N,)`."""
    num_evaluations: Tensor
    """Evaluations of log p(x, z), `(N,)`, int64. A product with the Hessian counts as two."""


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
    view: Unconstrained, start: Tensor, prior: Tensor, places: Tensor | None = None, log_ratio: Tensor | None = None
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
        places, log_ratio: draws of g `(M, N, D)`, and log p / g of them `(M, N)`.

    References:
        Tierney and Kadane (1986); Dauphin et al. (2014), on |H|.
    """
    floor = _smallest_curvature(prior)
    first = _search(view, start, floor)
    search = _Searches(view, floor, [first], first.num_evaluations)
    everyone = torch.arange(len(start), device=start.device)
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
        first, known = self.found[0].at(rows), [each.at(rows) for each in self.found]
        end = _climb(_density(self.view.at(rows)), first.gaussian, start, NUM_EXPLORING)
        is_away = _distances(known, end.position[None])[0] > _away(self.view.dim)
        new = (is_away & (end.gain < self.view.dim)).nonzero().flatten()
        self.num_evaluations = self.num_evaluations.index_add(0, rows, torch.full_like(rows, NUM_EXPLORING))
        if not len(new):
            return
        mode = _search(self.view.at(rows[new]), end.position[new], self.floor[rows[new]])
        is_new = _distances([each.at(new) for each in known], mode.gaussian.loc[None])[0] > SAME_MODE
        mode = mode._replace(value=mode.value.where(is_new & mode.converged, -torch.inf))
        self.found.append(mode.spread(self.found[0], rows[new]))
        self.num_evaluations = self.num_evaluations.index_add(0, rows[new], mode.num_evaluations)


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
        climbed = _climb(density, metric, loc[left], NUM_STEPS)
        loc[left], value[left], converged[left] = climbed.position, climbed.value, climbed.gain < CONVERGED
        spent[left] += NUM_STEPS + 2 * dim
    scale_tril = _scale_tril(_hessian(_density(view), loc), floor)
    return _Modes(FullNormal(loc, scale_tril), value, converged, spent + 2 * dim)


class _Climbed(NamedTuple):
    position: Tensor
    value: Tensor
    gain: Tensor
    """The squared length of the next step."""


def _climb(density: Callable[[Tensor], Tensor], metric: FullNormal, start: Tensor, num_steps: int) -> _Climbed:
    """Climb by a number of steps in the metric of a Gaussian."""
    size = torch.ones_like(start[:, :1])
    best, value, step = start, torch.full_like(start[:, 0], -math.inf), torch.zeros_like(start)
    gain = torch.full_like(value, math.inf)
    for _ in range(num_steps):
        proposed = best + size * step
        new_value, gradient = _with_gradient(density, proposed[None])
        better = new_value[0] > value
        value = new_value[0].where(better, value)
        best = proposed.where(better[:, None], best)
        whitened = metric.scaled_transposed(gradient)
        gain = whitened.square().sum(-1)[0].where(better, gain)
        step = metric.scaled(whitened)[0].where(better[:, None], step)
        size = torch.where(better[:, None], (1.5 * size).clamp(max=1.0), 0.5 * size)
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
