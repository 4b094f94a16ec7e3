"""Published figures of log p(x), with the settings that gave them."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

import pyro_vae as pv

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from two_layers import BottomUp

Budget = Literal["full", "hours", "minutes"]


class SoftplusNormal(nn.Module):
    """A diagonal Gaussian whose scale is a softplus, as the sources of some rows have it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.network(x).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published figure, with the settings that gave it."""

    title: str
    source: str
    published: float
    """log p(x) by the source's own estimator, nats."""
    num_draws: int
    """Draws of that estimator."""
    make: Callable[[pv.data.Dataset], Any]
    """A VAE, or a module with `model` and `guide`."""
    num_epochs: dict[Budget, int]
    batch_size: int
    optim: Callable[[], Any]
    data: Literal["static", "dynamic", "frey"] = "static"
    objective: Callable[[], Any] = pv.objectives.CompiledTraceMeanField_ELBO
    factor: Callable[[int], float] | None = None
    """Of the learning rate, by the epoch."""
    published_elbo: float | None = None
    patience: int | None = None
    """Epochs to wait for a better validation ELBO, whose parameters are kept; None to keep the last."""
    kl_warmup: int | None = None
    """Epochs."""
    num_pixels: int | None = None
    """Where figures are published in bits for each pixel."""
    remarks: str = ""
    """Where ours differ from the source's settings."""


def burda_stage(epoch: int) -> float:
    """3^i epochs at 10^(-i / 7) of the rate, for i = 0, 1, ..., 7."""
    stage = next(i for i in range(9) if epoch < (3 ** (i + 1) - 1) / 2)
    return 10 ** (-stage / 7)


def burda(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 100)),
    )


def two_layers(train: pv.data.Dataset) -> BottomUp:
    return BottomUp(train.mean)


def saar(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(128),
        pv.likelihoods.Bernoulli(pv.nn.MLP(128, [256, 256], 784, nn.ReLU)),
        SoftplusNormal(pv.nn.MLP(784, [256, 256], 2 * 128, nn.ReLU)),
    )


def saar_with_flow(kind: Literal["affine", "gated"], title: str, remarks: str) -> Row:
    def make(train: pv.data.Dataset) -> pv.VAE:
        return pv.VAE(
            pv.priors.StandardNormal(128),
            pv.likelihoods.Bernoulli(pv.nn.MLP(128, [256, 256], 784, nn.ReLU)),
            pv.posteriors.Flow(
                pv.nn.MLP(784, [256, 256], 3 * 128, nn.ReLU),
                128,
                context_dim=128,
                kind=kind,
                num_transforms=2,
                hidden_dims=[256, 256],
                autoregressive="inverse",
            ),
        )

    return Row(
        title=title,
        source="README of github.com/altosaar/variational-autoencoder, flow",
        published=-95.33,
        published_elbo=-101.64,
        num_draws=128,
        make=make,
        num_epochs={"full": 384, "hours": 167, "minutes": 10},  # 150,000 and 65,000 steps
        batch_size=128,
        optim=lambda: pyro.optim.RMSprop({"lr": 1e-3, "centered": True}),
        objective=pv.objectives.CompiledTrace_ELBO,
        patience=128,
        remarks=f"{remarks} The source's first scale is a softplus, ours an exponential. {BY_VALIDATION}",
    )


def chadebec(num_layers: int) -> Callable[[pv.data.Dataset], pv.VAE]:
    hidden = num_layers * [400]

    def make(train: pv.data.Dataset) -> pv.VAE:
        return pv.VAE(
            pv.priors.StandardNormal(40),
            pv.likelihoods.Bernoulli(pv.nn.MLP(40, hidden, 784, nn.ReLU)),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(784, hidden, 2 * 40, nn.ReLU)),
        )

    return make


def pythae(num_layers: int, title: str, remarks: str = "") -> Row:
    return Row(
        title=title,
        source="Pythae, examples/scripts/reproducibility (vae.py; README), 500 epochs",
        published=-89.78,
        num_draws=200,
        make=chadebec(num_layers),
        num_epochs={"full": 500, "hours": 500, "minutes": 10},
        batch_size=100,
        optim=lambda: pv.FusedAdam({"lr": 1e-4}),
        factor=lambda epoch: 10 ** (-0.2 * ((epoch >= 200) + (epoch >= 350))),
        patience=10**6,
        remarks=remarks,
    )


