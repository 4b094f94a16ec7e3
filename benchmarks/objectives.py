"""The time of a step of each objective, and of flows as posterior, beside the same by hand and NumPyro's.

    python benchmarks/objectives.py               # most of its time is compiling
    python benchmarks/objectives.py --numpyro     # where it is installed

A 784-200-200-50 VAE on random pixels. Ours is `pv.SVI` with `FusedAdam`, one graph. By hand the loss is compiled, and
`torch.optim.Adam(fused=True)` takes the step. NumPyro's steps are a loop inside of one compiled function; ours return
to Python. All take turns, a block of steps each, in each repetition. The table has the median and the extremes of the
ratio in one repetition: below 1, ours is faster.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import Dense, by_numpyro

import pyro_vae as pv

LATENT_DIM, HIDDEN, CONTEXT_DIM = 50, [200, 200], 50

CONTESTANTS = ["ours", "by hand", "NumPyro"]
COLUMNS = ["objective", "ours, ms", "by hand, ms", "NumPyro, ms", "ours to by hand", "ours to NumPyro"]

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

    autoregressive: bool | Literal["inverse"] = False

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(784, 2 * LATENT_DIM + CONTEXT_DIM)
        self.flow: Any = flow(self.autoregressive).flow

    def forward(self, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
        loc, log_scale, h = self.encoder(x).split([LATENT_DIM, LATENT_DIM, CONTEXT_DIM], -1)
        base = loc + log_scale.exp() * torch.randn(num_particles, *loc.shape)
        z, log_slope = self.transformed(base, h)
        return z, log_normal(base, loc, log_scale) - log_slope

    def transformed(self, base: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.transform(h).inv.call_and_ladj(base)


class InverseAutoregressive(Coupling):
    """A Gaussian and zuko's autoregressive layers by hand, from noise to values."""

    autoregressive = "inverse"

    def transformed(self, base: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.transform(h).call_and_ladj(base)


def elbo(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return (log_joint - log_q).mean(0).sum()


def importance_weighted(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return ((log_joint - log_q).logsumexp(0) - math.log(len(log_q))).sum()


def renyi(log_joint: Tensor, log_q: Tensor) -> Tensor:
    return 2 * ((0.5 * (log_joint - log_q)).logsumexp(0) - math.log(len(log_q))).sum()


def diagonal() -> nn.Module:
    return pv.posteriors.DiagonalNormal(mlp(784, 2 * LATENT_DIM))


def flow(autoregressive: bool | Literal["inverse"] = False) -> Any:
    network = mlp(784, 2 * LATENT_DIM + CONTEXT_DIM)
    return pv.posteriors.Flow(network, LATENT_DIM, CONTEXT_DIM, autoregressive=autoregressive)


def in_groups(log_joint: Tensor, log_q: Tensor, num_groups: int) -> Tensor:
    log_weight = (log_joint - log_q).unflatten(0, (num_groups, -1))
    return (log_weight.logsumexp(1) - math.log(log_weight.shape[1])).mean(0).sum()


class ByHand(nn.Module):
    """Minus a bound, with the gradient of autograd."""

    def __init__(self, q: nn.Module, decoder: nn.Module, bound: Callable[[Tensor, Tensor], Tensor], num: int) -> None:
        super().__init__()
        self.q, self.decoder, self.bound, self.num_particles = q, decoder, bound, num

    def forward(self, x: Tensor) -> Tensor:
        z, log_q = self.q(x, self.num_particles)
        return -self.bound(self.log_joint(z, x), log_q)

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        return log_normal(z, 0.0, 0.0) + log_bernoulli(self.decoder(z), x)


class PartiallyImportanceWeighted(ByHand):
    """PIWAE: the decoder by the bound of all particles, the encoder by that of groups."""

    def forward(self, x: Tensor) -> Tensor:
        z, log_q = self.q(x, self.num_particles)
        of_decoder = self.bound(self.log_joint(z.detach(), x), log_q.detach())
        fixed = {name: value.detach() for name, value in self.decoder.named_parameters()}
        logits = torch.func.functional_call(self.decoder, fixed, z)
        of_encoder = in_groups(log_normal(z, 0.0, 0.0) + log_bernoulli(logits, x), log_q, 5)
        return -of_encoder - (of_decoder - of_decoder.detach())


class Case(NamedTuple):
    """An objective and a posterior, each in three forms."""

    objective: Callable[..., Any]
    bound: Callable[[Tensor, Tensor], Tensor]
    """By hand."""
    num_particles: int = 1
    posterior: Callable[[], nn.Module] = diagonal
    by_hand: Callable[[], nn.Module] = Gaussian
    loss: type[ByHand] = ByHand
    numpyro: Callable[[Any], Any] | None = None
    """Makes the loss from `numpyro.infer`."""
    num_flows: int = 0
    """Of NumPyro's posterior."""


OBJECTIVES = {
    "ELBO": Case(pv.objectives.CompiledTrace_ELBO, elbo, numpyro=lambda infer: infer.Trace_ELBO()),
    "TraceMeanField_ELBO": Case(
        pv.objectives.CompiledTraceMeanField_ELBO, elbo, numpyro=lambda infer: infer.TraceMeanField_ELBO()
    ),
    "BetaELBO": Case(pv.objectives.BetaELBO, elbo),
    "IWELBO, 5": Case(
        pv.objectives.IWELBO, importance_weighted, 5, numpyro=lambda infer: infer.RenyiELBO(0.0, num_particles=5)
    ),
    "IWELBO, 5, STL beside the standard gradient": Case(
        partial(pv.objectives.IWELBO, gradient="stl"), importance_weighted, 5
    ),
    "IWELBO, 5, DReG beside the standard gradient": Case(
        partial(pv.objectives.IWELBO, gradient="dreg"), importance_weighted, 5
    ),
    "IWELBO, 25": Case(pv.objectives.IWELBO, importance_weighted, 25),
    "IWELBO, 25, guide in 5 groups (PIWAE)": Case(
        partial(pv.objectives.IWELBO, guide_groups=5), importance_weighted, 25, loss=PartiallyImportanceWeighted
    ),
    "RenyiBound, 5": Case(
        pv.objectives.RenyiBound, renyi, 5, numpyro=lambda infer: infer.RenyiELBO(0.5, num_particles=5)
    ),
    "ELBO, coupling flow": Case(pv.objectives.CompiledTrace_ELBO, elbo, 1, flow, Coupling),
    "ELBO, inverse autoregressive flow": Case(
        pv.objectives.CompiledTrace_ELBO,
        elbo,
        1,
        partial(flow, "inverse"),
        InverseAutoregressive,
        numpyro=lambda infer: infer.Trace_ELBO(),
        num_flows=4,
    ),
}


def ours(case: Case, x: Tensor) -> Steps:
    pyro.clear_param_store()
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Bernoulli(mlp(LATENT_DIM, 784))
    vae = pv.VAE(pv.priors.StandardNormal(LATENT_DIM), likelihood, case.posterior(), name="step")
    loss = case.objective(num_particles=case.num_particles, vectorize_particles=case.num_particles > 1)
    svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-3}), loss)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            svi.step(x)

    return run


