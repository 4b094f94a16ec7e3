"""Fill in half of a table: MIWAE on measurements of breast cancer cells, of which 50 % are missing at random.

    python examples/impute.py                # some minutes on two CPU cores

The experiment of Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets,
with 69 rows held out. The VAE is trained on incomplete rows alone, by a bound of log p(observed), and fills in both
parts. Errors are mean squares over missing entries of standardized data, as in the paper. Beside it stand the column's
mean, neighbours and chained regressions, by scikit-learn. A figure goes to the folder `results/`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import arguments
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, HIDDEN, NUM_PARTICLES = 10, [128, 128], 20
OTHERS = {
    "the column's mean": SimpleImputer(),
    "10 neighbours": KNNImputer(n_neighbors=10),
    "chained regressions": IterativeImputer(max_iter=20, random_state=0, tol=0.05),
}


def table() -> tuple[Tensor, Tensor]:
    """Return standardized data `(569, 30)`, and the same with NaN in the half of its entries that the paper hides."""
    x = load_breast_cancer().data
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    hidden = np.random.RandomState(1234).choice(x.numel(), x.numel() // 2, replace=False)
    incomplete = x.flatten().clone()
    incomplete[torch.from_numpy(hidden)] = torch.nan
    return x, incomplete.reshape(x.shape)


def miwae(dim: int) -> pv.VAE:
    decoder = pv.nn.MLP(LATENT_DIM, HIDDEN, 2 * dim, activation=nn.ReLU)
    encoder = pv.nn.MLP(2 * dim, HIDDEN, 2 * LATENT_DIM, activation=nn.ReLU)
    return pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Incomplete(pv.likelihoods.StudentT(decoder, scale="per-pixel", df="learned")),
        pv.posteriors.DiagonalNormal(pv.nn.WithMask(encoder)),
    )


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=500)
    complete, x = table()
    test, train = (slice(5), slice(5, 45)) if args.smoke else (slice(69), slice(69, None))
    vae, objective = miwae(x.shape[1]), pv.objectives.IWELBO(NUM_PARTICLES)
    optim = pv.FusedAdam({"lr": 2e-4})
    history = pv.fit(vae, x[train], objective=objective, optim=optim, num_epochs=args.num_epochs, batch_size=64)
    print(f"trained on {len(x[train])} rows, the bound of log p(observed) {history.train_elbo[-1]:.2f} nats")

    parts, budget = {"training rows": train, "rows held out": test}, 400 if args.smoke else 2000
    done = {part: pv.impute(vae, x[rows], max_evaluations=budget, seed=args.seed) for part, rows in parts.items()}
    print(f"\n{'mean squared error of missing entries':<42}" + "".join(f"{part:>16}" for part in parts))
    found = {"the VAE": {part: each.x for part, each in done.items()}}
    for name, other in OTHERS.items():
        other.fit(x[train])
        found[name] = {part: torch.from_numpy(other.transform(x[rows])) for part, rows in parts.items()}
    for name, by_part in found.items():
        errors = [(by_part[part] - complete[rows])[x[rows].isnan()].square().mean() for part, rows in parts.items()]
        print(f"{name:<42}" + "".join(f"{error:>16.3f}" for error in errors))
    show(done["rows held out"], complete[test], vae)
    plt.savefig(args.output / "impute.png", dpi=100)
    print(f"\nA figure is in {args.output}/impute.png")


def show(done: pv.Imputation, complete: Tensor, vae: pv.VAE) -> None:
    """Print log p(observed), and draw missing entries beside the truth, and how often intervals hold it."""
    found, draws = done.evidence, done.evidence.draws
    assert draws is not None
    print(f"\nlog p(observed) of {len(done.rows)} rows held out: {found.mean:.2f} +- {found.mean_std_error:.2f} nats")
    completions = vae.decode(draws.latents["z"]).sample()  # of all missing entries of a row together
    level = (completions < complete).float().mean(0)[done.missing]
    shares = torch.linspace(0.1, 0.9, 9)
    held = [((level - 0.5).abs() <= share / 2).float().mean() for share in shares]
    print(f"intervals of 90 % of the draws hold {held[-1]:.0%} of the true values")
    _, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    truth, mean, sd = (each[done.missing][:300] for each in (complete, done.x, done.sd))
    axes[0].errorbar(truth, mean, sd, fmt="o", ms=3, lw=0.6, alpha=0.6)
    axes[0].set(title="Missing entries of rows held out", xlabel="truth", ylabel="imputed, with one deviation")
    axes[1].plot(shares, held, "o-", ms=4)
    axes[1].set(title="Calibration", xlabel="share of the draws in an interval", ylabel="share of the true values")
    for ax in axes:
        ax.axline((0, 0), slope=1, color="0.4", lw=1)


if __name__ == "__main__":
    main()
