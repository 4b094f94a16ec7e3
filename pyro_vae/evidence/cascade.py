"""The estimators of `log_evidence`, tried on the data of one block from the cheapest to the dearest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae._random import seed_for
from pyro_vae.evidence.annealing import Annealing, anneal, annealed, end_draws
from pyro_vae.evidence.budget import (
    FEWEST_DRAWS,
    FIT_PILOT,
    GUIDE_PILOT,
    LAPLACE_PILOT,
    LARGEST_LAPLACE_KHAT,
    NUM_LEAPFROG,
    PILOT_LENGTH,
    Budget,
    chains_of,
    rounded_down,
)
from pyro_vae.evidence.collect import Collected, collected
from pyro_vae.evidence.derivatives import is_twice_differentiable
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.elsewhere import Elsewhere, checked
from pyro_vae.evidence.pilot import PILOT_CHAINS, Pilot, pilot
from pyro_vae.evidence.region import Component, Region
from pyro_vae.evidence.sources import Modes, Source, Start, guide_at
from pyro_vae.evidence.summits import CLIMBS, Summits
from pyro_vae.evidence.survey import Survey, find_modes, find_summits, survey
from pyro_vae.evidence.weights import Estimate
from pyro_vae.program.tiles import Block, Noise, evaluating, noise, refuse_nan, tiles_of, zero_where_unknown

__all__ = ["Cascade", "Result"]

DOUBT = 2.0  # standard errors by which the guide may exceed Laplace's Gaussians before both are drawn from
FEW_COUNT = 0.5  # the effective share of a pilot's draws, below which a fit is worth more than as many draws
MORE = 1.0  # standard errors by which fitted Gaussians must exceed the guide again to be annealed from alone


class Result(NamedTuple):
    """What one estimator found for some columns of a block."""

    columns: Tensor
    estimate: Estimate
    contradicted: Tensor
    method: str
    num_evaluations: Tensor
    draws: Draws | None


class Waiting(NamedTuple):
    """Data whose measured run takes what it wants of the block's rest, once all pilots are done."""

    columns: Tensor
    wanted: Tensor
    """Evaluations of each datum."""
    measure: Callable[[Tensor], None]
    """Called with the evaluations that each is granted."""


