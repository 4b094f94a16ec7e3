"""Objective x posterior x prior on MNIST: what each part is worth in ELBO, log p(x) and gaps, for one budget of steps.

A 784-200-200-50 VAE with Bernoulli pixels each, from the same images, in as many steps of 100. log p(x) is that of the
first test images by `log_evidence`. Where the posterior can be refined, the gap to the ELBO is parted into what
the family cannot reach and what the encoder loses. Differences from the first row are paired, and seconds are those of
training.

    python benchmarks/family.py --data-dir data
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

import pyro_vae as pv

LATENT_DIM, HIDDEN, CONTEXT_DIM = 50, [200, 200], 50

COLUMNS = (
    "objective", "posterior", "prior", "ELBO", "log p(x)", "less the first", "reliable", "approximation gap",
    "amortization gap", "active", "seconds",
)  # fmt: skip

INVERSE = "Flow, inverse autoregressive"
OBJECTIVES: dict[str, Callable[[str], pv.objectives.Objective]] = {
    "ELBO": lambda posterior: pv.objectives.CompiledTrace_ELBO(),
    # The doubly reparametrized gradient takes the density of draws under parameters that stand still, for which an
    # inverse autoregressive flow is inverted.
    "IWELBO, 5": lambda posterior: pv.objectives.IWELBO(5, gradient="standard" if posterior == INVERSE else "dreg"),
}


def encoder(num_outputs: int, mean: torch.Tensor) -> nn.Module:
    return pv.nn.MLP(784, HIDDEN, num_outputs, input_mean=mean)


def flow(mean: torch.Tensor, autoregressive: bool | Literal["inverse"]) -> nn.Module:
    network = encoder(2 * LATENT_DIM + CONTEXT_DIM, mean)
    return pv.posteriors.Flow(network, LATENT_DIM, CONTEXT_DIM, autoregressive=autoregressive)


POSTERIORS: dict[str, Callable[[torch.Tensor], nn.Module]] = {
    "DiagonalNormal": lambda mean: pv.posteriors.DiagonalNormal(encoder(2 * LATENT_DIM, mean)),
    "FullRankNormal": lambda mean: pv.posteriors.FullRankNormal(
        encoder(LATENT_DIM * (LATENT_DIM + 3) // 2, mean), LATENT_DIM
    ),
    "Flow": lambda mean: flow(mean, autoregressive=False),
    INVERSE: lambda mean: flow(mean, autoregressive="inverse"),
}

PRIORS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "StandardNormal": lambda posterior, x: pv.priors.StandardNormal(LATENT_DIM),
    "VampPrior": lambda posterior, x: pv.priors.VampPrior(posterior, x[:200].flatten(1)),
}


def make_vae(posterior: str, prior: str, train: pv.data.Dataset, seed: int) -> pv.VAE:
    torch.manual_seed(seed)
    q = POSTERIORS[posterior](train.mean)
    decoder = pv.nn.MLP(LATENT_DIM, HIDDEN, 784, output_bias=torch.logit(train.mean, eps=1e-3))
    return pv.VAE(PRIORS[prior](q, train.x), pv.likelihoods.Bernoulli(decoder), q)


def rows(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Those asked for, after the one that all are compared with."""
    asked = itertools.product(args.objectives, args.posteriors, args.priors)
    # VampPrior's density takes the posterior's at 200 pseudo-inputs, which a flow makes too dear for two cores.
    found = [row for row in asked if not (row[1].startswith("Flow") and row[2] == "VampPrior")]
    first = ("ELBO", "DiagonalNormal", "StandardNormal")
    return [first, *(row for row in found if row != first)]


def gaps(vae: pv.VAE, evidence: pv.Evidence, x: torch.Tensor, seed: int) -> str:
    """The approximation and the amortization gap, or why there is no telling."""
    try:
        gap = pv.inference_gap(vae.model, vae.guide, x, num_samples=200, evidence=evidence, seed=seed)
    except ValueError as error:
        if not str(error).startswith("guide: expected"):
            raise
        return f"{with_error(evidence.gap)} together |"
    return f"{with_error(gap.approximation)} | {with_error(gap.amortization)}"


def with_error(values: torch.Tensor) -> str:
    """The mean and its error as that of all images there are, not only of these."""
    return f"{values.mean():.2f} +- {values.std() / len(values) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--posteriors", nargs="*", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--priors", nargs="*", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--num-train", type=int, default=20_000)
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--num-test", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train = pv.data.mnist(args.data_dir, seed=args.seed).first(args.num_train)
    test = pv.data.mnist(args.data_dir, split="test", seed=args.seed)
    x = test.x[: args.num_test]
    print(f"train  {train.provenance}\ntest   {test.first(args.num_test).provenance}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    first = None
    for objective, posterior, prior in rows(args):
        vae = make_vae(posterior, prior, train, args.seed)
        started = time.perf_counter()
        pv.fit(
            vae,
            train,
            objective=OBJECTIVES[objective](posterior),
            num_epochs=args.num_epochs,
            seed=args.seed,
            progress=False,
        )
        seconds = time.perf_counter() - started
        evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, seed=args.seed)
        first = first or evidence
        better = pv.compare(evidence, first)
        use = pv.latent_use(vae.model, vae.guide, test.x[:1000], num_samples=2)
        print(
            f"| {objective} | {posterior} | {prior} | {evidence.elbo.mean():.2f} | {evidence.mean:.2f} +- "
            f"{evidence.mean_std_error:.2f} | {better.mean:+.2f} +- {better.std_error:.2f} | "
            f"{evidence.reliable.double().mean():.0%} | {gaps(vae, evidence, x, args.seed)} | {use.num_active} | "
            f"{seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
