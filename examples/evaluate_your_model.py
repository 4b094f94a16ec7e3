"""log p(x) of Pyro models that are no VAE of ours, each beside the truth.

    python examples/evaluate_your_model.py

First, overdispersed counts: the rate of each has a log-normal prior, so that p(x) has no formula. The guide is what one
would write by hand: a log-normal about the count that was seen. How far can its importance weights be trusted, and what
is log p(x)? Then four programs as they are written elsewhere: a mixture whose clusters no guide draws, a state-space
model, a regression without a guide, and Pyro's eight schools.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv


def model(counts: torch.Tensor, exposure: torch.Tensor) -> None:
    with pyro.plate("data", len(counts)):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate * exposure), obs=counts)


def guide(counts: torch.Tensor, exposure: torch.Tensor) -> None:
    with pyro.plate("data", len(counts)):
        pyro.sample("rate", dist.LogNormal(((counts + 0.5) / exposure).log(), 0.4))


def main(output: Path = Path("results")) -> None:
    torch.manual_seed(0)
    exposure = torch.linspace(0.5, 20, 200)
    counts = torch.poisson(torch.exp(torch.randn(200)) * exposure)

    by_guide = pv.importance_sampling(model, guide, counts, exposure, num_samples=1000)
    print(by_guide.summary(), end="\n\n")  # k-hat says for how many counts this guide will not do

    evidence = pv.log_evidence(model, guide, counts, exposure, tolerance=0.02)
    print(evidence.summary(), end="\n\n")  # each count gets the estimator that it needs

    exact = by_quadrature(counts, exposure)
    for name, found in (("the guide", by_guide), ("log_evidence", evidence)):
        error = found.log_evidence - exact
        print(f"{name:<14} mean error {error.mean():+.4f}, largest {error.abs().max():.4f} nats")

    print(pv.bdmc(model, guide, counts, exposure, num_temperatures=20).summary(), end="\n\n")
    posterior = pv.posterior_samples(model, guide, counts[:10], exposure[:10])
    print(posterior.summary())

    output.mkdir(parents=True, exist_ok=True)
    pv.plots.evidence(by_guide).savefig(output / "your_model.png", dpi=120)
    evidence.save(output / "your_model.npz")

    print()
    programs = {name: evaluate() for name, evaluate in PROGRAMS.items()}
    for name, (of_data, truth) in programs.items():
        print(f"{name:<20} log p(x) {of_data.mean:8.3f} +- {of_data.mean_std_error:.3f}, the truth {truth.mean():8.3f}")
    plot(programs).savefig(output / "your_programs.png", dpi=120)
    print(f"\nyour_model.png, your_model.npz and your_programs.png are in {output}/")


def by_quadrature(counts: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
    """The truth, as one latent number can be summed over."""
    log_rate = torch.linspace(-10, 10, 20_001, dtype=torch.float64)[:, None]
    log_prior = dist.Normal(0.0, 1.0).log_prob(log_rate)
    log_likelihood = dist.Poisson(log_rate.exp() * exposure).log_prob(counts)
    return (log_prior + log_likelihood).logsumexp(0) + torch.tensor(20 / 20_000).log()


Found = tuple[pv.Evidence, torch.Tensor]
"""What was found, and the truth."""


def mixture() -> Found:
    """Three clusters. The guide is None, and the cluster of each datum is summed out."""
    shares, locs = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.0, 3.0])

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(shares))
            pyro.sample("x", dist.Normal(locs[cluster], 0.5), obs=x)

    x = locs[torch.multinomial(shares, 40, replacement=True)] + 0.5 * torch.randn(40)
    exact = (shares.log() + dist.Normal(locs, 0.5).log_prob(x[:, None])).logsumexp(-1)
    return pv.log_evidence(model, None, x), exact.double()


def state_space() -> Found:
    """A random walk seen through noise, 40 times over six steps."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("series", len(x)):
            z = torch.zeros(())
            for t in range(6):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[:, t])

    steps = torch.arange(1.0, 7.0)
    joint = dist.MultivariateNormal(torch.zeros(6), torch.minimum(steps, steps[:, None]) + 0.25 * torch.eye(6))
    x = joint.sample((40,))
    return pv.log_evidence(model, None, x), joint.log_prob(x).double()


def regression() -> Found:
    """Weights that all data share: one number, the evidence of the data set."""
    x = torch.randn(30, 3)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((w * x).sum(-1), 0.5), obs=y)

    joint = dist.MultivariateNormal(torch.zeros(30), x @ x.T + 0.25 * torch.eye(30))
    y = joint.sample()
    return pv.log_evidence(model, None, x, y, joint=True), joint.log_prob(y)[None].double()


def eight_schools() -> Found:
    """Rubin (1981), with the priors of Pyro's example. The effects of all schools share a mean and a spread."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    mu, log_tau = torch.linspace(-60, 60, 601, dtype=torch.float64), torch.linspace(-12, 12, 1201).double()[:, None]
    spread = (log_tau.exp().square() + sigma[:, None, None].double().square()).sqrt()
    log_joint = dist.Normal(mu, spread).log_prob(y[:, None, None].double()).sum(0) + dist.Normal(0.0, 10.0).log_prob(mu)
    log_joint = log_joint + dist.HalfCauchy(25.0).log_prob(log_tau.exp()) + log_tau + torch.tensor(0.2 * 0.02).log()
    return pv.log_evidence(model, None, y, joint=True), log_joint.flatten().logsumexp(0)[None]


PROGRAMS: dict[str, Callable[[], Found]] = {
    "a mixture": mixture,
    "a state-space model": state_space,
    "a regression": regression,
    "eight schools": eight_schools,
}


def plot(found: dict[str, Found]) -> plt.Figure:
    """Errors of each datum, with bars of two standard errors."""
    figure, axes = plt.subplots(1, len(found), figsize=(11, 3), layout="constrained")
    for axis, (name, (evidence, exact)) in zip(axes, found.items(), strict=True):
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.errorbar(
            exact, evidence.log_evidence - exact, yerr=2 * evidence.std_error, fmt="o", markersize=3, linewidth=1
        )
        axis.set(title=name, xlabel="log p(x), nats", ylim=(-0.15, 0.15))
    axes[0].set_ylabel("error, nats")
    return figure


if __name__ == "__main__":
    main()
