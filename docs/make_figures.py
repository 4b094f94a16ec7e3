"""Draw the figure of the two estimators, on a VAE trained for a few epochs on MNIST.

python docs/make_figures.py --data-dir data
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

NUM_DRAWS = 400
EPOCHS = (0, 1, 2, 5, 10, 20)
NAMES = ("A, all Monte Carlo (Trace_ELBO)", "B, analytic KL (TraceMeanField_ELBO)")


def estimates(objective: ELBO, vae: pv.VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ELBO, nats per image, and its gradient by the last layer of the encoder, of independent draws."""
    weight = vae.posterior.network.layers[-1].weight
    elbos, gradients = [], []
    for _ in range(NUM_DRAWS):
        elbo = -objective.differentiable_loss(vae.model, vae.guide, x) / len(x)
        gradients.append(torch.autograd.grad(elbo, weight)[0].flatten())
        elbos.append(elbo.detach())
    return torch.stack(elbos), torch.stack(gradients)


def mean_squared_z_score(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the differences of the means: about 1 if the true means are equal."""
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / NUM_DRAWS).sqrt()
    return z.square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures" / "estimators.png")
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = pv.data.mnist(args.data_dir)
    print(digits.provenance)
    vae = pv.VAE(
        pv.priors.StandardNormal(10),
        pv.likelihoods.Bernoulli(pv.nn.MLP(10, [200], 784, output_bias=torch.logit(digits.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200], 2 * 10, input_mean=digits.mean)),
    )
    train, x = digits.first(10_000), digits.x[:100]
    _, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    ratios: dict[str, list[float]] = {"ELBO": [], "gradient": []}
    print("epoch   ELBO by A (sd)   ELBO by B (sd)   var B / A: ELBO, gradient   z^2 of gradients' difference")
    for last, epoch in zip((0, *EPOCHS), EPOCHS, strict=False):
        if epoch:
            pv.fit(vae, train, num_epochs=epoch - last, progress=False, seed=epoch)
        (elbo_a, grad_a), (elbo_b, grad_b) = (estimates(each(), vae, x) for each in (Trace_ELBO, TraceMeanField_ELBO))
        ratios["ELBO"].append((elbo_b.var() / elbo_a.var()).item())
        ratios["gradient"].append((grad_b.var(0).sum() / grad_a.var(0).sum()).item())
        print(
            f"{epoch:>5}   {elbo_a.mean():.2f} ({elbo_a.std():.3f})   {elbo_b.mean():.2f} ({elbo_b.std():.3f})"
            f"   {ratios['ELBO'][-1]:.2f}, {ratios['gradient'][-1]:.2f}   {mean_squared_z_score(grad_a, grad_b):.2f}"
        )
        if epoch in (EPOCHS[0], EPOCHS[-1]):
            ax = axes[0 if epoch == EPOCHS[0] else 1]
            bins = torch.histogram(torch.cat([elbo_a, elbo_b]), 40).bin_edges.numpy()
            for name, elbos in zip(NAMES, (elbo_a, elbo_b), strict=True):
                ax.hist(elbos.numpy(), bins=bins, alpha=0.6, label=f"{name}: sd {elbos.std():.2f}")
            ax.set(xlabel="ELBO of 100 images, one draw each, nats per image", ylabel="draws")
            ax.set_title("Before training" if epoch == 0 else f"After {epoch} epochs")
            ax.set_ylim(top=1.25 * ax.get_ylim()[1])
            ax.locator_params(axis="x", nbins=5)
            ax.legend(fontsize=8, loc="upper left")
    for name, values in ratios.items():
        axes[2].plot(EPOCHS, values, "o-", label=f"of the {name}")
    axes[2].axhline(1, color="grey", lw=1)
    axes[2].set(
        xlabel="epoch",
        ylabel="variance of B / variance of A",
        ylim=(0, None),
        title="Below the line B has the smaller variance",
    )
    axes[2].legend(loc="center right")
    axes[2].locator_params(axis="x", integer=True)
    args.output.parent.mkdir(exist_ok=True)
    plt.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
