"""Colour images of 64 x 64 by convolutions: faces of CelebA, or patches of photographs where there are none.

    python examples/celeba_svi.py --data-dir FOLDER       # with FOLDER/celeba/, as torchvision lays it out
    python examples/celeba_svi.py                         # without it: some minutes on two CPU cores

Pixels are bytes, so that p(x) is a probability and has bits per dimension. A figure goes to the folder `results/`:
images with their reconstructions, samples, and walks in the latent space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import arguments
from torch import Tensor

import pyro_vae as pv
from pyro_vae.nn import ConvDecoder, ConvEncoder, Standardized

LATENT_DIM, CHANNELS, NUM_FACES = 32, [32, 64, 64, 64], 20_000


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=30)
    train, test, attribute = images(args.data_dir, args.smoke)
    print(f"train  {train.provenance}\ntest   {test.provenance}")

    shape = tuple(train.x.shape[1:])
    decoder = ConvDecoder(LATENT_DIM, CHANNELS[::-1], shape)
    encoder = Standardized(ConvEncoder(shape, CHANNELS, 2 * LATENT_DIM), shift=127.5, scale=127.5)
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.DiscretizedLogistic(decoder, scale="learned"),
        pv.posteriors.DiagonalNormal(encoder),
    )
    # Small batches, for many steps.
    options: dict[str, Any] = {"batch_size": 20, "clip_grad_norm": 2000.0, "progress": not args.smoke}
    print(f"\n{pv.fit(vae, train, num_epochs=args.num_epochs, seed=args.seed, **options)}")

    shown = test.hold_out(10, seed=args.seed)[1]
    few, most = (shown.x[:2], 400) if args.smoke else (shown.x[:5], 1000)
    evidence = pv.log_evidence(vae.model, vae.guide, few, tolerance=1.0, max_evaluations=most, seed=args.seed)
    bits = evidence.bits_per_dim()
    print(f"\n{evidence.summary()}\n{'bits per dimension':<31}{bits.mean():.3f}")

    figure, axes = plt.subplots(3, 1, figsize=(10, 7.5), layout="constrained")
    pv.plots.reconstructions(shown.x / 255, vae.reconstruct(shown.x) / 255, axes[0])
    rows = {
        "Samples: means of p(x|z), z from the prior": torch.randn(20, LATENT_DIM),
        f"From one image to another, and the first towards {attribute}": walks(vae, train, shown),
    }
    for ax, (title, z) in zip(axes[1:], rows.items(), strict=True):
        pv.plots.image_grid(vae.decode(z).mean.detach() / 255, ax, num_columns=10, title=title)
    figure.savefig(args.output / "celeba.png", dpi=100)
    print(f"\nA figure is in {args.output}/celeba.png")


def images(data_dir: Path, smoke: bool) -> tuple[pv.data.Dataset, pv.data.Dataset, str]:
    """Faces, or else patches of photographs; and what label 1 says of them."""
    faces: dict[str, Any] = {"attribute": "Smiling", "num_data": 50 if smoke else NUM_FACES, "download": False}
    try:
        train, test = (pv.data.celeba(data_dir, split=split, pixels="bytes", **faces) for split in ("train", "test"))
        return train, test, "Smiling"
    except FileNotFoundError as error:
        print(f"{error}\nUsing patches of two photographs instead, a temple and a flower.\n")
    cut: dict[str, Any] = {"patch_size": 32, "stride": 64} if smoke else {"stride": 16}
    train, test = (pv.data.photographs(split=split, pixels="bytes", **cut) for split in ("train", "test"))
    return train, test, "the flower"


@torch.no_grad()
def walks(vae: pv.VAE, train: pv.data.Dataset, shown: pv.data.Dataset) -> Tensor:
    """Codes from the first image of label 0 to the first of label 1; and by how both labels differ in the mean."""
    assert train.labels is not None and shown.labels is not None
    first, last = (vae.encode(shown.x[shown.labels == label][:1]).mean for label in (0, 1))
    known, labels = vae.encode(train.x[:1000]).mean, train.labels[:1000]
    direction = known[labels == 1].mean(0) - known[labels == 0].mean(0)
    steps = torch.linspace(0, 1, 10)[:, None]
    return torch.cat([torch.lerp(first, last, steps), first + steps * direction])


if __name__ == "__main__":
    main()