def by_hand(case: Case, x: Tensor) -> Steps:
    torch.manual_seed(0)
    loss = case.loss(case.by_hand(), mlp(LATENT_DIM, 784), case.bound, case.num_particles)
    adam = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)
    loss_of = torch.compile(loss)

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
    parser.add_argument("--numpyro", action="store_true")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--num-repetitions", type=int, default=10)
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    x = torch.bernoulli(torch.full((args.batch_size, 784), 0.2))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batches of {args.batch_size}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in args.objectives:
        case = OBJECTIVES[name]
        runs = {"ours": ours(case, x), "by hand": by_hand(case, x)}
        if args.numpyro and case.numpyro is not None:
            runs["NumPyro"] = by_numpyro(Dense(HIDDEN, LATENT_DIM), x, case.numpyro, case.num_flows)
        for run in runs.values():
            run(5)
        num_steps = max(2, int(0.3 / timed(runs["by hand"], 5)))
        seconds: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(args.num_repetitions):
            for each, run in runs.items():
                seconds[each].append(timed(run, num_steps))
        times = [f"{1e3 * statistics.median(seconds[each]):.2f}" if each in runs else "" for each in CONTESTANTS]
        ratios = [ratio(seconds["ours"], seconds[each]) if each in runs else "" for each in CONTESTANTS[1:]]
        print(f"| {name} | {' | '.join([*times, *ratios])} |", flush=True)


def ratio(ones: list[float], others: list[float]) -> str:
    each = [one / other for one, other in zip(ones, others, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


if __name__ == "__main__":
    main()
