"""The modes of each datum's posterior that searches have found, and the mixture that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.climb import Climbed, climb
from pyro_vae.evidence.derivatives import (
    hessian_of,
    log_density,
    scale_tril_of,
    with_second_derivatives,
)
from pyro_vae.evidence.gaussians import FullNormal, NormalMixture
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["NUM_EXPLORING", "KnownModes", "away", "farthest"]

NUM_STEPS, MAX_ROUNDS = 10, 6
NUM_EXPLORING = 30  # steps from another start, before a Hessian is spent where they end
CONVERGED = 1e-2  # bound on the squared length of a Newton step, which is twice its gain in nats
SAME_MODE = 2.0  # distance, in the standard deviations of one of two Gaussians
SMALLEST_SHARE = 0.08  # of the draws, for a mode of little mass: at least one in 16 chains
NEGLIGIBLE = 10.0  # nats below the mass of the first mode
MAX_MORE_MODES = 8  # where climbs found several modes, of which there may be more


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

    def followed_by(self, later: _Modes, rows: Tensor, num_between: int) -> _Modes:
        """Let these rows go on to where later searches ended, after some evaluations between."""
        spent = self.num_evaluations[rows] + num_between + later.num_evaluations
        (loc, scale_tril), *rest = self
        (new_loc, new_scale_tril), *new_rest = later._replace(num_evaluations=spent)

        def replaced(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new)

        gaussian = FullNormal(replaced(loc, new_loc), replaced(scale_tril, new_scale_tril))
        return _Modes(gaussian, *map(replaced, rest, new_rest))

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


def _search(view: Unconstrained, loc: Tensor, floor: Tensor) -> _Modes:
    """From one start for each datum, climb in the metric of a Hessian, until a new one shows no gain."""
    found = _newton_step(view, loc, floor)
    for _ in range(MAX_ROUNDS):
        left = (~found.converged).nonzero().flatten()
        if not len(left):
            break
        here, start = view.at(left), found.gaussian.at(left)
        end = climb(log_density(here), start, start.loc[None], NUM_STEPS).at(0)
        found = found.followed_by(_newton_step(here, end.position, floor[left]), left, NUM_STEPS)
    return found


def _newton_step(view: Unconstrained, loc: Tensor, floor: Tensor) -> _Modes:
    """Find a Hessian, and take the step that it shows if that leads up."""
    metric = FullNormal(loc, scale_tril_of(hessian_of(with_second_derivatives(view), loc), floor))
    end = climb(log_density(view), metric, loc[None], 2).at(0)
    was_short = metric.whitened(end.position[None])[0].square().sum(-1) < CONVERGED
    spent = torch.full(loc.shape[:1], 2 + 2 * loc.shape[1], dtype=torch.int64, device=loc.device)
    gaussian = FullNormal(end.position, metric.scale_tril)
    return _Modes(gaussian, end.value, was_short & (end.gain < CONVERGED), spent)


@dataclass
class KnownModes:
    """The known modes of each datum's posterior, and what it took to find them."""

    view: Unconstrained
    floor: Tensor
    """Of the curvature, `(N, 1)`."""
    found: list[_Modes]
    num_evaluations: Tensor

    @classmethod
    def found_from(cls, start: Tensor, view: Unconstrained, floor: Tensor) -> KnownModes:
        """Search from one start for each datum, `(N, D)`."""
        first = _search(view, start, floor)
        return cls(view, floor, [first], first.num_evaluations)

    @property
    def first(self) -> _Modes:
        """The modes that were found first, in whose metric all climbs go."""
        return self.found[0]

    @property
    def mixture(self) -> NormalMixture:
        """The modes, mixed in proportion to their mass."""
        return _mixture_of(self.found)

    @property
    def are_several(self) -> Tensor:
        """Tell which data have more than one mode of some mass, `(N,)`: where there are two, there may be others."""
        return self.mixture.num_parts > 1

    def are_away(self, places: Tensor) -> Tensor:
        """Tell which places `(M, N, D)` belong to no known mode, `(M, N)`."""
        return _distances(self.found, places) > away(self.view.dim)

    def farthest(self, places: Tensor, number: int) -> Tensor:
        """Select each datum's places that are farthest from its known modes and from each other, `(number, N, D)`."""
        return farthest(self.first.gaussian, places, _distances(self.found, places), number)

    def look_around(self, rows: Tensor, starts: Tensor) -> None:
        """Look for more modes of these data from all of the starts `(K, len(rows), D)`, the highest summits first.

        A start that is no number is replaced by the first mode.
        """
        if not len(rows):
            return
        end = self._climb(rows, starts.where(starts.isfinite(), self.first.gaussian.loc[rows]), NUM_EXPLORING)
        value = end.value
        for _ in range(MAX_MORE_MODES):
            value = value.where(self._of(rows)._are_new(end), -torch.inf)
            best, index = value.max(0)
            new = best.isfinite().nonzero().flatten()
            if not len(new):
                return
            self._climb_on(rows[new], end.position[index[new], new])
            value[index[new], new] = -torch.inf

    def _climb_on(self, rows: Tensor, start: Tensor) -> None:
        """Climb on to the summit before as many evaluations go to a Hessian: most ends lead to a known mode."""
        end = self._climb(rows, start[None], min(NUM_EXPLORING, 2 * self.view.dim))
        new = self._of(rows)._are_new(end)[0].nonzero().flatten()
        self._add(rows[new], end.position[0, new])

    def _are_new(self, end: Climbed) -> Tensor:
        """Tell which ends of climbs are near a mode that is not known, `(K, N)`: not as far from it as from the others.

        A draw from a mode is at a distance of about the root of D, but the end of a climb is nearer: at that of the
        gain that is left.
        """
        is_far = _distances(self.found, end.position) > SAME_MODE + end.gain.sqrt()
        return is_far & (end.gain < self.view.dim)

    def _of(self, rows: Tensor) -> KnownModes:
        return replace(self, found=[each.at(rows) for each in self.found])

    def _climb(self, rows: Tensor, start: Tensor, number: int) -> Climbed:
        spent = torch.full_like(rows, len(start) * number)
        self.num_evaluations = self.num_evaluations.index_add(0, rows, spent)
        return climb(log_density(self.view.at(rows)), self.first.gaussian.at(rows), start, number)

    def _add(self, rows: Tensor, start: Tensor) -> None:
        """Search from a summit, and keep the mode if it is new."""
        if not len(rows):
            return
        mode = _search(self.view.at(rows), start, self.floor[rows])
        is_new = _distances(self._of(rows).found, mode.gaussian.loc[None])[0] > SAME_MODE
        mode = mode._replace(value=mode.value.where(is_new & mode.converged, -torch.inf))
        self.found.append(mode.spread(self.first, rows))
        self.num_evaluations = self.num_evaluations.index_add(0, rows, mode.num_evaluations)


def away(dim: int) -> float:
    """Return the distance from a mode, in standard deviations, beyond which a place does not belong to it."""
    return 1 + math.sqrt(dim)


def farthest(gaussian: FullNormal, places: Tensor, distance: Tensor, number: int) -> Tensor:
    """Select places of `(M, N, D)` one after the other, each as far as can be from what is known and from the others.

    Distances are in standard deviations of a Gaussian; `distance` `(M, N)` is that from what is known.
    """
    white, rows = gaussian.whitened(places), torch.arange(places.shape[1], device=places.device)
    found = []
    for _ in range(number):
        index = distance.nan_to_num(nan=-1.0, posinf=-1.0).argmax(0)
        found.append(places[index, rows])
        distance = torch.minimum(distance, (white - white[index, rows]).norm(dim=-1))
    return torch.stack(found)


def _distances(known: list[_Modes], u: Tensor) -> Tensor:
    """Measure how far places `(M, N, D)` are from the nearest known mode, in its standard deviations: `(M, N)`."""
    each = [mode.gaussian.whitened(u).norm(dim=-1).where(mode.value.isfinite(), torch.inf) for mode in known]
    return torch.stack(each).amin(0)


def _mixture_of(found: list[_Modes]) -> NormalMixture:
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
