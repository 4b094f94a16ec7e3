"""Colour images of 64 x 64 by convolutions: faces of CelebA, or patches of photographs where there are none.

    python examples/celeba_svi.py --data-dir FOLDER       # with FOLDER/celeba/, as torchvision lays it out
    python examples/celeba_svi.py                         # without it: some minutes on two CPU cores

Pixels are bytes, so that p(x) is a probability and has bits per dimension. A figure goes to the folder `results/`:
images with their reconstructions, samples, and a walk in the latent space; of faces, along an attribute.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from common import arguments
from torch import Tensor

import pyro_vae as pv
from pyro_vae.nn import ConvDecoder, ConvEncoder, Standardized

LATENT_DIM, CHANNELS, ATTRIBUTE = 32, [32, 64, 64], "Smiling"


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=6)
    train, test = images(args.data_dir, args.smoke)
    print(f"train  {train.provenance}\ntest   {test.provenance}")

    shape = train.x.shape[1:]
    decoder = ConvDecoder(LATENT_DIM, CHANNELS[::-1], (2 * shape[0], *shape[1:]))
    encoder = ConvEncoder(shape, CHANNELS, 2 * LATENT_DIM)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.DiscretizedLogistic(decoder, scale="per-pixel"),
        pv.posteriors.DiagonalNormal(Standardized(encoder, 127.5, 127.5)),  # bytes come to lie between -1 and 1
    )
    history = pv.fit(
        vae,
        train,
        num_epochs=args.num_epochs,
        batch_size=50,
        clip_grad_norm=1000.0,
        seed=args.seed,
        progress=not args.smoke,
    )
    print(f"\n{history}")

    few = test.hold_out(2 if args.smoke else 8, seed=args.seed)[1].x
    evidence = pv.log_evidence(vae.model, vae.guide, few, tolerance=1.0, seed=args.seed, progress=not args.smoke)
    print(f"\n{evidence.summary()}")
    bits = evidence.bits_per_dim()
    print(f"{'bits per dimension':<40}{bits.mean():.3f} +- {bits.std() / len(few) ** 0.5:.3f}")

    figure, axes = plt.subplots(3, 1, figsize=(10, 11), layout="constrained")
    shown = test.hold_out(10, seed=args.seed)[1].x
    pv.plots.reconstructions(shown / 255, vae.reconstruct(shown) / 255, axes[0])
    with torch.no_grad():
        samples = vae.decode(torch.randn(20, LATENT_DIM)).mean
        title, path = walk(vae, train)
        steps = vae.decode(path).mean
    pv.plots.image_grid(samples / 255, axes[1], num_columns=10, title="Samples: the mean of p(x|z), z from the prior")
    pv.plots.image_grid(steps / 255, axes[2], num_columns=10, title=title)
    figure.savefig(args.output / "celeba.png", dpi=100)
    print(f"\nA figure is in {args.output}/celeba.png")


def images(data_dir, smoke: bool) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    pass
