"""The ELBO against the number of samples seen, beside wake-sleep, as Kingma and Welling (2014) draw it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor

import pyro_vae as pv

KINGMA = {
    "title": "ELBO against samples seen",
    "source": "Kingma and Welling (2014), figure 2; settings of its section 5 (from memory)",
    "num_latents": {"MNIST": (3, 5, 10, 20, 200), "Frey Face": (2, 5, 10, 20)},
    "num_samples": {
        "full": {"MNIST": 10**8, "Frey Face": 10**7},
        "hours": {"MNIST": 3 * 10**6, "Frey Face": 10**6},
        "minutes": {"MNIST": 3 * 10**5, "Frey Face": 10**5},
    },
    "rates": (0.01, 0.02, 0.1),
    "num_evaluated": 100,
    "remarks": "The source's weights start from N(0, 0.01) and have a Gaussian prior; ours start from Glorot's "
    "distribution and have none. Its digits have no binarization that is told; ours are binarized anew for each batch. "
    "The mean of its faces is a sigmoid; ours is free.",
}


class Setting(NamedTuple):
    """What a curve is of."""

    train: pv.data.Dataset
    test: pv.data.Dataset
    num_latents: int
    seed: int


Trained = tuple[pv.VAE, list[tuple[float, float]]]
"""A VAE, and the ELBO of training and of test data after each epoch."""


def curves(args: argparse.Namespace) -> dict[str, Any]:
    """Train by both methods with each number of latents, and evaluate the ends by `log_evidence`.

    What is found of each is kept in the folder of runs, and taken from there.
    """
    found = []
    for name, (train, test) in {"MNIST": digits(args), "Frey Face": faces(args)}.items():
        num_epochs = args.num_epochs or math.ceil(KINGMA["num_samples"][args.budget][name] / len(train))
        for num_latents, method in product(KINGMA["num_latents"][name], METHODS):
            path = args.runs / f"curves-{args.budget}" / f"{name}-{num_latents}-{method}-{num_epochs}-{args.seed}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                setting = Setting(train, test, num_latents, args.seed)
                of_one = {"data": name} | curve_of(setting, method, num_epochs, args.num_test)
                path.write_text(json.dumps(of_one))
            found.append(json.loads(path.read_text()))
    draw_curves(found, args.output_dir / f"curves-{args.budget}.png")
    return {**KINGMA, "num_samples": KINGMA["num_samples"][args.budget], "found": found}


def curve_of(setting: Setting, method: str, num_epochs: int, num_test: int) -> dict[str, Any]:
    """Train at the best of a few rates, by one epoch of each, and evaluate the end."""
    run = METHODS[method]
    rate = max(KINGMA["rates"], key=lambda rate: run(setting, rate, 1)[1][-1][0])
    vae, elbos = run(setting, rate, num_epochs)
    x = setting.test.x[: min(KINGMA["num_evaluated"], num_test)]
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, seed=setting.seed)
    print(f"{setting.num_latents} latents, {method} at {rate}: {evidence!r}", flush=True)
    return {
        "num_latents": setting.num_latents, "method": method, "rate": rate,
        "curve": [[epoch * len(setting.train), *elbos[epoch - 1]] for epoch in some_of(num_epochs)],
        "num_evaluated": len(x), "log_p": evidence.mean, "monte_carlo_error": evidence.mean_std_error,
        "elbo_of_the_same": evidence.elbo.mean().item(),
        "reliable": evidence.reliable.double().mean().item(),
    }  # fmt: skip


def digits(args: argparse.Namespace) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    train, test = (pv.data.mnist(args.data_dir, split=split, seed=args.seed) for split in ("train", "test"))
    return train, test


def faces(args: argparse.Namespace) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    train, test = (pv.data.frey_faces(args.data_dir, split=split) for split in ("train", "test"))
    return train, test


def make(setting: Setting) -> pv.VAE:
    """One hidden layer of 500 units for digits, 200 for faces."""
    torch.manual_seed(setting.seed)
    train, num_latents = setting.train, setting.num_latents
    shape = tuple(train.x.shape[1:])
    encoder = pv.nn.MLP(shape, [500 if train.grey is not None else 200], 2 * num_latents)
    if train.grey is not None:
        likelihood: Any = pv.likelihoods.Bernoulli(pv.nn.MLP(num_latents, [500], shape))
    else:
        likelihood = pv.likelihoods.Gaussian(
            pv.nn.MLP(num_latents, [200], (2 * shape[0], *shape[1:])), scale="per-pixel", min_scale=0.01
        )
    return pv.VAE(pv.priors.StandardNormal(num_latents), likelihood, pv.posteriors.DiagonalNormal(encoder))


def by_fit(setting: Setting, rate: float, num_epochs: int) -> Trained:
    vae = make(setting)
    history = pv.fit(
        vae, setting.train, objective=pv.objectives.CompiledTrace_ELBO(), optim=pyro.optim.Adagrad({"lr": rate}),
        num_epochs=num_epochs, batch_size=100, seed=setting.seed, validation=setting.test, compile=True, progress=False,
    )  # fmt: skip
    return vae, [*zip(history.train_elbo, history.validation_elbo, strict=True)]


def by_wake_sleep(setting: Setting, rate: float, num_epochs: int) -> Trained:
    """Hinton, Dayan, Frey and Neal (1995)."""
    vae = make(setting)
    optimizer = torch.optim.Adagrad(vae.parameters(), lr=rate)
    elbos = []
    for _ in range(num_epochs):
        total = 0.0
        for x in batches(setting.train):
            optimizer.zero_grad()
            loss, elbo = wake_and_sleep(vae, x)
            loss.backward()
            optimizer.step()
            total += elbo * len(x)
        with torch.no_grad():
            elbos.append((total / len(setting.train), elbo_of(vae, setting.test.x).mean().item()))
    return vae.eval(), elbos


METHODS = {"AEVB": by_fit, "wake-sleep": by_wake_sleep}


def wake_and_sleep(vae: pv.VAE, x: Tensor) -> tuple[Tensor, float]:
    """The loss whose gradient is that of both phases, and the ELBO of the first.

    Awake, the decoder learns from codes of data; asleep, the encoder learns from the codes of dreams.
    """
    with torch.no_grad():
        z = vae.posterior(x).sample()
        dreamt_of = vae.prior().sample((len(x),))
        dreams = vae.likelihood(dreamt_of).sample()
    wake = vae.likelihood(z).log_prob(x)
    sleep = vae.posterior(dreams).log_prob(dreamt_of)
    with torch.no_grad():
        elbo = wake + vae.prior().log_prob(z) - vae.posterior(x).log_prob(z)
    return -(wake + sleep).mean(), elbo.mean().item()


def elbo_of(vae: pv.VAE, x: Tensor) -> Tensor:
    """One draw's estimate for each datum."""
    q = vae.posterior(x)
    z = q.sample()
    return vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)


