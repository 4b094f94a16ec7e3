"""The programs of benchmarks/accuracy.py: a model, a guide and test data each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from literature_rows import BottomUp
from literature_studies import of_counts
from torch import Tensor, nn

import pyro_vae as pv

HIDDEN = [200, 200]


class Program(NamedTuple):
    """A trained pair, and what it is evaluated on."""

    title: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]


def mnist(posterior: Callable[[Tensor], nn.Module], title: str) -> Callable[[argparse.Namespace, str], Program]:
    """Digits by 784-200-200-50, and the posterior that is made for images of this mean."""

    def make(args: argparse.Namespace, name: str) -> Program:
        train = pv.data.mnist(args.data_dir)
        decoder = pv.nn.MLP(50, HIDDEN, 784, output_bias=torch.logit(train.mean, eps=1e-3))
        vae = pv.VAE(pv.priors.StandardNormal(50), pv.likelihoods.Bernoulli(decoder), posterior(train.mean))
        trained(vae, vae, train, 22, args, name)
        return Program(title, vae.model, vae.guide, (digits(args),))

    return make


def encoder(num_outputs: int, mean: Tensor) -> nn.Module:
    return pv.nn.MLP(784, HIDDEN, num_outputs, input_mean=mean)


def inverse_autoregressive(mean: Tensor) -> nn.Module:
    return pv.posteriors.Flow(encoder(3 * 50, mean), 50, context_dim=50, num_transforms=2, autoregressive="inverse")


def of_others(args: argparse.Namespace, name: str) -> Program:
    """The VAE of github.com/lxuechen/BDMC from its weights: fc1 to fc3 encode, fc4 to fc6 decode, ELU between."""
    if args.others is None:
        raise SystemExit("--programs others: expected --others, the file of its weights; got none.")
    with np.load(args.others) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    for each in ("fc3.weight", "fc3.bias"):
        weights[each][50:] /= 2  # a log variance is twice a log scale

    def network(numbers: tuple[int, int, int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in numbers:
            layer = nn.Linear(*reversed(weights[f"fc{number}.weight"].shape))
            layer.load_state_dict({name: weights[f"fc{number}.{name}"] for name in ("weight", "bias")})
            layers += [layer, nn.ELU()]
        return nn.Sequential(*layers[:-1])

    decoder = nn.Sequential(network((4, 5, 6)), nn.Unflatten(-1, (1, 28, 28)))
    posterior = pv.posteriors.DiagonalNormal(nn.Sequential(nn.Flatten(-3), network((1, 2, 3))))
    vae = pv.VAE(pv.priors.StandardNormal(50), pv.likelihoods.Bernoulli(decoder), posterior).eval()
    return Program("a VAE of others", vae.model, vae.guide, (digits(args),))


def two_layers(args: argparse.Namespace, name: str) -> Program:
    train = pv.data.mnist(args.data_dir)
    net = BottomUp(train.mean)
    trained(net, (net.model, net.guide), train, 22, args, name)
    return Program("two layers, 100 and 50", net.model, net.guide, (digits(args),))


def faces(args: argparse.Namespace, name: str) -> Program:
    train, test = (pv.data.frey_faces(args.data_dir, split=split) for split in ("train", "test"))
    shape = tuple(train.x.shape[1:])
    vae = pv.VAE(
        pv.priors.StandardNormal(10),
        pv.likelihoods.Gaussian(pv.nn.MLP(10, HIDDEN, shape, output_bias=train.mean), scale="learned"),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(shape, HIDDEN, 2 * 10, input_mean=train.mean)),
    )
    trained(vae, vae, train, 150, args, name)
    return Program("Frey Face, Gaussian of learned scale", vae.model, vae.guide, (test.x[: args.num_test],))


def cells(args: argparse.Namespace, name: str) -> Program:
    train, test = (pv.data.pbmc68k(args.data_dir, split=split).x for split in ("train", "test"))
    vae = of_counts("negative binomial", 10, train)
    trained(vae, vae, (train, train.sum(1)), 100, args, name)
    x = test[: args.num_test]
    return Program("counts of cells, negative binomial", vae.model, vae.guide, (x, x.sum(1)))


def digits(args: argparse.Namespace) -> Tensor:
    return pv.data.mnist(args.data_dir, split="test").x[: args.num_test]


def trained(module: nn.Module, program: Any, data: Any, num_epochs: int, args: argparse.Namespace, name: str) -> None:
    """Train, or take the weights that an earlier call has kept."""
    path = None if args.weights is None else args.weights / f"{name}.pt"
    if path is not None and path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
        module.eval()
        return
    pyro.clear_param_store()
    print(f"{name}: {pv.fit(program, data, num_epochs=args.num_epochs or num_epochs, seed=0)}", flush=True)
    if path is not None:
        torch.save(module.state_dict(), path)


PROGRAMS: dict[str, Callable[[argparse.Namespace, str], Program]] = {
    "mnist": mnist(lambda mean: pv.posteriors.DiagonalNormal(encoder(2 * 50, mean)), "MNIST, diagonal Gaussian"),
    "others": of_others,
    "mixture": mnist(
        lambda mean: pv.posteriors.NormalMixture(encoder(2 * (1 + 2 * 50), mean), 50), "MNIST, two Gaussians"
    ),
    "flow": mnist(inverse_autoregressive, "MNIST, inverse autoregressive flow"),
    "two-layers": two_layers,
    "faces": faces,
    "cells": cells,
}
