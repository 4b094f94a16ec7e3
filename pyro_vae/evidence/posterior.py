"""Draw from p(z|x) by HMC from where annealing ends, with chain diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for
from pyro_vae.distributed import shared
from pyro_vae.evidence import hmc, storage
from pyro_vae.evidence.annealing import Annealing, anneal, block_size, end_positions
from pyro_vae.evidence.draws import Draws, draws_of
from pyro_vae.evidence.estimator import Task, evaluate
from pyro_vae.evidence.importance import ImportanceSampling
from pyro_vae.evidence.observed import Observed
from pyro_vae.evidence.region import Region
from pyro_vae.program.in_turn import UNUSED
from pyro_vae.program.joint import Compile
from pyro_vae.program.tiles import Block, noise, refuse_nan

__all__ = ["Posterior", "chain_diagnostics", "chains", "posterior_samples"]


@dataclass(frozen=True, repr=False)
class Posterior:
    """Draws from p(z|x) for each of N data, with draws from the guide beside them.

    Attributes:
        latents: for each latent site, `(C, S, N, ...)`, of C chains and S draws in each.
        guide_latents: as many draws from q(z|x), `(C * S, N, ...)`.
        log_prior, log_likelihood: log p(z) and log p(x|z) of each draw, `(C, S, N)`, nats.
        rhat: rank-normalised split R-hat, the largest over the latent numbers of a datum, `(N,)`: above 1.01 the chains
            have not yet mixed. NaN for importance resampling, whose draws are independent.
        ess: rank-normalised effective sample size, the smallest over the latent numbers, `(N,)`. For importance
            resampling, what S draws out of an effective number E are worth, $1 / (1 / S + 1 / E)$.
        acceptance: of HMC, `(N,)`.
        observed: the data.
        method: how the draws were made.
        num_evaluations: of log p(x, z) for each datum, `(N,)`.
        settings: how the pair was run, for the record.
    """

    latents: dict[str, Tensor]
    guide_latents: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    rhat: Tensor
    ess: Tensor
    acceptance: Tensor
    observed: Observed
    method: str
    num_evaluations: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    def to_arviz(self) -> Any:
        """Convert to arviz: `posterior`, `log_likelihood`, `sample_stats`, `observed_data`, `constant_data`."""
        constant = {"rhat": self.rhat, "ess": self.ess, "acceptance": self.acceptance}
        return storage.as_arviz(self.latents, self.log_prior, self.log_likelihood, self.observed.values, constant)

    def summary(self) -> str:
        """Return the diagnostics in words."""
        chains, draws, num_data = self.log_prior.shape
        if self.rhat.isnan().all():
            return (
                f"{chains * draws} draws from p(z|x) for {num_data} data, by {self.method}\n"
                f"effective draws: median {self.ess.median():,.0f}, smallest {self.ess.min():,.0f}"
            )
        return (
            f"{chains} chains of {draws} draws from p(z|x) for {num_data} data, by {self.method}\n"
            f"R-hat: median {self.rhat.median():.3f}, largest {self.rhat.max():.3f}; effective draws: median "
            f"{self.ess.median():,.0f}, smallest {self.ess.min():,.0f}"
        )

    def __repr__(self) -> str:
        chains, draws, num_data = self.log_prior.shape
        return f"Posterior({chains} chains, {draws} draws, {num_data} data, by {self.method})"


@refusing_unknown_options
def posterior_samples(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 250,
    num_chains: int = 4,
    method: str = "hmc",
    num_temperatures: int = 50,
    num_leapfrog: int = 3,
    num_proposals: int = 10_000,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    compile: Compile = "auto",
) -> Posterior:
    """Draw from p(z|x) of each datum.

    Args:
        model, guide: a Pyro program and its guide, with continuous latents.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        num_samples: draws of each chain.
        num_chains: chains for each datum; 2 or more.
        method: "hmc", Hamiltonian Monte Carlo at p(x, z) with frozen step sizes, started where AIS ends, so that no
            warm-up is thrown away; "importance", which resamples `num_proposals` draws from the guide by weight and is
            as good as the guide's effective sample size.
        num_temperatures: of AIS.
        num_leapfrog: leapfrog steps between two draws.
        num_proposals: draws from the guide, for "importance".
        seed: fixes the noise.
        plate, first_index, kwargs: as in `importance_sampling`.
        compile: as in `ais`.

    Returns:
        `Posterior`.

    Raises:
        TypeError, ValueError: as `ais`; where all latents are discrete and summed out.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization: an
        improved R-hat.
    """
    _checks.choice("method", method, ("hmc", "importance"))
    _checks.whole_number("num_samples", num_samples, minimum=4)
    annealing = Annealing("laplace", num_temperatures, num_chains, num_leapfrog)
    num_proposals = _checks.whole_number("num_proposals", num_proposals)
    num_draws = num_chains * num_samples
    by_hmc = annealing.work + 2 * num_draws * num_leapfrog
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index, num_posterior_draws=num_draws,
        compile=compile, evaluations=by_hmc if method == "hmc" else num_proposals,
    )  # fmt: skip
    if task.program.structure.latents == {UNUSED}:
        raise ValueError(
            f"model: expected latents that can be drawn; got {', '.join(task.settings['summed_out'])}, which are "
            "summed out, and no others; draw them with pyro.infer.infer_discrete(model, first_available_dim=..., "
            "temperature=1), which is exact."
        )
    guide_latents = _guide_latents(task, num_draws)
    if method == "importance":
        return _by_importance(task, num_chains, num_proposals, guide_latents)
    return _by_hmc(task, annealing, num_samples, guide_latents)


def _by_hmc(task: Task, annealing: Annealing, num_samples: int, guide_latents: dict[str, Tensor]) -> Posterior:
    """Run chains of HMC, started by AIS."""
    num_chains = annealing.num_chains
    task.require_view()
    runs = shared(
        task.blocks(block_size(task.program, num_chains)),
        lambda block: chains(block, task.region(block), annealing, num_samples, task.seed),
    )
    parts, us, acceptances, spent = zip(*runs, strict=True)
    draws = Draws.joined(parts)
    assert draws is not None
    rhat, ess = chain_diagnostics(torch.cat(us, dim=2))
    return Posterior(
        _by_chain(draws.latents, num_chains),
        guide_latents,
        draws.log_prior.unflatten(0, (num_chains, -1)),
        draws.log_likelihood.unflatten(0, (num_chains, -1)),
        rhat,
        ess,
        torch.cat(acceptances),
        Observed.of(task.program),
        "HMC, started by AIS",
        torch.cat(spent),
        {**task.settings, "compiled": task.is_compiled},
    )


def _by_chain(latents: dict[str, Tensor], num_chains: int) -> dict[str, Tensor]:
    return {name: value.unflatten(0, (num_chains, -1)) for name, value in latents.items()}


def chains(
    block: Block, region: Region, annealing: Annealing, num_samples: int, seed: int
) -> tuple[Draws, Tensor, Tensor, Tensor]:
    """Return draws, chain by chain, u `(C, S, N, D)`, the acceptance, and the number of evaluations."""
    prepared = annealing.prepared(block, region, seed)
    path, numbers = prepared.path, prepared.noise
    positions, acceptances = [], []
    with noise(block.program, seed_for(seed, "chains"), block.place):
        trajectory = anneal(path, numbers, prepared.settings)
        refuse_nan(trajectory.log_weights, block.rows)
        state = path.evaluate(end_positions(trajectory, numbers, annealing.num_chains))
        beta, size = torch.ones_like(prepared.settings.betas[-1]), prepared.settings.step_sizes[-1]
        for _ in range(num_samples):
            state, accepted = hmc.step(
                state, path.evaluate, numbers, path.metric(beta), beta, size, annealing.num_leapfrog
            )
            positions.append(state.position)
            acceptances.append(accepted.mean(0))
        u = torch.stack(positions, dim=1)
        draws = draws_of(path.view, u.flatten(0, 1))
    num_chains = annealing.num_chains
    spent = prepared.num_evaluations + num_chains * (1 + num_samples * (annealing.num_leapfrog + 1))
    return draws, u.cpu(), torch.stack(acceptances).mean(0).cpu(), spent.cpu()


def chain_diagnostics(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return each datum's worst rank-normalised split R-hat and effective sample size, of draws `(C, S, N, D)`."""
    ranks = _normal_scores(u)
    folded = _normal_scores((u - u.flatten(0, 1).median(0).values).abs())
    rhat = torch.maximum(split_gelman_rubin(ranks, 0, 1), split_gelman_rubin(folded, 0, 1))
    half = ranks.shape[1] // 2
    halves = torch.cat([ranks[:, :half], ranks[:, -half:]])  # so that a drift shows, as in R-hat
    return rhat.amax(-1), effective_sample_size(halves, 0, 1).amin(-1)


