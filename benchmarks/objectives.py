"""The time of a step of each objective, and of a flow as posterior, beside the same by hand in compiled PyTorch.

    python benchmarks/objectives.py       # most of its time is compiling

A 784-200-200-50 VAE on random pixels. Ours is `pv.SVI` with `FusedAdam`, one graph. By hand the loss is compiled, and
`torch.optim.Adam(fused=True)` takes the step. Both take turns, a block of steps each, in each repetition. The table has
the median and the extremes of the ratio in one repetition: below 1, ours is faster.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, HIDDEN, CONTEXT_DIM = 50, [200, 200], 50

Steps = Callable[[int], None]


def mlp(in_dim: int, out_dim: int) -> nn.Module:
    return pv.nn.MLP(in_dim, HIDDEN, out_dim, activation=nn.ReLU)


def log_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def log_normal(z: Tensor, loc: Tensor | float, log_scale: Tensor | float) -> Tensor:
    log_scale = torch.as_tensor(log_scale)
    return (-0.5 * ((z - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


class Gaussian(nn.Module):
    """q(z|x) by hand: draws and their log densities."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(784, 2 * LATENT_DIM)

    def forward(self, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn(num_particles, *loc.shape)
        return z, log_normal(z, loc, log_scale)


class Coupling(nn.Module):
    """A Gaussian and zuko's affine coupling layers by hand, as `posteriors.Flow` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(784, 2 * LATENT_DIM + CONTEXT_DIM)
        self.flow = pv.posteriors.Flow(nn.Identity(), LATENT_DIM, CONTEXT_DIM).flow

    def forward(self, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        loc, log_scale, h = self.encoder(x).split([LATENT_DIM, LATENT_DIM, CONTEXT_DIM], -1)
        base = loc + log_scale.exp() * torch.randn(num_particles, *loc.shape)
        z, log_slope = self.flow.transform(h).inv.call_and_ladj(base)
        return z, log_normal(base, loc, log_scale) - log_slope


def elbo(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return (log_joint - log_q).mean(0).sum()


def importance_weighted(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return ((log_joint - log_q).logsumexp(0) - math.log(len(log_q))).sum()


def renyi(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return 2 * ((0.5 * (log_joint - log_q)).logsumexp(0) - math.log(len(log_q))).sum()


def diagonal() -> nn.Module:
    return pv.posteriors.DiagonalNormal(mlp(784, 2 * LATENT_DIM))


def flow() -> nn.Module:
    return pv.posteriors.Flow(mlp(784, 2 * LATENT_DIM + CONTEXT_DIM), LATENT_DIM, CONTEXT_DIM)


OBJECTIVES = {
    "ELBO": (pv.objectives.CompiledTrace_ELBO, diagonal, elbo, Gaussian, 1),
    "BetaELBO": (pv.objectives.BetaELBO, diagonal, elbo, Gaussian, 1),
    "IWELBO, 5": (pv.objectives.IWELBO, diagonal, importance_weighted, Gaussian, 5),
    "IWELBO, 5, DReG beside the standard gradient": (
        lambda **options: pv.objectives.IWELBO(gradient="dreg", **options),
        diagonal,
        importance_weighted,
        Gaussian,
        5,
    ),
    "RenyiBound, 5": (pv.objectives.RenyiBound, diagonal, renyi, Gaussian, 5),
    "ELBO, Flow": (pv.objectives.CompiledTrace_ELBO, flow, elbo, Coupling, 1),
}


def ours(objective, posterior, num_particles: int, x: Tensor) -> Steps:
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM), pv.likelihoods.Bernoulli(mlp(LATENT_DIM, 784)), posterior(), name="step"
    )
    loss = objective(num_particles=num_particles, vectorize_particles=num_particles > 1)
    svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-3}), loss)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            svi.step(x)

    return run


def by_hand(bound, posterior, num_particles: int, x: Tensor) -> Steps:
    torch.manual_seed(0)
    q, decoder = posterior(), mlp(LATENT_DIM, 784)
    adam = torch.optim.Adam([*q.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

    @torch.compile
    def loss_of(x: Tensor) -> Tensor:
        z, log_q = q(x, num_particles)
        return -bound(log_normal(z, 0.0, 0.0) + log_bernoulli(decoder(z), x), log_q)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            adam.zero_grad()
            loss_of(x).backward()
            adam.step()

    return run


def timed(run: Steps, num_steps: int) -> float:
    started = time.perf_counter()
    run(num_steps)
    return (time.perf_counter() - started) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--num-repetitions", type=int, default=10)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    x = torch.bernoulli(torch.full((args.batch_size, 784), 0.2))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batches of {args.batch_size}")
    print("| objective | ours, ms | by hand, ms | ratio | least | largest |\n|---|---|---|---|---|---|")
    for name, (objective, posterior, bound, q, num_particles) in OBJECTIVES.items():
        runs = [ours(objective, posterior, num_particles, x), by_hand(bound, q, num_particles, x)]
        for run in runs:
            run(5)
        num_steps = max(2, int(0.3 / timed(runs[1], 5)))
        pairs = [tuple(timed(run, num_steps) for run in runs) for _ in range(args.num_repetitions)]
        ratios = [one / other for one, other in pairs]
        medians = [1e3 * statistics.median(each) for each in zip(*pairs, strict=True)]
        print(
            f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | "
            f"{max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
