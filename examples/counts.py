"""Counts of molecules in cells: negative binomial beside Poisson, and cell types that nobody told the VAE.

    pip install scanpy h5py && python examples/counts.py     # 700 blood cells that scanpy carries
    python examples/counts.py                                # without: scikit-learn's digits, whose pixels are counts

The size of a cell, its sum of counts, is an exposure: the decoder says which share of the molecules are of which gene.
Both models are given it, so their log p(counts | size) can be compared. A figure goes to the folder `results/`.

R. Lopez, J. Regier, M. Cole, M. Jordan, N. Yosef (2018), Deep generative modeling for single-cell transcriptomics.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import arguments
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, HIDDEN = 8, [64]


class OfLogarithms(nn.Module):
    """An encoder that sees log(1 + x)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        return self.network(x.log1p(), size.log())


def make_vae(name: str, x: Tensor) -> pv.VAE:
    num_genes, shares = x.shape[1], x.sum(0).clamp(min=0.5) / x.sum()
    decoder = pv.nn.MLP(LATENT_DIM, HIDDEN, num_genes, nn.ReLU, output_bias=shares.log())
    likelihood: nn.Module = pv.likelihoods.Poisson(decoder, has_exposure=True)
    if name == "negative binomial":
        likelihood = pv.likelihoods.NegativeBinomial(decoder, inverse_dispersion_shape=num_genes, has_exposure=True)
    encoder = pv.nn.MLP(num_genes + 1, HIDDEN, 2 * LATENT_DIM, nn.ReLU)
    posterior = pv.posteriors.DiagonalNormal(OfLogarithms(encoder))
    return pv.VAE(pv.priors.StandardNormal(LATENT_DIM), likelihood, posterior, context_shapes=[()])


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=100)
    train, test = cells(args.data_dir)
    train, validation = train.hold_out(len(train) // 10, seed=args.seed)
    print(f"train  {train.provenance}\ntest   {test.provenance}")
    x = test.x[: 5 if args.smoke else 60]

    vaes, found = {}, {}
    for name in ("Poisson", "negative binomial"):
        torch.manual_seed(args.seed)
        vae = vaes[name] = make_vae(name, train.x)
        pv.fit(
            vae, (train, train.x.sum(1)), num_epochs=args.num_epochs, batch_size=50, seed=args.seed, kl_warmup=1,
            validation=(validation, validation.x.sum(1)), early_stopping=10, progress=False,
        )  # fmt: skip
        found[name] = pv.log_evidence(vae.model, vae.guide, x, x.sum(1), tolerance=0.2, seed=args.seed)
        print(f"\nlog p(counts | size) of held-out data, {name}:\n{found[name].summary()}")
    print(f"\nnegative binomial less Poisson, paired: {pv.compare(found['negative binomial'], found['Poisson'])}")

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    vae, size = vaes["negative binomial"], train.x.sum(1)
    with torch.no_grad():
        pv.plots.latent_codes(vae.encode(train.x, size).mean, train.labels, axes[0], label_names=train.label_names)
        for ax, (name, each) in zip(axes[1:], vaes.items(), strict=True):
            drawn = each.decode(each.encode(train.x, size).sample(), size).sample()
            ax.loglog(train.x.mean(0), train.x.var(0), ".", label="counts")
            ax.loglog(drawn.mean(0), drawn.var(0), ".", alpha=0.6, label="drawn again")
            ax.set(title=name, xlabel="mean of a gene", ylabel="variance")
            ax.legend()
    axes[0].set_title("codes of cells, by their type")
    figure.savefig(args.output / "counts.png", dpi=100)
    print(f"\nA figure is in {args.output}/counts.png")


def cells(data_dir: Path) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    """Cells x genes, or else digits x pixels."""
    try:
        train, test = (pv.data.pbmc68k(data_dir, split=split) for split in ("train", "test"))
    except FileNotFoundError as error:
        print(f"{error}\nUsing scikit-learn's digits instead, whose pixels are counts from 0 to 16.\n")
        parts = (pv.data.digits(split=split, binarization=None) for split in ("train", "test"))
        train, test = (
            pv.data.from_tensor((16 * part.x).round().flatten(1), part.labels, name="digits, counts") for part in parts
        )
    return train, test


if __name__ == "__main__":
    main()
