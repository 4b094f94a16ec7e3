"""Variants of annealing that keep E p_hat = p(x), side by side at equal cost; and point estimates by the same chains.

    python benchmarks/annealing.py --data-dir data --programs others --others weights.npz   # half an hour on two cores
    python benchmarks/annealing.py --data-dir data --programs mnist --num-test 32 --num-seeds 2

Starts of chains may be antithetic or a scrambled Sobol sequence, each of which has the same distribution as before for
every chain; chains may be resampled by weight at a third and at two thirds of the temperatures. Bennett's bridge
sampling takes the chains' draws for draws from each temperature, as they nearly are: between the first and the last, or
between neighbours. It is no bound. The truth is a long run. Each error is that of a datum in one run, nats.
"""

import argparse
import importlib
import math
from pathlib import Path

import torch
from accuracy_programs import PROGRAMS

import pyro_vae as pv
from pyro_vae.evidence import annealing, hmc
from pyro_vae.evidence.weights import resampled
from pyro_vae.program.tiles import Noise

# `ais` takes its chains from here; the name of the module is also that of the function.
ESTIMATOR = importlib.import_module("pyro_vae.evidence.ais")
normal = Noise.normal


def main() -> None:
    args = parse_args()
    for name in args.programs:
        torch.manual_seed(0)
        program = PROGRAMS[name](args, name)
        pair = program.model, program.guide, *program.args
        truth = pv.ais(*pair, num_temperatures=args.num_temperatures, seed=1000).log_evidence
        print(f"\n{program.title}: {len(truth)} data, {args.num_seeds} seeds; nats")
        print(f"{'':<38}{'bias':>9}{'+-':>8}{'RMSE':>8}{'+-':>8}{'median':>8}{'largest':>9}")
        for length in args.lengths:
            for variant in VARIANTS:
                show(f"{length} temperatures, ", variant, found(variant, pair, length, args.num_seeds), truth)


def found(variant, pair, length, num_seeds):
    """The estimates of all seeds, `(S, N)`, by name."""
    each = []
    for seed in range(num_seeds):
        chains = Chains(**VARIANTS[variant])
        ESTIMATOR.anneal = chains.anneal
        evidence = pv.ais(*pair, num_temperatures=length, seed=seed)
        ESTIMATOR.anneal = annealing.anneal  # the next program's truth is by it
        others = {name: torch.cat(parts, -1) for name, parts in chains.bridges.items()} if variant == PLAIN else {}
        each.append({"": evidence.log_evidence, **others})
    return {name: torch.stack([estimates[name] for estimates in each]) for name in each[0]}


def show(prefix, variant, estimates, truth):
    for name, values in estimates.items():
        errors = values - truth
        of_seeds = errors.square().mean(1).sqrt()
        print(
            f"{prefix}{name or variant:<21}{errors.mean():>9.3f}{errors.mean(0).std() / len(truth) ** 0.5:>8.3f}"
            f"{errors.square().mean().sqrt():>8.3f}{of_seeds.std() / len(values) ** 0.5:>8.3f}"
            f"{errors.abs().median():>8.3f}{errors.abs().max():>9.2f}",
            flush=True,
        )


class Chains:
    """Annealing with other starts, or with resampling; it also bridges between temperatures."""

    def __init__(self, starts=normal, resampled=False):
        self.starts, self.resampled = starts, resampled
        self.bridges = {"bridge between ends": [], "bridge along the path": []}

    def anneal(self, path, noise, settings):
        betas, step_sizes, num_chains, num_leapfrog = settings
        Noise.normal = self.starts
        state, _ = path.begin(path.draw(num_chains))
        Noise.normal = normal
        log_weights, num_steps = torch.zeros_like(state.log_end), len(betas) - 1
        acceptance, differences = torch.zeros_like(betas[0]), []
        for t in range(1, num_steps + 1):
            differences.append(state.log_end - state.log_start)
            log_weights = log_weights + (betas[t] - betas[t - 1]) * differences[-1]
            if t == num_steps:
                break
            if self.resampled and t in (num_steps // 3, 2 * num_steps // 3):
                log_weights, state = resample(log_weights, state, noise)
            state, accepted = hmc.step(
                state, path.evaluate, noise, path.metric(betas[t]), betas[t], step_sizes[t], num_leapfrog
            )
            acceptance = acceptance + accepted.mean(0) / (num_steps - 1)
        self._bridge(betas.diff(dim=0), torch.stack(differences), state.log_end - state.log_start)
        return annealing.Trajectory(log_weights, state, acceptance)

    def _bridge(self, steps, differences, last):
        self.bridges["bridge between ends"].append(bennett(differences[0], last))
        below, above = steps[:-1, None] * differences[:-1], steps[:-1, None] * differences[1:]
        end = (steps[-1] * differences[-1]).logsumexp(0) - math.log(len(last))
        self.bridges["bridge along the path"].append(bennett(below, above).sum(0) + end)


def resample(log_weights, state, noise):
    """Choose chains in proportion to their weights, by strata; all then weigh the same."""
    num_chains = len(log_weights)
    index = resampled(log_weights, noise.stratified(num_chains))
    mean = log_weights.logsumexp(0) - math.log(num_chains)
    chosen = (each[index, torch.arange(log_weights.shape[1])] for each in state)
    return mean.expand(num_chains, -1), hmc.State(*chosen)


def bennett(below, above):
    """The log ratio r of two integrals, from log ratios of densities at draws from either: s(b - r) = s(r - a)."""
    both = torch.cat([below, above], -2)
    low, high = both.amin(-2), both.amax(-2)
    for _ in range(50):
        middle = (low + high) / 2
        r = middle.unsqueeze(-2)
        is_below = torch.sigmoid(below - r).sum(-2) > torch.sigmoid(r - above).sum(-2)
        low, high = middle.where(is_below, low), high.where(is_below, middle)
    return middle


def antithetic(noise, num_chains):
    drawn = normal(noise, num_chains // 2)
    return torch.cat([drawn, -drawn])


def sobol(noise, num_chains):
    """One scrambled sequence, shifted at random for each datum."""
    engine = torch.quasirandom.SobolEngine(noise.dim, scramble=True, seed=int(torch.randint(2**31, ())))
    shift = torch.rand(noise.width, noise.dim, dtype=torch.float64)[noise.columns]
    return torch.special.ndtri(((engine.draw(num_chains).double()[:, None] + shift) % 1).clamp(1e-12, 1 - 1e-12))


PLAIN = "as it is"
VARIANTS = {
    PLAIN: {},
    "antithetic starts": {"starts": antithetic},
    "Sobol starts": {"starts": sobol},
    "resampled twice": {"resampled": True},
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["mnist"])
    parser.add_argument("--others", type=Path, help="the weights of --programs others")
    parser.add_argument("--weights", type=Path, help="a folder to keep trained weights in, and to take them from")
    parser.add_argument("--num-epochs", type=int, help="instead of as many as each program needs")
    parser.add_argument("--num-test", type=int, default=64)
    parser.add_argument("--num-seeds", type=int, default=6)
    parser.add_argument("--num-temperatures", type=int, default=500, help="of the long run")
    parser.add_argument("--lengths", nargs="+", type=int, default=[20, 60])
    return parser.parse_args()


if __name__ == "__main__":
    main()
