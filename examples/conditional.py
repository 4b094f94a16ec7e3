"""Digits given their label: p(x|y), drawn from, measured, and turned round to p(y|x).

    python examples/conditional.py            # some minutes on two CPU cores

The label is context, which encoder and decoder read. A row of the picture has one z, the style, and a column one label.
log p(x|y) of an image under each of the ten labels makes a classifier by Bayes' rule, without any training for it. A
figure goes to the folder `results/`.

K. Sohn, H. Lee, X. Yan (2015), Learning structured output representation using deep conditional generative models.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from common import arguments, digits, one_hot
from torch import nn

import pyro_vae as pv

LATENT_DIM, HIDDEN = 20, [200, 200]


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=30)
    train, test = digits(args)
    assert train.labels is not None and test.labels is not None
    bias = torch.logit(train.mean, eps=1e-3)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM + 10, HIDDEN, 784, nn.ReLU, output_bias=bias)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784 + 10, HIDDEN, 2 * LATENT_DIM, nn.ReLU)),
        context_shapes=[(10,)],
    )
    digits_and_labels = (train, one_hot(train.labels))
    history = pv.fit(vae, digits_and_labels, num_epochs=args.num_epochs, seed=args.seed, progress=False)
    print(f"trained: {history}")

    x, labels = test.x[: 5 if args.smoke else 100], test.labels[: 5 if args.smoke else 100]
    evidence = pv.log_evidence(vae.model, vae.guide, x, one_hot(labels), tolerance=0.1, seed=args.seed)
    print(f"log p(x|y), of each digit under its label:\n{evidence.summary()}")

    every_label = torch.eye(10).repeat(len(x), 1)
    under_each = pv.importance_sampling(
        vae.model, vae.guide, x.repeat_interleave(10, 0), every_label, num_samples=100 if args.smoke else 500
    )
    by_bayes = under_each.log_evidence.reshape(-1, 10).log_softmax(1)  # p(y) is uniform
    read = (by_bayes.argmax(1) == labels).float().mean()
    surest = by_bayes.max(1).values.exp().mean()
    print(f"p(y|x) by Bayes' rule reads {read:.0%} of {len(x)} digits, and is sure of {surest:.0%} of what it says")

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    styles = torch.randn(10, LATENT_DIM).repeat_interleave(10, 0)
    with torch.no_grad():
        drawn = vae.decode(styles, torch.eye(10).repeat(10, 1)).mean
    pv.plots.image_grid(drawn, axes[0], num_columns=10, title="a style in each row, a label in each column")
    shown = axes[1].imshow(by_bayes[:20].exp(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes[1].set(xlabel="label y", ylabel="test digit, by its true label", xticks=range(10))
    axes[1].set_yticks(range(len(labels[:20])), [str(int(label)) for label in labels[:20]])
    figure.colorbar(shown, ax=axes[1], label="p(y|x)")
    figure.savefig(args.output / "conditional.png", dpi=100)
    print(f"A figure is in {args.output}/conditional.png")


if __name__ == "__main__":
    main()
