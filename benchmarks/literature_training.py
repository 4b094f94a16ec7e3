"""Why a reproduction is better than its source: what differs in training, one thing at a time."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from literature_rows import ROWS, data_of
from torch import Tensor, nn

import pyro_vae as pv

SAAR = {
    "title": "VAE, 784-[256 x 2]-128",
    "source": "README of github.com/altosaar/variational-autoencoder, mean field, validation at step 10,000",
    "published": {"elbo": -108.49, "log_p": -102.62},
    "num_epochs": 26,
    "num_draws": 128,
}
WAYS = {
    "as the source": ("torch", pv.objectives.CompiledTrace_ELBO),
    "KL in closed form": ("torch", pv.objectives.CompiledTraceMeanField_ELBO),
    "Glorot's weights at the start": ("Glorot", pv.objectives.CompiledTrace_ELBO),
    "both, as in the row": ("Glorot", pv.objectives.CompiledTraceMeanField_ELBO),
}
"""The distribution that weights start from, and the objective. The source has torch's own, and log q of a draw."""


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Train the row `vae-128` in each of the ways, and evaluate validation images as its source does."""
    train, validation, _ = data_of(ROWS["vae-128"], args)
    x = validation.x[:: max(1, len(validation) // args.num_test)]
    found = {way: trained_in(way, train, x, args) for way in WAYS}
    return {**SAAR, "num_epochs": num_epochs_of(args), "num_images": len(x), "found": found}


def trained_in(way: str, train: pv.data.Dataset, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    row, (start, objective) = ROWS["vae-128"], WAYS[way]
    torch.manual_seed(args.seed)
    vae = row.make(train)
    if start == "torch":
        start_as_torch_does(vae)
    history = pv.fit(
        vae, train, objective=objective(), optim=row.optim(), num_epochs=num_epochs_of(args),
        batch_size=row.batch_size, seed=args.seed, compile=True,
        run=args.runs / f"training-{start}-{objective.__name__}-{num_epochs_of(args)}", resume="auto",
    )  # fmt: skip
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=SAAR["num_draws"], seed=args.seed)
    print(f"{way}: {evidence!r}", flush=True)
    return {
        "train_elbo": history.train_elbo[-1],
        "elbo": evidence.elbo.mean().item(),
        "log_p": evidence.mean,
        "error_of_validation_set": (evidence.log_evidence.std() / len(x) ** 0.5).item(),
    }


def num_epochs_of(args: argparse.Namespace) -> int:
    return args.num_epochs or SAAR["num_epochs"]


def start_as_torch_does(module: nn.Module) -> None:
    """Draw the weights of all linear layers anew, as torch does where nothing else is said."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def told_apart(result: dict[str, Any]) -> str:
    """The table of docs/literature.md."""
    published = result["published"]
    lines = [
        f"{result['title']}, after {result['num_epochs']} epochs; {result['num_images']:,} validation images, "
        f"{result['num_draws']} draws.\n",
        "| training | ELBO of training | ELBO | log p(x) |",
        "|---|---|---|---|",
        f"| published, after 26 | | {published['elbo']:.2f} | {published['log_p']:.2f} |",
    ]
    for way, of in result["found"].items():
        log_p = f"{of['log_p']:.2f} +- {of['error_of_validation_set']:.2f}"
        lines.append(f"| {way} | {of['train_elbo']:.2f} | {of['elbo']:.2f} | {log_p} |")
    return "\n".join(lines)