def batches(data: pv.data.Dataset) -> Iterator[Tensor]:
    for rows in torch.randperm(len(data)).split(100):
        yield data.batch(rows)


def some_of(num_epochs: int) -> list[int]:
    """Epochs, counted from 1, about evenly spaced on a logarithmic axis."""
    return sorted({round(num_epochs ** (place / 59)) for place in range(60)})


def draw_curves(found: list[dict[str, Any]], path: Any) -> None:
    """A row for each data set, a column for each number of latents."""
    num_columns = max(map(len, KINGMA["num_latents"].values()))
    figure, axes = plt.subplots(2, num_columns, figsize=(3.4 * num_columns, 6), layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for row, (name, numbers) in zip(axes, KINGMA["num_latents"].items(), strict=True):
        for ax, num_latents in zip(row, numbers, strict=False):
            ax.set_axis_on()
            for method, color in zip(METHODS, ("C3", "C2"), strict=True):
                (result,) = (
                    each
                    for each in found
                    if (each["data"], each["num_latents"], each["method"]) == (name, num_latents, method)
                )
                seen, train, test = zip(*result["curve"], strict=True)
                ax.semilogx(seen, train, color=color, label=f"{method}, training")
                ax.semilogx(seen, test, "--", color=color, label=f"{method}, test")
                ax.plot(seen[-1], result["log_p"], "*", color=color, ms=10, label=f"{method}, log p(x)")
            best = max(value for line in ax.lines for value in line.get_ydata())
            ax.set(title=f"{name}, {num_latents} latents", ylim=(best - (60 if name == "MNIST" else 600), best + 10))
    for ax in axes[-1, : len(KINGMA["num_latents"]["Frey Face"])]:
        ax.set_xlabel("samples seen")
    axes[0, 0].set_ylabel("nats per image")
    axes[1, 0].set_ylabel("nats per image")
    axes[0, 0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=90)


def curved(result: dict[str, Any]) -> str:
    """The table of docs/literature.md: what the curves end with, of the same images."""
    seen = ", ".join(f"{number:,} {name}" for name, number in result["num_samples"].items())
    num_evaluated = result["found"][0]["num_evaluated"]
    lines = [
        f"{result['title']}, at its end ({seen}): nats per image, of {num_evaluated} test images.\n",
        "| data | latents | ELBO | wake-sleep's | log p(x) | wake-sleep's |",
        "|---|---|---|---|---|---|",
    ]
    for ours in result["found"][::2]:
        (other,) = (
            each
            for each in result["found"][1::2]
            if (each["data"], each["num_latents"]) == (ours["data"], ours["num_latents"])
        )
        cells = [f"{each['elbo_of_the_same']:.1f}" for each in (ours, other)]
        cells += [f"{each['log_p']:.2f} +- {each['monte_carlo_error']:.2f}" for each in (ours, other)]
        lines.append(f"| {ours['data']} | {ours['num_latents']} | {' | '.join(cells)} |")
    return "\n".join(lines)