def gated(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """Two hidden layers of 300 gated units."""
    layers = [nn.Linear(num_inputs, 600), nn.GLU(), nn.Linear(300, 600), nn.GLU(), nn.Linear(300, num_outputs)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
    return nn.Sequential(*layers)


def tomczak(num_pseudo_inputs: int) -> Callable[[pv.data.Dataset], pv.VAE]:
    """A VAE of images, bytes or zeros and ones; without pseudo-inputs the prior is N(0, I)."""

    def make(train: pv.data.Dataset) -> pv.VAE:
        shape, is_grey = tuple(train.x.shape[1:]), bool(train.x.max() > 1)
        encoder: nn.Module = nn.Sequential(nn.Flatten(-len(shape)), gated(math.prod(shape), 80))
        if is_grey:
            decoder = nn.Sequential(gated(40, 2 * math.prod(shape)), nn.Unflatten(-1, (2 * shape[0], *shape[1:])))
            likelihood: nn.Module = pv.likelihoods.DiscretizedLogistic(decoder, "per-pixel")
            encoder = pv.nn.Standardized(encoder, 127.5, 127.5)
        else:
            likelihood = pv.likelihoods.Bernoulli(nn.Sequential(gated(40, math.prod(shape)), nn.Unflatten(-1, shape)))
        posterior = pv.posteriors.DiagonalNormal(encoder)
        prior: nn.Module = pv.priors.StandardNormal(40)
        if num_pseudo_inputs:
            prior = pv.priors.VampPrior(posterior, train.x[:num_pseudo_inputs])
        return pv.VAE(prior, likelihood, posterior)

    return make


def vamp_prior(data: Literal["static", "frey"], num_pseudo_inputs: int, published: float) -> Row:
    prior = f"VampPrior({num_pseudo_inputs})" if num_pseudo_inputs else "N(0, I)"
    return Row(
        title=f"gated VAE, {'static MNIST' if data == 'static' else 'Frey Face'}, {prior}",
        source="Tomczak and Welling (2018), from memory; settings in github.com/jmtomczak/vae_vampprior",
        published=published,
        num_draws=5000,
        make=tomczak(num_pseudo_inputs),
        num_epochs={"full": 2000, "hours": 200, "minutes": 10},
        batch_size=100,
        optim=lambda: pv.FusedAdam({"lr": 5e-4}),
        data=data,
        objective=pv.objectives.CompiledTrace_ELBO,
        patience=50,
        kl_warmup=100,
        num_pixels=560 if data == "frey" else None,
        remarks="The source's Adam normalizes the gradient of each parameter; ours does not. Its pseudo-inputs start "
        "as noise and are held in the range of pixels; ours start as training images and are free. Its first and last "
        "grey level have no tails; ours have, so that probabilities sum to one. It begins to wait for a better "
        "validation ELBO when the warm-up is over.",
    )


class Maxout(nn.Module):
    """The largest of each four numbers."""

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (-1, 4)).amax(-1)


def maxout(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """A hidden layer of 400 units, each the largest of four numbers."""
    return nn.Sequential(nn.Linear(num_inputs, 1600), Maxout(), nn.Linear(400, num_outputs))


class PlanarFlow(nn.Module):
    """A diagonal Gaussian, transformed by planar flows whose parameters the encoder gives."""

    def __init__(self, latent_dim: int, num_transforms: int) -> None:
        super().__init__()
        self.sizes = [latent_dim, latent_dim, *num_transforms * [2 * latent_dim + 1]]
        self.network = maxout(784, sum(self.sizes))

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw, *parameters = self.network(x).split(self.sizes, -1)
        base = dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)
        return dist.TransformedDistribution(base, [self.planar(each, len(loc.T)) for each in parameters])

    @staticmethod
    def planar(parameters: Tensor, latent_dim: int) -> Any:
        bias, u, w = parameters.split([1, latent_dim, latent_dim], -1)
        return dist.transforms.ConditionalPlanar(lambda _: (bias, u, w)).condition(bias)


def rezende(num_transforms: int, published: float) -> Row:
    def make(train: pv.data.Dataset) -> pv.VAE:
        likelihood = pv.likelihoods.Bernoulli(maxout(40, 784))
        return pv.VAE(pv.priors.StandardNormal(40), likelihood, PlanarFlow(40, num_transforms))

    return Row(
        title=f"VAE, 784-400-40, maxout, {num_transforms} planar flows",
        source="Rezende and Mohamed (2015), figure 4, settings from memory",
        published=published,
        num_draws=200,
        make=make,
        num_epochs={"full": 1000, "hours": 100, "minutes": 4},  # 500,000 and 50,000 steps
        batch_size=100,
        optim=lambda: pyro.optim.RMSprop({"lr": 1e-5, "momentum": 0.9}),
        objective=pv.objectives.CompiledTrace_ELBO,
        kl_warmup=20,
    )


def iwae(num_particles: int, published: float, make: Callable[[pv.data.Dataset], Any]) -> Row:
    return Row(
        title=f"IWAE, {'two layers' if make is two_layers else '784-[200 x 2]-50'}, k = {num_particles}",
        source="Burda, Grosse and Salakhutdinov (2016), table 1; settings in github.com/yburda/iwae",
        published=published,
        num_draws=5000,
        make=make,
        num_epochs={"full": 3280, "hours": 364, "minutes": 4},
        batch_size=20,
        optim=lambda: pv.FusedAdam({"lr": 1e-3, "eps": 1e-4}),
        data="dynamic",
        objective=lambda: pv.objectives.IWELBO(num_particles),
        factor=burda_stage,
        remarks="The source's Adam has moments of its own making (beta 0.99, second moments that start at one); ours "
        "is Kingma and Ba's. Its learning rates are rounded to two digits.",
    )


BY_VALIDATION = (
    "The source looks at the validation ELBO every 10,000 steps, keeps the best and waits for five; ours looks after "
    "each epoch, and waits for as many steps."
)

ROWS: dict[str, Row] = {
    "vae-128": Row(
        title="VAE, 784-[256 x 2]-128",
        source="README of github.com/altosaar/variational-autoencoder, mean field",
        published=-97.10,
        published_elbo=-103.31,
        num_draws=128,
        make=saar,
        num_epochs={"full": 167, "hours": 167, "minutes": 10},  # 65,000 steps
        batch_size=128,
        optim=lambda: pyro.optim.RMSprop({"lr": 1e-3, "centered": True}),
        patience=128,
        remarks=BY_VALIDATION,
    ),
    "vae-128-iaf": saar_with_flow(
        "affine",
        "the same with an inverse autoregressive flow",
        "The source's transforms are gated as in an LSTM, ours affine.",
    ),
    "vae-128-iaf-gated": saar_with_flow(
        "gated", "the same with that flow, gated", "The transforms are gated as the source's."
    ),
    "vae-static": pythae(1, "VAE, 784-400-40"),
    "vae-static-deep": pythae(2, "the same, 784-[400 x 2]-40", "The second layers are commented out in the source."),
    "frey-normal": vamp_prior("frey", 0, -4.63 * 560 * math.log(2)),
    "frey-vamp": vamp_prior("frey", 500, -4.57 * 560 * math.log(2)),
    "gated-normal": vamp_prior("static", 0, -88.56),
    "gated-vamp": vamp_prior("static", 500, -85.57),
    "planar-0": rezende(0, -89.9),
    "planar-10": rezende(10, -87.5),
    "iwae-1": iwae(1, -86.76, burda),
    "iwae-5": iwae(5, -85.54, burda),
    "iwae-50": iwae(50, -84.78, burda),
    "iwae2-1": iwae(1, -85.33, two_layers),
    "iwae2-5": iwae(5, -83.89, two_layers),
    "iwae2-50": iwae(50, -82.90, two_layers),
}


def data_of(row: Row, args: argparse.Namespace) -> tuple[pv.data.Dataset, pv.data.Dataset | None, pv.data.Dataset]:
    """Data to train on, to choose by, and to test on."""
    if row.data == "static":
        train, validation, test = (
            pv.data.static_mnist(args.data_dir, split=split) for split in ("train", "validation", "test")
        )
        return train, validation, test
    if row.data == "frey":
        train, test = (pv.data.frey_faces(args.data_dir, split=split, pixels="bytes") for split in ("train", "test"))
        return *train.hold_out(len(train) - 1565, seed=args.seed), test
    train = pv.data.mnist(args.data_dir, split="train", binarization="dynamic", seed=args.seed)
    return train, None, pv.data.mnist(args.data_dir, split="test", binarization="static", seed=args.seed)
