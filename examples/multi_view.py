"""Two views of one latent: the upper and the lower half of a digit, and one half drawn given the other.

    python examples/multi_view.py            # some minutes on two CPU cores

Two VAEs stand in one Pyro program. Each sees its own half; the latent is shared. The guide is a product of experts,
p(z) q(z|upper) q(z|lower), from which a half that is not seen is left out, as in Wu and Goodman (2018), Multimodal
generative models for scalable weakly-supervised learning. A figure goes to the folder `results/`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, batches, digits
from torch import Tensor

import pyro_vae as pv

LATENT_DIM, HALF = 32, 392
UPPER, LOWER, BOTH = (0,), (1,), (0, 1)


class TwoViews(torch.nn.Module):
    """A model and a guide of halves that share z."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.upper, self.lower = view("upper", mean[:HALF]), view("lower", mean[HALF:])

    @property
    def views(self) -> tuple[pv.VAE, pv.VAE]:
        return self.upper, self.lower

    def model(self, x: Tensor, seen: tuple[int, ...] = BOTH) -> Tensor:
        halves = x.split(HALF, dim=-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.views[0].prior())
            for i in seen:
                self.views[i].model(halves[i], z=z)  # sites "upper/x" and "lower/x"
        return z

    def guide(self, x: Tensor, seen: tuple[int, ...] = BOTH) -> Tensor:
        halves = x.split(HALF, dim=-1)
        experts = [self.views[i].encode(halves[i]).base_dist for i in seen]
        precision = 1 + sum(expert.scale**-2 for expert in experts)
        loc = sum(expert.loc / expert.scale**2 for expert in experts) / precision
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(loc, precision**-0.5).to_event(1))


def view(name: str, mean: Tensor) -> pv.VAE:
    """A VAE of half a digit, whose sites and parameters carry its name."""
    return pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, [300], HALF, output_bias=torch.logit(mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(HALF, [300], 2 * LATENT_DIM, input_mean=mean)),
        name=name,
    )


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=15)
    train, test = digits(args)
    two = TwoViews(train.mean.flatten())

    # The guide must also serve where one half is missing, so it is trained on each half alone as well.
    svi = pv.SVI(two.model, two.guide, pv.FusedAdam({"lr": 1e-3}), pv.objectives.CompiledTraceMeanField_ELBO())
    pv.check_program(two.model, two.guide, train.x[:2].flatten(1))
    for epoch in range(args.num_epochs):
        losses = dict.fromkeys((BOTH, UPPER, LOWER), 0.0)
        for rows in batches(len(train), 100):
            x = train.batch(rows).flatten(1)
            for seen in losses:
                losses[seen] += svi.step(x, seen=seen) / len(train)
        both, upper, lower = losses.values()
        print(f"epoch {epoch + 1}: ELBO of digits {-both:.2f}, of upper halves {-upper:.2f}, of lower {-lower:.2f}")

    # log p(lower | upper) = log p(upper, lower) - log p(upper), each by the same estimators.
    two.eval()
    x = test.x[: 5 if args.smoke else 100].flatten(1)
    found = {
        what: pv.log_evidence(two.model, two.guide, x, kwargs={"seen": seen}, tolerance=0.1, seed=args.seed)
        for what, seen in {"digits": BOTH, "upper halves": UPPER, "lower halves": LOWER}.items()
    }
    print(f"\nlog p of {len(x)} test digits, nats per datum")
    for what, evidence in found.items():
        print(f"{what:<28}{evidence.mean:>9.2f} +- {evidence.mean_std_error:.2f}   ELBO {evidence.elbo.mean():.2f}")
    gain = found["digits"].log_evidence - found["upper halves"].log_evidence - found["lower halves"].log_evidence
    error = sum(evidence.mean_std_error**2 for evidence in found.values()) ** 0.5
    print(
        f"the upper half tells {gain.mean():.2f} +- {error:.2f} nats of the lower: log p(lower | upper) - log p(lower)"
    )

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    shown = test.x[:25].flatten(1)
    pv.plots.image_grid(shown, axes[0], title="Test digits")
    for ax, seen, title in zip(axes[1:], (UPPER, LOWER), ("Lower half", "Upper half"), strict=True):
        pv.plots.image_grid(completed(two, shown, seen), ax, title=f"{title} drawn given the other")
    figure.savefig(args.output / "multi_view.png", dpi=100)
    print(f"\nA figure is in {args.output}/multi_view.png")


@torch.no_grad()
def completed(two: TwoViews, x: Tensor, seen: tuple[int, ...]) -> Tensor:
    """Digits whose other half is the mean of its likelihood at a draw of z given the half that is seen."""
    z = two.guide(x, seen=seen)
    halves = list(x.split(HALF, dim=-1))
    (hidden,) = {0, 1} - set(seen)
    halves[hidden] = two.views[hidden].decode(z).mean
    return torch.cat(halves, dim=-1)


if __name__ == "__main__":
    main()
