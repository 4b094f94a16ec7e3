"""A prior that is learned: VampPrior beside N(0, I), on digits.

    python examples/vamp_prior.py            # some minutes on two CPU cores

The prior is the mixture of what the encoder says of pseudo-inputs, images that are learned with the rest and start from
data. Both VAEs have the same networks and as many steps. A figure goes to the folder `results/`.

J. M. Tomczak, M. Welling (2018), VAE with a VampPrior.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from common import arguments, digits
from torch import nn

import pyro_vae as pv

LATENT_DIM, HIDDEN, NUM_PSEUDO_INPUTS = 20, [200, 200], 100


def make_vae(train: pv.data.Dataset, num_pseudo_inputs: int) -> pv.VAE:
    """A VAE with so many pseudo-inputs; without any, the prior is N(0, I)."""
    posterior = pv.posteriors.DiagonalNormal(pv.nn.MLP(784, HIDDEN, 2 * LATENT_DIM, nn.ReLU, input_mean=train.mean))
    bias = torch.logit(train.mean, eps=1e-3)
    prior: nn.Module = pv.priors.StandardNormal(LATENT_DIM)
    if num_pseudo_inputs:
        prior = pv.priors.VampPrior(posterior, train.x[:num_pseudo_inputs].flatten(1))
    likelihood = pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, HIDDEN, 784, nn.ReLU, output_bias=bias))
    return pv.VAE(prior, likelihood, posterior)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=20)
    train, test = digits(args)
    x = test.x[: 5 if args.smoke else 100]

    vaes, found = {}, {}
    for name, num_pseudo_inputs in {"N(0, I)": 0, "VampPrior": 10 if args.smoke else NUM_PSEUDO_INPUTS}.items():
        torch.manual_seed(args.seed)
        vae = vaes[name] = make_vae(train, num_pseudo_inputs)
        history = pv.fit(vae, train, num_epochs=args.num_epochs, seed=args.seed, progress=False)
        found[name] = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, seed=args.seed)
        use = pv.latent_use(vae.model, vae.guide, test.x[:1000])
        print(
            f"{name:10} training ELBO {history.train_elbo[-1]:.2f}, log p(x) {found[name].mean:.2f} +- "
            f"{found[name].mean_std_error:.2f} nats; {use.num_active} of {LATENT_DIM} latent numbers active, "
            f"KL(q(z) || p(z)) {use.aggregate_kl:.2f}"
        )
    print(f"VampPrior less N(0, I), paired: {pv.compare(found['VampPrior'], found['N(0, I)'])}")

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    for ax, (name, vae) in zip(axes, vaes.items(), strict=False):
        with torch.no_grad():
            draws = vae.decode(vae.prior().sample((64,))).mean
        pv.plots.image_grid(draws, ax, num_columns=8, title=f"draws with the prior {name}")
    with torch.no_grad():
        components = vaes["VampPrior"].prior().component_distribution
        means = vaes["VampPrior"].decode(components.mean[:64]).mean
    pv.plots.image_grid(means, axes[2], num_columns=8, title="what pseudo-inputs stand for")
    figure.savefig(args.output / "vamp_prior.png", dpi=100)
    print(f"A figure is in {args.output}/vamp_prior.png")


if __name__ == "__main__":
    main()
