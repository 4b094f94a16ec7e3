"""log p(x) of a Pyro model that is no VAE of ours: overdispersed counts, with a latent rate for each datum.

    python examples/evaluate_your_model.py

The rate of each count has a log-normal prior, so that p(x) has no formula. The guide is what one would write by hand:
a log-normal about the count that was seen. How far can its importance weights be trusted, and what is log p(x)?
"""

from pathlib import Path

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
    print(f"\nyour_model.png and your_model.npz are in {output}/")


def by_quadrature(counts: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
    """The truth, as one latent number can be summed over."""
    log_rate = torch.linspace(-10, 10, 20_001, dtype=torch.float64)[:, None]
    log_prior = dist.Normal(0.0, 1.0).log_prob(log_rate)
    log_likelihood = dist.Poisson(log_rate.exp() * exposure).log_prob(counts)
    return (log_prior + log_likelihood).logsumexp(0) + torch.tensor(20 / 20_000).log()


if __name__ == "__main__":
    main()