def _normal_scores(u: Tensor) -> Tensor:
    """Return normal quantiles of the ranks over all chains."""
    flat = u.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0).double() + 1
    return torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).reshape(u.shape)


def _guide_latents(task: Task, num_samples: int) -> dict[str, Tensor]:
    def of_block(block: Block) -> tuple[Draws, slice]:
        with noise(block.program, seed_for(task.seed, "guide draws"), block.place):
            latents, log_q = block.program.draw(num_samples)
        values = {name: block.program.draws_first(latents[name]) for name in block.program.latents_of(latents)}
        return Draws(values, log_q, log_q), block.columns

    joined = Draws.joined(*zip(*shared(task.blocks(block_size(task.program, 16)), of_block), strict=True))
    assert joined is not None
    return joined.latents


def _by_importance(task: Task, num_chains: int, num_proposals: int, guide_latents: dict[str, Tensor]) -> Posterior:
    evidence = evaluate(ImportanceSampling.of(num_proposals), task)
    assert evidence.draws is not None
    unknown = torch.full_like(evidence.ess, torch.nan)
    return Posterior(
        _by_chain(evidence.draws.latents, num_chains),
        guide_latents,
        evidence.draws.log_prior.unflatten(0, (num_chains, -1)),
        evidence.draws.log_likelihood.unflatten(0, (num_chains, -1)),
        unknown,
        1 / (1 / task.num_posterior_draws + 1 / evidence.ess),
        unknown,
        evidence.observed,
        f"importance resampling of {num_proposals:,} draws",
        evidence.num_evaluations,
        {**task.settings, "compiled": task.is_compiled},
    )
