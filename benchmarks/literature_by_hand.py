"""The IWAE rows once more, by a loop and a bound written by hand in PyTorch."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from literature_checkpoints import go_on, keep
from literature_rows import Row, data_of
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vae as pv


def log_weights(vae: pv.VAE, x: Tensor, num_particles: int) -> Tensor:
    """log p(x, z) - log q(z|x) of draws from the encoder, `(num_particles, len(x))`, of the networks of a VAE."""
    x = x.flatten(1)
    encoder: Any = vae.posterior
    decoder: Any = vae.likelihood
    loc, raw = encoder.network(x).chunk(2, -1)
    log_scale = 7 * torch.tanh(raw / 7)  # bounded as in DiagonalNormal, which evaluates these networks in the end
    noise = torch.randn(num_particles, *loc.shape)
    z = loc + log_scale.exp() * noise
    logits = decoder.network(z)
    log_likelihood = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    return log_likelihood + (log_scale + (noise.square() - z.square()) / 2).sum(-1)


def trained_by_hand(
    name: str, row: Row, num_particles: int, num_epochs: int, args: argparse.Namespace
) -> tuple[pv.VAE, list[float], float, pv.data.Dataset]:
    """Train with the settings of a row, and go on where an earlier call was interrupted.

    Returns the VAE, the bound of each epoch, the seconds, and the test data.
    """
    train, _, test = data_of(row, args)
    torch.manual_seed(args.seed)
    vae = row.make(train)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, eps=1e-4, fused=True)
    path = args.runs / f"{name}-{args.budget}.pt"
    kept = go_on(path, vae, optimizer)
    bounds: list[float] = kept.get("bounds", [])
    seconds = kept.get("seconds", 0.0)
    for epoch in range(len(bounds), num_epochs):
        started = time.perf_counter()
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 if row.factor is None else row.factor(epoch))
        total = 0.0
        for rows in torch.randperm(len(train)).split(row.batch_size):
            bound = log_weights(vae, train.batch(rows), num_particles).logsumexp(0).mean() - math.log(num_particles)
            optimizer.zero_grad()
            (-bound).backward()
            optimizer.step()
            total += bound.item() * len(rows)
        bounds.append(total / len(train))
        seconds += time.perf_counter() - started
        if epoch % 10 == 9 or epoch + 1 == num_epochs:
            keep(path, vae, optimizer, bounds=bounds, seconds=seconds)
    return vae, bounds, seconds, test