@dataclass
class Cascade:
    """The data of one block; each leaves once an estimator is found for it."""

    block: Block
    region: Any
    budget: Budget
    seed: int
    results: list[Result] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    summits: Summits | None = None
    """Where climbs from afar ended, at their places in the block."""

    def run(self) -> None:
        """Find a result for each datum that was asked for.

        A datum that can afford the draws that it needs is measured at once. The others wait for the last pilot of the
        block. What they are granted then depends on pilots alone, never on a measured run.
        """
        self._decide()
        self._measure_what_waits()

    def _decide(self) -> None:
        """Run pilots, and measure the data that can afford what these say."""
        everyone = self.block.asked_for
        self.spent = torch.zeros(self.width, dtype=torch.int64, device=everyone.device)
        guide = self._guide(everyone)
        drawn = self._draw(everyone, guide, GUIDE_PILOT, seed_for(self.seed, "guide pilot"))
        self.pilot, self.terms = drawn.totals.estimate(), drawn.terms
        self.seen = self._survey(everyone, self.region.guide, guide.name)
        self.elsewhere = self.seen.against(guide.fitted.component)
        if self.seen.is_everything:
            return self._sum_up(everyone)
        can_seek = isinstance(self.region, Region) and self._can_find_modes(self.region)
        if can_seek and self.budget.always_seeks_modes:
            modes = self._find_modes(everyone, self.region)
            if modes.are_several(everyone).any():
                return self._go_on_from_modes(everyone, self.region, modes)
        needed = self.budget.num_draws(self.pilot, GUIDE_PILOT, self.elsewhere).to(everyone.device)
        if can_seek and not self.budget.always_seeks_modes:
            needed = needed.where(~self._is_elsewhere(everyone, needed, self.region), torch.inf)
        left = self._sample(everyone, needed, self._guide)
        if not len(left):
            return None
        if can_seek:
            return self._go_on_from_modes(left, self.region, self._find_modes(left, self.region))
        self._spend_the_rest(left, self._guide, needed[left - self.block.columns.start])
        return None

    def _go_on_from_modes(self, columns: Tensor, region: Region, modes: Modes) -> None:
        laplace = modes.source(columns)
        drawn = self._draw(columns, laplace, LAPLACE_PILOT, seed_for(self.seed, "Laplace pilot"))
        found, component = drawn.totals.estimate(), laplace.fitted.component
        around = self._survey(columns, component, laplace.name).against(component)
        missed = self._missed_by(columns, modes, found, around).to(columns.device)
        doubted = self._go_on_from_both(columns[missed], modes)
        needed = self.budget.num_draws(found, LAPLACE_PILOT, around, LARGEST_LAPLACE_KHAT).to(columns.device)
        needed = self._confirmed(columns, needed.where(~missed, torch.inf), around, modes.source)
        left = self._sample(columns[~missed], needed[~missed], modes.source)
        rest = torch.cat([left, doubted]).sort().values
        places = torch.searchsorted(columns, rest).cpu()
        self._fit_or_spend(rest, torch.isin(rest, doubted), found.at(places), around.at(places), modes)

    def _confirmed(
        self, columns: Tensor, needed: Tensor, around: Elsewhere, source: Callable[[Tensor], Source]
    ) -> Tensor:
        """Draw once more from a proposal that looks good: few draws let it look better than it is."""
        good = self._for_all(self.spent[columns] + LAPLACE_PILOT + needed <= self.budget.max_evaluations)
        if not good.any():
            return needed
        here = source(columns[good])
        drawn = self._draw(columns[good], here, LAPLACE_PILOT, seed_for(self.seed, f"second pilot from {here.name}"))
        seen = around.at(good.cpu().nonzero().flatten())
        again = self.budget.num_draws(drawn.totals.estimate(), LAPLACE_PILOT, seen, LARGEST_LAPLACE_KHAT)
        return needed.masked_scatter(good, needed[good].maximum(again.to(needed.device)))

    def _go_on_from_both(self, columns: Tensor, modes: Modes) -> Tensor:
        """Draw from a mixture of the guide and Laplace's Gaussians, where one of them missed some of p(x).

        Returns the columns that this does not serve.
        """
        if not len(columns):
            return columns
        both = modes.both(columns)
        if both.is_guide:  # its density is not known
            self._spend_the_rest(columns, modes.both)
            return columns[:0]
        drawn = self._draw(columns, both, LAPLACE_PILOT, seed_for(self.seed, "pilot of both"))
        around = self._seen_of(both, columns)
        needed = self.budget.num_draws(drawn.totals.estimate(), LAPLACE_PILOT, around, LARGEST_LAPLACE_KHAT)
        needed = self._confirmed(columns, needed.to(columns.device), around, modes.both)
        return self._sample(columns, needed, modes.both)

    def _fit_or_spend(
        self, columns: Tensor, is_doubted: Tensor, found: Estimate, around: Elsewhere, modes: Modes
    ) -> None:
        """Fit Gaussians further where the budget pays for annealing from them; draw from Laplace's, or both, elsewhere.

        They are drawn from where it pays for no more than that, or where few chains would miss some of many modes; but
        only if few of the pilot's draws from Laplace's count.

        Laplace's estimate is far too low where it is no good fit, and its own error does not say so. So what the guide
        seemed to have seen beyond it is compared with a pilot of the fitted ones. Unless they found more, chains start
        from the guide too.
        """
        if not len(columns):
            return
        few_chains_would_miss = is_doubted & modes.are_many(columns).to(columns.device)
        is_open = is_doubted & ~few_chains_would_miss
        cost = modes.cost_of_refining(columns) + FIT_PILOT * is_open
        left = self._unspent(columns) - cost
        left_of_annealing = left - self.budget.cheapest_annealing
        can_anneal = self._for_all(left_of_annealing >= 0) & ~few_chains_would_miss
        few_count = found.ess.to(columns.device) < FEW_COUNT * LAPLACE_PILOT
        can_fit = can_anneal | self._for_all(few_count & (left >= FEWEST_DRAWS))
        self._spend_the_rest(columns[~can_fit & ~is_doubted], modes.source)
        self._spend_the_rest(columns[~can_fit & is_doubted], modes.both)
        if can_fit.any():
            doubtful = around.at((can_fit & is_open).nonzero().flatten().cpu())
            spare = left_of_annealing.where(can_anneal, left - FEWEST_DRAWS)[can_fit]
            self._go_on_from_fit(columns[can_fit], is_doubted[can_fit], can_anneal[can_fit], doubtful, modes, spare)

    def _go_on_from_fit(
        self, columns: Tensor, missed: Tensor, can_anneal: Tensor, around: Elsewhere, modes: Modes, spare: Tensor
    ) -> None:
        """Fit Gaussians further, and anneal or draw from them; and from the guide, where they too have missed some."""
        with noise(self.block.program, seed_for(self.seed, "variational fit"), self.block.place):
            fitted, spent = modes.refined(columns, spare)
        self.spent[columns] += spent
        is_open = missed & ~fitted.are_many(columns).to(columns.device)
        missed[is_open] = self._is_missed_by_fit(columns[is_open], around, fitted)
        self._spend_the_rest(columns[~can_anneal & ~missed], fitted.source)
        self._spend_the_rest(columns[~can_anneal & missed], fitted.both)
        self._anneal(columns[can_anneal & ~missed], fitted.path)
        self._anneal(columns[can_anneal & missed], fitted.path_from_both)

    def _is_missed_by_fit(self, columns: Tensor, around: Elsewhere, fitted: Modes) -> Tensor:
        """Tell for which data fitted Gaussians were not seen to find more than other draws."""
        if not len(columns):
            return torch.zeros_like(columns, dtype=torch.bool)
        drawn = self._draw(columns, fitted.source(columns), FIT_PILOT, seed_for(self.seed, "pilot of the fit"))
        found = drawn.totals.estimate()
        return self._is_missed(columns, found, -MORE) | around.contradicts(found).to(columns.device)

    def _can_find_modes(self, region: Region) -> bool:
        """Tell whether the budget pays for a search for modes, and the program has the derivatives that it takes."""
        if not self.budget.can_find_modes(region.view.dim):
            return False
        with noise(self.block.program, seed_for(self.seed, "derivatives"), self.block.place):
            return is_twice_differentiable(region.at(self.block.asked_for[:1]).view, self.seen.places[0, :1])

    def _is_elsewhere(self, columns: Tensor, needed: Tensor, region: Region) -> Tensor:
        """Tell for which data climbs end in mass that the guide's draws, though they look good, cannot have seen."""
        found = torch.zeros_like(columns, dtype=torch.bool)
        affordable = self._for_all(self.spent[columns] + CLIMBS + needed <= self.budget.max_evaluations)
        if not affordable.any():
            return found
        chosen = columns[affordable]
        with noise(self.block.program, seed_for(self.seed, "climbs"), self.block.place):
            seen, log_evidence = self.seen.at(chosen - self.block.columns.start), self.pilot.at(self._rows(chosen))
            summits = find_summits(region.at(chosen), seen, log_evidence.log_evidence.to(columns.device))
        self.spent[chosen] += summits.num_evaluations
        self.summits = summits.spread(chosen, self.width)
        found[affordable] = summits.log_mass.isfinite().any(0)
        return found

    def _for_all(self, possible: Tensor) -> Tensor:
        return possible if self.budget.amortized else possible.all().expand_as(possible)

    @property
    def _left(self) -> Tensor:
        """What the block may still spend."""
        asked_for = self.block.asked_for
        return self.budget.max_evaluations * len(asked_for) - self.spent[asked_for].sum()

    def _unspent(self, columns: Tensor) -> Tensor:
        num_open = len(self.block.asked_for) - sum(len(result.columns) for result in self.results)
        return self.budget.share(self.spent[columns], self._left, num_open)

    def _measure_what_waits(self) -> None:
        """Grant each datum what it wants, up to a level that the block's budget pays for."""
        if not self.waiting:
            return
        columns = torch.cat([each.columns for each in self.waiting])
        wanted = torch.cat([each.wanted for each in self.waiting])
        granted = self.budget.granted(wanted, self.spent[columns], self._left)
        sizes = [len(each.columns) for each in self.waiting]
        for each, evaluations in zip(self.waiting, granted.split(sizes), strict=True):
            each.measure(evaluations)

    def _spend_the_rest(
        self, columns: Tensor, source: Callable[[Tensor], Source], needed: float | Tensor = torch.inf
    ) -> None:
        """Spend the rest on draws, where they miss the tolerance and nothing better is affordable, or what is needed.

        The search for modes costs each datum another number: rounded, few numbers are left, and data are drawn for
        together. Where it cost more than was foreseen, a few draws go beyond the budget: each datum gets an estimate.
        """
        if not len(columns):
            return

        def measure(granted: Tensor) -> None:
            self._measure(columns, granted.clamp(min=FEWEST_DRAWS), source)

        wanted = rounded_down(self.budget.cap - self.spent[columns]).clamp(max=needed).clamp(min=FEWEST_DRAWS).long()
        self.waiting.append(Waiting(columns, wanted, measure))

    def _missed_by(self, columns: Tensor, modes: Modes, found: Estimate, around: Elsewhere) -> Tensor:
        """Tell for which data Laplace's Gaussian, and annealing from it, would miss what other draws found."""
        seen = around.contradicts(found) | modes.are_many(columns)
        return (self._is_missed(columns, found, DOUBT).cpu() | seen) & self.budget.amortized

    def _is_missed(self, columns: Tensor, found: Estimate, num_errors: float) -> Tensor:
        """Tell for which data the guide's draws, or those around it, found more than another estimate."""
        rows = self._rows(columns)
        missed = _is_above(self.pilot.at(rows), found, num_errors) | self.elsewhere.at(rows).contradicts(found)
        return missed.to(columns.device)

    def _rows(self, columns: Tensor) -> Tensor:
        """Return the places of these columns among all that were asked for."""
        return columns.cpu() - self.block.columns.start

    @property
    def width(self) -> int:
        return self.block.program.num_data

    def _guide(self, columns: Tensor) -> Source:
        return guide_at(self.block.program, self.region, columns)

    def _find_modes(self, columns: Tensor, region: Region) -> Modes:
        """Find Laplace's Gaussians of these columns."""
        with noise(self.block.program, seed_for(self.seed, "where to start"), self.block.place):
            seen = self.seen.at(columns - self.block.columns.start)
            summits = self.summits and self.summits.at(columns)
            fit = find_modes(region.at(columns), seen, summits, self._unspent(columns) / 2)
        self.spent[columns] += fit.num_evaluations
        return Modes(self.block.program, region, fit.gaussians.spread(columns, self.width))

    def _draw(self, columns: Tensor, source: Source, number: int, seed: int, num_posterior_draws: int = 0) -> Collected:
        part = self.block.part(columns)._replace(program=source.fitted.program)
        evaluate = evaluating(part.program, source.fitted.draw, self.region.joint)
        evaluate = evaluate if source.is_guide else zero_where_unknown(evaluate)
        self.spent[columns] += number
        tiles = tiles_of(part, evaluate, number, seed, self.width)
        return collected(part, tiles, number, seed, Noise(self.width, columns), num_posterior_draws)

    def _survey(self, columns: Tensor, component: Component | None, name: str) -> Survey:
        with noise(self.block.program, seed_for(self.seed, f"survey about {name}"), self.block.place):
            seen = survey(self.region.at(columns), [component])
        self.spent[columns] += seen.num_places
        return seen

    def _sample(self, columns: Tensor, needed: Tensor, source: Callable[[Tensor], Source]) -> Tensor:
        """Run importance sampling for the data that can afford it, and return the columns of the others."""
        affordable = self._for_all(self.spent[columns] + needed <= self.budget.max_evaluations)
        self._measure(columns[affordable], needed[affordable], source)
        return columns[~affordable]

    def _measure(self, columns: Tensor, needed: Tensor, source: Callable[[Tensor], Source]) -> None:
        """Run importance sampling with so many draws for each datum."""
        for number in map(int, needed.unique().tolist()):
            chosen = columns[needed == number]
            here = source(chosen)
            # The number is part of the seed: a tile's place depends on it, so with one seed for all, tiles of different
            # numbers could share noise.
            seed = seed_for(self.seed, f"measured, {number} from {here.name}")
            drawn = self._draw(chosen, here, number, seed, self.budget.num_posterior_draws)
            found = checked(drawn.totals.estimate(), number, self._seen_of(here, chosen))
            self._keep(chosen, found, f"importance sampling from {here.name}", drawn.reservoir.draws)

    def _seen_of(self, source: Source, columns: Tensor) -> Elsewhere:
        """Judge a source by the draws about the guide."""
        if source.is_guide:
            return self.elsewhere.at(self._rows(columns))
        return self.seen.at(columns - self.block.columns.start).against(source.fitted.component)

    def _sum_up(self, columns: Tensor) -> None:
        """Sum over all values of discrete latents."""
        log_joint = self.seen.log_joint
        exact = log_joint.logsumexp(0).cpu()
        zero, number = torch.zeros_like(exact), self.seen.num_places
        found = Estimate(exact, zero, zero + number, zero, torch.ones_like(exact, dtype=torch.bool), exact)
        with noise(self.block.program, seed_for(self.seed, "resampling"), self.block.place):
            draws = self.region.resampled(self.seen.places, log_joint, self.budget.num_posterior_draws)
        self._keep(columns, found, "a sum over all values", draws)

    def _anneal(self, columns: Tensor, start: Callable[[Tensor], Start]) -> None:
        """Run AIS for the data that are left, with as many temperatures as a pilot run finds necessary."""
        if not len(columns):
            return
        name, path, numbers = start(columns)
        with noise(path.view.program, seed_for(self.seed, f"pilot from {name}"), self.block.place):
            seen = pilot(path, numbers, PILOT_LENGTH, PILOT_CHAINS, NUM_LEAPFROG)
        self.spent[columns] += self.budget.annealing_pilot
        length = self.budget.length(seen)
        wanted = self.budget.cost_of_annealing(length).long().minimum(self.budget.cap - self.spent[columns])

        def measure(granted: Tensor) -> None:
            chosen = length.minimum(self.budget.affordable_length(granted)).clamp(min=2)
            temperatures_and_chains = torch.stack(chains_of(chosen, seen))
            for each in temperatures_and_chains.unique(dim=1).T:
                these = (temperatures_and_chains == each[:, None]).all(0)
                self._measure_chains(columns[these], start, seen.at(these), *each.tolist())

        self.waiting.append(Waiting(columns, wanted, measure))

    def _measure_chains(
        self, columns: Tensor, start: Callable[[Tensor], Start], seen: Pilot, num_temperatures: int, num_chains: int
    ) -> None:
        name, path, numbers = start(columns)
        annealing = Annealing("gaussian", num_temperatures, num_chains, NUM_LEAPFROG)
        num_draws = self.budget.num_posterior_draws
        seed = seed_for(self.seed, f"measured, AIS from {name}, {num_temperatures}, {num_chains}")
        with noise(path.view.program, seed, self.block.place):
            trajectory = anneal(path, numbers, annealing.settings_from(seen))
            draws = end_draws(path.view, trajectory, numbers, num_draws)
        refuse_nan(trajectory.log_weights, self.block.part(columns).rows)
        self.spent[columns] += annealing.num_evaluations + num_draws
        self._keep(columns, annealed(trajectory.log_weights), f"AIS from {name}", draws)

    def _keep(self, columns: Tensor, found: Estimate, method: str, draws: Draws | None) -> None:
        rows = self._rows(columns)
        contradicted = _is_above(self.pilot.at(rows), found) | self.elsewhere.at(rows).contradicts(found)
        found = found._replace(reliable=found.reliable & ~contradicted)
        self.results.append(Result(columns.cpu(), found, contradicted, method, self.spent[columns].cpu(), draws))


def _is_above(pilot: Estimate, found: Estimate, num_errors: float = 4.0) -> Tensor:
    """Tell whether the guide's pilot run found significantly more than another, which then missed a mode."""
    error = (pilot.std_error.square() + found.std_error.square()).sqrt().nan_to_num()
    return pilot.log_evidence > found.log_evidence + num_errors * error + 0.01
