"""Learn to read digits from 100 labels and 59,900 images without any: the model M2 of Kingma et al. (2014).

    python examples/semi_supervised.py            # about an hour on two CPU cores

The label y is a latent of the outer program where it is not known, and summed out by Pyro's `TraceEnum_ELBO`; the VAE,
p(x|z, y) and q(z|x, y), is called inside of the same plate. A classifier q(y|x) is part of the guide. Beside it stands
the same classifier, trained on the 100 labels alone. A figure goes to the folder `results/`.

D. P. Kingma, D. J. Rezende, S. Mohamed, M. Welling (2014), Semi-supervised learning with deep generative models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, batches, digits, one_hot
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, HIDDEN, NUM_PIXELS = 50, 300, 784
BATCH_SIZE = 200


class SemiSupervised(nn.Module):
    """p(y) p(z) p(x|z, y), and q(y|x) q(z|x, y)."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        bias = torch.logit(mean, eps=1e-3)
        self.vae = pv.VAE(
            pv.priors.StandardNormal(LATENT_DIM),
            pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM + 10, [HIDDEN], NUM_PIXELS, nn.ReLU, output_bias=bias)),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(NUM_PIXELS + 10, [HIDDEN], 2 * LATENT_DIM, nn.ReLU)),
            context_shapes=[(10,)],
        )
        self.classifier = classifier(mean)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        label = y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(10)), obs=label)
            self.vae.model(x, y)
            if label is not None:  # without this term, q(y|x) would learn nothing from the labels
                with poutine.scale(scale=BATCH_SIZE / len(x)):
                    pyro.sample("label", self.labels_of(x), obs=label)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.labels_of(x), infer={"enumerate": "parallel"})
            self.vae.guide(x, y)

    def labels_of(self, x: Tensor) -> dist.Distribution:
        """q(y|x)."""
        pyro.module("classifier", self.classifier)
        return dist.OneHotCategorical(logits=self.classifier(x))


def classifier(mean: Tensor) -> pv.nn.MLP:
    return pv.nn.MLP(NUM_PIXELS, [HIDDEN], 10, nn.ReLU, input_mean=mean)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=40)
    train, test = digits(args)
    assert train.labels is not None and test.labels is not None
    known, unknown = ten_of_each(train.labels)
    y, test_x = one_hot(train.labels[known]), test.x.flatten(1)
    alone = accuracy(supervised(train, known), test_x, test.labels)
    print(f"{len(known)} labels; the classifier that sees nothing else reads {alone:.1%} of {len(test)} test digits")

    whole = SemiSupervised(train.mean.flatten())
    optim = pv.FusedAdam({"lr": 1e-3})
    without_label = SVI(whole.model, whole.guide, optim, TraceEnum_ELBO(max_plate_nesting=1))
    with_label = pv.SVI(whole.model, whole.guide, optim, pv.objectives.CompiledTraceMeanField_ELBO())
    pv.check_program(whole.model, whole.guide, test_x[:2])
    for epoch in range(args.num_epochs):
        loss = 0.0
        for rows in batches(len(unknown), BATCH_SIZE):
            loss += without_label.step(train.batch(unknown[rows]).flatten(1)) / len(unknown)
            with_label.step(train.batch(known).flatten(1), y)
        print(f"epoch {epoch + 1}: ELBO {-loss:.2f}, reads {accuracy(whole.classifier, test_x, test.labels):.1%}")

    # How well does the model know digits, label or no label? log p(x), the label summed out by weights.
    whole.eval()
    num_evaluated = 5 if args.smoke else 200
    x, labels = test_x[:num_evaluated], test.labels[:num_evaluated]
    print(f"\n{pv.importance_sampling(whole.model, whole.guide, x, num_samples=1000, seed=args.seed).summary()}")
    # Another way to read: the label that makes log p(x, y) largest.
    each = [
        pv.importance_sampling(whole.vae.model, whole.vae.guide, x, y.expand(len(x), 10), num_samples=200)
        for y in torch.eye(10)
    ]
    by_evidence = torch.stack([evidence.log_evidence for evidence in each]).argmax(0)
    print(f"\nof these, the largest log p(x, y) reads {(by_evidence == labels).float().mean():.1%},", end=" ")
    print(f"the classifier {accuracy(whole.classifier, x, labels):.1%}")
    print(f"of all test digits, the classifier reads {accuracy(whole.classifier, test_x, test.labels):.1%}", end=" ")
    print(f"(trained on the labels alone: {alone:.1%})")

    figure, ax = plt.subplots(figsize=(6, 6), layout="constrained")
    pictures = torch.cat([test_x[:10, None], in_ten_digits(whole.vae, test_x[:10], one_hot(test.labels[:10]))], dim=1)
    pv.plots.image_grid(pictures.flatten(0, 1), ax, num_columns=11, title="A digit, and its style in ten digits")
    figure.savefig(args.output / "semi_supervised.png", dpi=100)
    print(f"\nA figure is in {args.output}/semi_supervised.png")


def ten_of_each(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ten examples of each digit, taken at random, and all other rows."""
    order = torch.randperm(len(labels))
    known = torch.cat([order[labels[order] == digit][:10] for digit in range(10)])
    return known, order[~torch.isin(order, known)]


def supervised(train: pv.data.Dataset, known: Tensor) -> nn.Module:
    """The same classifier, trained on what is labelled alone."""
    assert train.labels is not None
    network = classifier(train.mean.flatten())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(1000):
        loss = nn.functional.cross_entropy(network(train.batch(known).flatten(1)), train.labels[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    return (network(x).argmax(-1) == labels).float().mean().item()


@torch.no_grad()
def in_ten_digits(vae: pv.VAE, x: Tensor, y: Tensor) -> Tensor:
    """What p(x|z, y) makes of the style z of each image for each label y: `(N, 10, 784)`."""
    z = vae.encode(x, y).mean
    return vae.decode(z.expand(10, *z.shape), torch.eye(10)[:, None]).mean.movedim(0, 1)


if __name__ == "__main__":
    main()
