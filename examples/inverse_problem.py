"""What was in the half of the image that is hidden? A trained VAE as the prior of an inverse problem.

    python examples/inverse_problem.py            # some minutes on two CPU cores

The VAE is trained on digits and frozen. The outer program takes its prior without its likelihood and observes the upper
half of the pixels alone. The posterior p(z | upper half) is found in three ways: by SVI with a Gaussian for each image,
by Pyro's NUTS for one image, and by Hamiltonian Monte Carlo started by annealing, for all of them. A figure of the
completed digits, with the uncertainty of each pixel, goes to the folder `results/`.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, digits
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_vae as pv

LATENT_DIM, NUM_SEEN = 20, 392


class Completion:
    """p(z) p(upper half | z), with the VAE as it was trained."""

    def __init__(self, vae: pv.VAE) -> None:
        self.vae = vae.eval().requires_grad_(False)

    def model(self, seen: Tensor) -> Tensor:
        with pyro.plate("data", len(seen)):
            z = self.vae.model(likelihood=False)
            logits = self.vae.decode(z).base_dist.logits
            pyro.sample("seen", dist.Bernoulli(logits=logits[..., :NUM_SEEN]).to_event(1), obs=seen)
        return z

    def guide(self, seen: Tensor) -> Tensor:
        loc = pyro.param("loc", lambda: torch.zeros(len(seen), LATENT_DIM))
        scale = pyro.param("scale", lambda: torch.full_like(loc, 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(seen)):
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    @torch.no_grad()
    def completed(self, z: Tensor) -> Tensor:
        """The probability of each pixel, `(..., 784)`."""
        return self.vae.likelihood(z).mean

    @torch.no_grad()
    def log_prob_hidden(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(lower half | upper half) of each image, by draws z `(S, N, D)` from p(z | upper half)."""
        hidden = dist.Bernoulli(self.completed(z)[..., NUM_SEEN:]).to_event(1).log_prob(x[:, NUM_SEEN:])
        return hidden.double().logsumexp(0) - math.log(len(z))


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=15)
    train, test = digits(args)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, [300], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [300], 2 * LATENT_DIM, input_mean=train.mean)),
    )
    print(f"the prior over images: {pv.fit(vae, train, num_epochs=args.num_epochs, seed=args.seed, progress=False)}")
    problem = Completion(vae)
    num_images, num_draws = (3, 20) if args.smoke else (50, 250)
    x = test.x[:num_images].flatten(1)
    seen = x[:, :NUM_SEEN]
    pair = problem.model, problem.guide

    pv.check_program(*pair, seen)
    svi = pv.SVI(*pair, pv.FusedAdam({"lr": 0.02}), pv.objectives.CompiledTraceMeanField_ELBO())
    for _ in range(20 if args.smoke else 1500):
        svi.step(seen)
    with torch.no_grad():
        draws = {"SVI": torch.stack([problem.guide(seen) for _ in range(4 * num_draws)])}
    chains = pv.posterior_samples(*pair, seen, num_samples=num_draws, num_chains=4, seed=args.seed)
    draws["HMC after annealing"] = chains.latents["z"].flatten(0, 1)
    print(f"\n{chains.summary()}")

    print(f"\nlog p(lower half | upper half) of {num_images} test digits, nats per datum")
    for name, z in draws.items():
        print(f"{f'by draws of {name}':<40}{problem.log_prob_hidden(z, x).mean():>9.2f}")
    whole = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, seed=args.seed)
    half = pv.log_evidence(*pair, seen, tolerance=0.1, seed=args.seed)
    gain, error = whole.mean - half.mean, math.hypot(whole.mean_std_error, half.mean_std_error)
    print(f"{'log p(x) - log p(upper half)':<40}{gain:>9.2f} +- {error:.2f}")

    nuts = MCMC(NUTS(problem.model), num_samples=4 * num_draws, warmup_steps=num_draws, disable_progbar=True)
    nuts.run(seen[:1])
    pixels = [problem.completed(z) for z in (nuts.get_samples()["z"][:, 0], draws["HMC after annealing"][:, 0])]
    apart = (pixels[0].mean(0) - pixels[1].mean(0)).abs().max()
    print(f"the mean pixels of the first image by NUTS and by HMC after annealing differ by at most {apart:.2f}")

    hmc = problem.completed(draws["HMC after annealing"])
    columns = {
        "Upper half": torch.cat([seen, torch.full_like(seen, 0.5)], dim=1),
        "Mean by SVI": problem.completed(draws["SVI"]).mean(0),
        "Mean by HMC": hmc.mean(0),
        "Its uncertainty": 2 * hmc.std(0),  # a standard deviation is at most 1/2
        "A draw": hmc[0],
        "Another": hmc[-1],
        "The digit": x,
    }
    figure, axes = plt.subplots(1, len(columns), figsize=(11, 8), layout="constrained")
    for ax, (title, images) in zip(axes, columns.items(), strict=True):
        pv.plots.image_grid(images[:10], ax, num_columns=1, title=title)
    figure.savefig(args.output / "inverse_problem.png", dpi=100)
    print(f"\nA figure is in {args.output}/inverse_problem.png")


if __name__ == "__main__":
    main()
