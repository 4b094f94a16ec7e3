"""A plane of images: a VAE with a latent of two dimensions, and pixels with Gaussian noise of learned scale.

    python examples/frey_manifold.py --data-dir FOLDER    # with FOLDER/frey_rawface.mat or frey_faces.npz
    python examples/frey_manifold.py                      # without it: the digits that scikit-learn carries

A figure goes to the folder `results/`: the images on a grid through the inverse Gaussian CDF of the unit square, and
the codes of test images.

Kingma and Welling (2014), Auto-encoding variational Bayes, figure 4, and appendix C.2 for the likelihood.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import arguments

import pyro_vae as pv

HIDDEN = [200, 200]


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=150)
    train, test = images(args.data_dir)
    if args.smoke:
        train = train.first(500)
    print(f"train  {train.provenance}\ntest   {test.provenance}")

    shape = tuple(train.x.shape[1:])
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2, HIDDEN, shape, output_bias=train.mean), scale="learned"),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(shape, HIDDEN, 2 * 2, input_mean=train.mean)),
    )
    history = pv.fit(vae, train, num_epochs=args.num_epochs, seed=args.seed, validation=test, progress=not args.smoke)
    scale = vae.likelihood(torch.zeros(1, 2)).base_dist.scale.mean()
    print(f"\n{history}\n{'learned scale, of grey levels 0 to 1':<40}{scale:>9.3f}")

    # With two dimensions, log p(x) can also be had by adding up a grid over the plane: the estimate must agree.
    x = test.x[: 2 if args.smoke else 20]
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.05, seed=args.seed)
    print(f"\n{evidence.summary()}\n{'log p(x), by a grid over the plane':<40}{by_a_grid(vae, x).mean():>9.2f} nats")

    figure, axes = plt.subplots(1, 2, figsize=(13, 7), layout="constrained")
    # Grey images are drawn as ink; three channels are drawn as light.
    pv.plots.manifold(lambda z: vae.likelihood(z).mean.expand(-1, 3, -1, -1), axes[0], num=20)
    pv.plots.latent_codes(vae.encode(test.x).mean, test.labels, axes[1])
    figure.savefig(args.output / "frey_manifold.png", dpi=100)
    print(f"\nA figure is in {args.output}/frey_manifold.png")


def images(data_dir: Path) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    """Frey faces, or else digits in grey levels."""
    try:
        train, test = (pv.data.frey_faces(data_dir, split=split) for split in ("train", "test"))
    except FileNotFoundError as error:
        print(f"{error}\nUsing scikit-learn's digits instead.\n")
        train, test = (pv.data.digits(split=split, binarization=None) for split in ("train", "test"))
    return train, test


@torch.no_grad()
def by_a_grid(vae: pv.VAE, x: torch.Tensor, num: int = 600, limit: float = 6.0) -> torch.Tensor:
    """log p(x) as a sum of p(x|z) p(z) over squares of the plane."""
    side = torch.linspace(-limit, limit, num)
    area = (side[1] - side[0]) ** 2
    total = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    for z in torch.cartesian_prod(side, side).split(num):
        log_joint = vae.likelihood(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
        total = torch.logaddexp(total, log_joint.double().logsumexp(0))
    return total + area.log()


if __name__ == "__main__":
    main()
