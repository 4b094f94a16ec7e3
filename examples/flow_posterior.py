"""What a richer posterior is worth: a Gaussian, a full covariance and a flow as q(z|x), beside p(z|x) itself.

    python examples/flow_posterior.py            # some minutes on two CPU cores

All three have one decoder, trained with the first and then kept, so that log p(x) is one and the gaps can be compared:
log p(x) - ELBO = KL(q(z|x) || p(z|x)). The latent has two dimensions; log p(x) is a sum over a grid as well, and p(z|x)
can be drawn. A figure goes to the folder `results/`.

D. J. Rezende, S. Mohamed (2015), Variational inference with normalizing flows; C. Cremer, X. Li, D. Duvenaud (2018),
Inference suboptimality in variational autoencoders.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from common import arguments, digits
from torch import Tensor, nn

import pyro_vae as pv

HIDDEN, CONTEXT_DIM, LIMIT = [200], 16, 6.0


def make_posterior(name: str) -> nn.Module:
    """A posterior with an encoder of its own."""
    if name == "DiagonalNormal":
        return pv.posteriors.DiagonalNormal(pv.nn.MLP(784, HIDDEN, 4))
    if name == "FullRankNormal":
        return pv.posteriors.FullRankNormal(pv.nn.MLP(784, HIDDEN, 5), latent_dim=2)
    network = pv.nn.MLP(784, HIDDEN, 4 + CONTEXT_DIM)
    return pv.posteriors.Flow(network, latent_dim=2, context_dim=CONTEXT_DIM, autoregressive=True)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=30)
    train, test = digits(args)
    x = test.x[: 5 if args.smoke else 200]
    bias = torch.logit(train.mean, eps=1e-3)
    likelihood = pv.likelihoods.Bernoulli(pv.nn.MLP(2, HIDDEN, 784, output_bias=bias))
    axis = torch.linspace(-LIMIT, LIMIT, 50 if args.smoke else 300)
    grid, log_cell = torch.cartesian_prod(axis, axis), 2 * math.log(axis[1] - axis[0])

    columns: dict[str, Tensor] = {}
    for name in ("DiagonalNormal", "FullRankNormal", "Flow"):
        vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, make_posterior(name))
        pv.fit(vae, train, num_epochs=args.num_epochs, seed=args.seed, progress=False)
        likelihood.requires_grad_(False)
        evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000, seed=args.seed)
        if not columns:
            exact = log_joint(vae, grid, x).logsumexp(0) + log_cell
            print(f"log p(x) of {len(x)} digits by the grid {exact.mean():.3f} nats")
            columns["p(z|x)"] = (log_joint(vae, grid, x[:3]) - exact[:3]).exp()
        gap = exact - evidence.elbo
        print(
            f"{name:14} importance sampling {evidence.mean:.3f} +- {evidence.mean_std_error:.3f}, ELBO "
            f"{evidence.elbo.mean():.3f}: KL(q(z|x) || p(z|x)) {gap.mean():.3f} +- {gap.std() / math.sqrt(len(x)):.3f}"
        )
        with torch.no_grad():
            columns[name] = vae.encode(x[:3]).log_prob(grid[:, None]).exp()

    figure, axes = plt.subplots(3, 4, figsize=(11, 8.4), layout="constrained")
    for column, (name, density) in zip(axes.T, columns.items(), strict=True):
        for i, ax in enumerate(column):
            close_up(ax, axis, density[:, i], columns["p(z|x)"][:, i])
        column[0].set_title(name)
    figure.savefig(args.output / "flow_posterior.png", dpi=100)
    print(
        f"A figure is in {args.output}/flow_posterior.png: three digits, their posterior and what each form makes of it"
    )


@torch.no_grad()
def log_joint(vae: pv.VAE, z: Tensor, x: Tensor) -> Tensor:
    """log p(x, z) of each point and datum."""
    parts = [vae.decode(some[:, None]).log_prob(vae.check(x)) for some in z.split(500)]
    return vae.prior().log_prob(z)[:, None] + torch.cat(parts)


def close_up(ax: plt.Axes, axis: Tensor, density: Tensor, posterior: Tensor) -> None:
    """Contours of a density, where the posterior has its mass."""
    ax.contourf(axis, axis, density.reshape(len(axis), -1).T, levels=12, cmap="Blues")
    shape, share = posterior.reshape(len(axis), -1), posterior / posterior.sum()
    for margin, limits in (
        (share.reshape(shape.shape).sum(1), ax.set_xlim),
        (share.reshape(shape.shape).sum(0), ax.set_ylim),
    ):
        mean = (margin * axis).sum()
        sd = (margin * (axis - mean).square()).sum().sqrt()
        limits(float(mean - 4 * sd), float(mean + 4 * sd))


if __name__ == "__main__":
    main()
