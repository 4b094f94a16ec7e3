"""The VAE of a run, from its settings and its data."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import VAE, likelihoods, posteriors, priors
from pyro_vae.cli.failure import Refusal, one_line, refuse
from pyro_vae.cli.rundata import RunData, is_binary, is_image
from pyro_vae.cli.settings import Settings
from pyro_vae.data import Dataset
from pyro_vae.nn import MLP

__all__ = ["make_vae", "settled"]

PRIORS: dict[str, Callable[[int], torch.nn.Module]] = {"standard-normal": priors.StandardNormal}
OUTPUTS = {"bernoulli": 1, "gaussian": 1, "gaussian-learned": 1, "gaussian-per-pixel": 2}
"""Likelihoods, and how many numbers each takes from the decoder for each of a datum's."""


def settled(settings: Settings, data: RunData) -> Settings:
    """Decide what was left to the data."""
    settings = replace(
        settings,
        binarization=data.train.provenance.binarization or "none",
        standardize=data.scaling is not None,
    )
    if settings.vae is not None:
        return settings
    if settings.likelihood == "bernoulli" and not is_binary(data.train.x):
        low, high = data.train.x.min().item(), data.train.x.max().item()
        refuse("--likelihood", "zeros and ones, for bernoulli", f"numbers from {low:g} to {high:g}",
               "pass --binarization dynamic, for numbers from 0 to 1, or --likelihood gaussian-learned")  # fmt: skip
    likelihood = settings.likelihood or ("bernoulli" if is_binary(data.train.x) else "gaussian-learned")
    num_numbers = math.prod(data.shape)
    latent_dim = 50 if is_image(data.shape) or num_numbers >= 100 else max(1, num_numbers // 2)
    return replace(
        settings,
        prior=settings.prior or "standard-normal",
        likelihood=likelihood,
        scale=settings.scale or (0.1 if likelihood == "gaussian" else None),
        min_scale=settings.min_scale or (0.01 if likelihood in ("gaussian-learned", "gaussian-per-pixel") else None),
        latent_dim=settings.latent_dim or latent_dim,
        hidden_dims=(200, 200) if settings.hidden_dims is None else settings.hidden_dims,
    )


def make_vae(
    settings: Settings, shape: tuple[int, ...], num_labels: int | None, train: Callable[[], Dataset] | None
) -> VAE:
    """Make the VAE with its first parameters, which the seed fixes; the user's own, or one of perceptrons.

    Training data are read only if they are needed; without them, parameters are to be replaced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.vae is not None:
            return _users_own(settings.vae, train)
        mean = torch.zeros(shape) if train is None else train().mean
        return _of_perceptrons(settings, math.prod(shape), num_labels or 0, mean)


def _of_perceptrons(settings: Settings, num_numbers: int, num_labels: int, mean: Tensor) -> VAE:
    """Make encoder and decoder, which start from the data's mean."""
    assert settings.latent_dim is not None and settings.hidden_dims is not None and settings.likelihood is not None
    hidden, latent_dim, mean = settings.hidden_dims, settings.latent_dim, mean.flatten()
    is_binary = settings.likelihood == "bernoulli"
    bias = torch.logit(mean, eps=1e-3) if is_binary else mean
    bias = torch.cat([bias, torch.zeros(num_numbers * (OUTPUTS[settings.likelihood] - 1))])
    decoder = MLP(latent_dim + num_labels, hidden, len(bias), output_bias=bias)
    centre = torch.cat([mean, torch.zeros(num_labels)])
    encoder = MLP(num_numbers + num_labels, hidden[::-1], 2 * latent_dim, input_mean=centre)
    return VAE(
        PRIORS[settings.prior or "standard-normal"](latent_dim),
        _likelihood(settings, decoder),
        posteriors.DiagonalNormal(encoder),
        context_shapes=[(num_labels,)] if num_labels else [],
    )


def _likelihood(settings: Settings, decoder: MLP) -> torch.nn.Module:
    if settings.likelihood == "bernoulli":
        return likelihoods.Bernoulli(decoder)
    if settings.likelihood == "gaussian":
        return likelihoods.Gaussian(decoder, scale=settings.scale or 0.1)
    form: Any = "per-pixel" if settings.likelihood == "gaussian-per-pixel" else "learned"
    return likelihoods.Gaussian(decoder, scale=form, min_scale=settings.min_scale or 0.01)


def _users_own(where: str, train: Callable[[], Dataset] | None) -> VAE:
    """Call the user's function."""
    make = _imported(where)
    data = train() if train is not None and _takes_data(make) else None
    try:
        vae = make() if data is None else make(data)
    except Refusal:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        refuse(
            "--vae", f"a VAE from {where}", one_line(f"{type(error).__name__} in {place}: {error}"), "mend the function"
        )
    if not isinstance(vae, VAE):
        refuse("--vae", f"a pyro_vae.VAE from {where}", f"a {type(vae).__name__}", "return one")
    return vae


def _imported(where: str) -> Callable[..., Any]:
    module_name, _, name = where.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # as for python -m, which the installed script is not
        sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        found = one_line(f"{type(error).__name__}: {error}")
        refuse(
            "--vae",
            f"a module {module_name!r} that can be imported",
            found,
            "check its name, and the folder you are in",
        )
    if not callable(make):
        refuse("--vae", f"a function {name!r} in {module_name!r}", repr(make), "check its name")
    return make


def _takes_data(make: Callable[..., Any]) -> bool:
    """Tell whether a function has an argument that must be given."""
    needed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # of some that are written in C
        return False
    return any(each.kind in needed and each.default is each.empty for each in parameters)
