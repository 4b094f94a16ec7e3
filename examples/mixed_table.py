"""A table of several kinds with gaps: chemistry of wines, with real, positive, whole and categorical columns.

    python examples/mixed_table.py           # a minute or two on two CPU cores

Each kind has its own likelihood, side by side in a `Product`; `Incomplete` leaves out what is missing, 30 % at random.
After Nazabal, Olmos, Ghahramani and Valera (2020), Handling incomplete heterogeneous data using VAEs. A wine's cultivar
is filled in as any other column. A figure goes to the folder `results/`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from common import arguments
from sklearn.datasets import load_wine
from torch import Tensor

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.nn import MLP, Standardized, WithMask

KINDS = {
    "real": ["alcohol", "ash", "alcalinity_of_ash", "proanthocyanins", "od280/od315_of_diluted_wines"],
    "positive": ["malic_acid", "total_phenols", "flavanoids", "nonflavanoid_phenols", "hue", "proline"],
    "whole": ["magnesium"],
    "cultivar": ["target"],
}
LATENT_DIM, WIDTH = 2, 32


def table() -> tuple[Tensor, Tensor]:
    """Return the wines in random order, `(178, 13)`, and the same with NaN in 30 % of the entries."""
    frame = load_wine(as_frame=True).frame.sample(frac=1, random_state=0)
    x = torch.tensor(frame[[name for names in KINDS.values() for name in names]].values, dtype=torch.float32)
    return x, x.masked_fill(torch.rand_like(x) < 0.3, torch.nan)


def unit_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of what is known of each column."""
    return x.nanmean(0), (x - x.nanmean(0)).square().nanmean(0).sqrt()


def mixed_vae(x: Tensor) -> pv.VAE:
    real, positive, whole, _ = x.split([len(names) for names in KINDS.values()], -1)
    heads = (
        likelihoods.Gaussian(MLP(WIDTH, [], 5, output_bias=real.nanmean(0)), "learned", scale_shape=5),
        likelihoods.LogNormal(MLP(WIDTH, [], 6, output_bias=positive.log().nanmean(0)), "learned", scale_shape=6),
        likelihoods.Poisson(MLP(WIDTH, [], 1, output_bias=whole.log().nanmean(0))),
        likelihoods.Categorical(MLP(WIDTH, [], 3), num_levels=3),
    )
    encoder = Standardized(WithMask(MLP(2 * x.shape[1], [64], 2 * LATENT_DIM)), *unit_of(x))
    return pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        likelihoods.Incomplete(likelihoods.Product(*heads, trunk=MLP(LATENT_DIM, [64], WIDTH))),
        pv.posteriors.DiagonalNormal(encoder),
    )


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=400)
    complete, x = table()
    test, train = (x[:5], x[38:80]) if args.smoke else (x[:38], x[38:])
    vae, objective, optim = mixed_vae(train), pv.objectives.IWELBO(num_particles=10), pv.FusedAdam({"lr": 3e-3})
    pv.fit(vae, train, objective=objective, optim=optim, num_epochs=args.num_epochs, batch_size=35)
    done = pv.impute(vae, test, max_evaluations=400 if args.smoke else 2000, seed=args.seed)
    found, truth, (mean, unit) = done.evidence, complete[: len(test)], unit_of(train)
    print(f"log p(observed) of {len(done.rows)} wines held out: {found.mean:.2f} +- {found.mean_std_error:.2f} nats")
    _, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for kind, columns in zip(KINDS, torch.arange(x.shape[1]).split([5, 6, 1, 1]), strict=True):
        at = done.missing & torch.isin(torch.arange(x.shape[1]), columns)
        if kind == "cultivar":
            right, probability = (done.x == truth)[at], done.probability[at].mean()
            print(f"{kind}: {right.sum()} of {len(right)} right, mean probability {probability:.2f}")
            continue
        guess, true, sd = (
            ((values - shift) / unit)[at] for values, shift in ((done.x, mean), (truth, mean), (done.sd, 0))
        )
        of_guess, of_mean = ((true - each).square().mean().sqrt() for each in (guess, torch.zeros(())))
        print(f"{kind} columns: error {of_guess:.2f} deviations, of the column's mean {of_mean:.2f}")
        axes[0].errorbar(true, guess, sd, fmt="o", ms=4, lw=0.7, alpha=0.7, label=kind)
    axes[0].axline((0, 0), slope=1, color="0.4", lw=1)
    axes[0].set(title="Missing numbers of wines held out", xlabel="truth, in deviations", ylabel="imputed")
    axes[0].legend()
    pv.plots.latent_codes(vae.encode(x).mean.detach(), complete[:, -1].long(), axes[1])
    plt.savefig(args.output / "mixed_table.png", dpi=100)
    print(f"A figure is in {args.output}/mixed_table.png")


if __name__ == "__main__":
    main()
