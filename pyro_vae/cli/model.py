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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import VAE, likelihoods, posteriors, priors
from pyro_vae.cli.failure import Refusal, one_line, refuse
from pyro_vae.cli.rundata import RunData, is_binary, is_image
from pyro_vae.cli.settings import LEARNED_SCALE, NUM_COMPONENTS, Settings
from pyro_vae.data import Dataset
from pyro_vae.nn import MLP, ConvDecoder, ConvEncoder, Standardized, WithMask

__all__ = ["make_vae", "settled"]


SCALE, MIN_SCALE = 0.1, 0.01
CONTEXT_DIM = 32
"""How many numbers the encoder gives to a flow."""
CHANNELS = (32, 64)

Networks = tuple[torch.nn.Module, Callable[[int], torch.nn.Module]]
"""A decoder, and what makes an encoder of so many outputs."""


class Choice(NamedTuple):
    """A likelihood that can be chosen.

    Attributes:
        make: makes it, from a decoder.
        start: where outputs of the decoder start, given the data's mean.
        num_outputs: of the decoder, for each number of a datum.
    """

    make: Callable[[torch.nn.Module, Settings], torch.nn.Module]
    start: Callable[[Tensor], Tensor]
    num_outputs: int = 1


def _logit(mean: Tensor) -> Tensor:
    return torch.logit(mean, eps=1e-3)


def _log(mean: Tensor) -> Tensor:
    return mean.clamp(min=1e-3).log()


def _of_scale(part: Any, scale: str = "learned") -> Callable[[torch.nn.Module, Settings], torch.nn.Module]:
    return lambda decoder, settings: part(decoder, scale=scale, min_scale=settings.min_scale or MIN_SCALE)


LIKELIHOODS = {
    "bernoulli": Choice(lambda decoder, _: likelihoods.Bernoulli(decoder), _logit),
    "continuous-bernoulli": Choice(lambda decoder, _: likelihoods.ContinuousBernoulli(decoder), _logit),
    "beta": Choice(lambda decoder, _: likelihoods.Beta(decoder), _logit),
    "gaussian": Choice(lambda decoder, settings: likelihoods.Gaussian(decoder, settings.scale or SCALE), torch.clone),
    "gaussian-learned": Choice(_of_scale(likelihoods.Gaussian), torch.clone),
    "gaussian-per-pixel": Choice(_of_scale(likelihoods.Gaussian, "per-pixel"), torch.clone, 2),
    "laplace": Choice(_of_scale(likelihoods.Laplace), torch.clone),
    "student-t": Choice(_of_scale(likelihoods.StudentT), torch.clone),
    "log-normal": Choice(lambda decoder, _: likelihoods.LogNormal(decoder), _log),
    "poisson": Choice(lambda decoder, _: likelihoods.Poisson(decoder), _log),
    "negative-binomial": Choice(lambda decoder, _: likelihoods.NegativeBinomial(decoder), _log),
}


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
        observed = data.train.x[~data.train.x.isnan()]
        low, high = observed.min().item(), observed.max().item()
        refuse("--likelihood", "zeros and ones, for bernoulli", f"numbers from {low:g} to {high:g}",
               "pass --binarization dynamic, for numbers from 0 to 1, or --likelihood gaussian-learned")  # fmt: skip
    if settings.network == "convolutional" and not is_image(data.shape):
        refuse("--network", "images, for convolutional", f"data of shape {data.shape}", "leave it out")
    likelihood = settings.likelihood or ("bernoulli" if is_binary(data.train.x) else "gaussian-learned")
    num_numbers = math.prod(data.shape)
    latent_dim = 50 if is_image(data.shape) or num_numbers >= 100 else max(1, num_numbers // 2)
    return replace(
        settings,
        prior=settings.prior or "standard-normal",
        num_components=settings.num_components or _most(NUM_COMPONENTS.get(settings.prior or ""), len(data.train)),
        likelihood=likelihood,
        scale=settings.scale or (SCALE if likelihood == "gaussian" else None),
        min_scale=settings.min_scale or (MIN_SCALE if likelihood in LEARNED_SCALE else None),
        posterior=settings.posterior or "diagonal",
        latent_dim=settings.latent_dim or latent_dim,
        network=settings.network or "mlp",
        hidden_dims=_hidden_dims(settings.network) if settings.hidden_dims is None else settings.hidden_dims,
    )


def _hidden_dims(network: str | None) -> tuple[int, ...]:
    return () if network == "convolutional" else (200, 200)


def _most(number: int | None, num_data: int) -> int | None:
    return None if number is None else min(number, num_data)


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
        if train is None:
            some = torch.zeros(settings.num_components or 1, *shape)
            return _of_networks(settings, some, some[0], num_labels or 0)
        x, mean = train().x, train().mean.nan_to_num()  # of an entry that was never observed, 0
        return _of_networks(settings, torch.where(x.isnan(), mean.to(x), x), mean, num_labels or 0)


def _of_networks(settings: Settings, x: Tensor, mean: Tensor, num_labels: int) -> VAE:
    """Make encoder and decoder, which start from the data's mean."""
    assert settings.likelihood is not None
    chosen = LIKELIHOODS[settings.likelihood]
    if settings.network == "convolutional":
        decoder, encoder = _convolutions(settings, mean, chosen, num_labels)
    else:
        decoder, encoder = _perceptrons(settings, mean.flatten(), chosen, num_labels)
        x = x.flatten(1)
    posterior = _posterior(settings, encoder)
    likelihood = chosen.make(decoder, settings)
    return VAE(
        _prior(settings, posterior, x),
        likelihoods.Incomplete(likelihood) if settings.missing == "keep" else likelihood,
        posterior,
        context_shapes=[(num_labels,)] if num_labels else [],
    )


def _perceptrons(settings: Settings, mean: Tensor, chosen: Choice, num_labels: int) -> Networks:
    assert settings.latent_dim is not None and settings.hidden_dims is not None
    hidden = settings.hidden_dims
    bias = torch.cat([chosen.start(mean), torch.zeros(len(mean) * (chosen.num_outputs - 1))])
    decoder = MLP(settings.latent_dim + num_labels, hidden, len(bias), output_bias=bias)
    sees_mask = settings.missing == "keep"
    centre = torch.cat([mean, torch.ones(len(mean) * sees_mask), torch.zeros(num_labels)])

    def encoder(num_outputs: int) -> torch.nn.Module:
        network = MLP(len(centre), hidden[::-1], num_outputs, input_mean=centre)
        return WithMask(network, fill=mean) if sees_mask else network

    return decoder, encoder


def _convolutions(settings: Settings, mean: Tensor, chosen: Choice, num_labels: int) -> Networks:
    assert settings.latent_dim is not None and settings.hidden_dims is not None
    hidden, (num_channels, *size) = settings.hidden_dims, mean.shape
    bias = torch.cat([chosen.start(mean.mean((1, 2))), torch.zeros(num_channels * (chosen.num_outputs - 1))])
    inner = CHANNELS[: int(math.log2(min(size)))]  # each stage halves an image
    decoder = ConvDecoder(settings.latent_dim + num_labels, inner[::-1], (len(bias), *size), hidden, output_bias=bias)

    sees_mask = settings.missing == "keep"
    centre = torch.cat([mean, torch.ones_like(mean)[: num_channels * sees_mask]])

    def encoder(num_outputs: int) -> torch.nn.Module:
        network = ConvEncoder(centre.shape, inner, num_outputs, hidden[::-1], context_dim=num_labels)
        centred = Standardized(network, shift=centre)
        return WithMask(centred, fill=mean, event_dim=3) if sees_mask else centred

    return decoder, encoder


def _posterior(settings: Settings, encoder: Callable[[int], torch.nn.Module]) -> torch.nn.Module:
    assert settings.latent_dim is not None
    latent_dim = settings.latent_dim
    if settings.posterior == "flow":
        return posteriors.Flow(encoder(2 * latent_dim + CONTEXT_DIM), latent_dim, CONTEXT_DIM)
    if settings.posterior == "full-rank":
        return posteriors.FullRankNormal(encoder(latent_dim * (latent_dim + 3) // 2), latent_dim)
    return posteriors.DiagonalNormal(encoder(2 * latent_dim))


def _prior(settings: Settings, posterior: torch.nn.Module, x: Tensor) -> torch.nn.Module:
    assert settings.latent_dim is not None
    if settings.prior == "vamp":
        return priors.VampPrior(posterior, x[: settings.num_components])
    if settings.prior == "mixture":
        return priors.GaussianMixture(settings.latent_dim, settings.num_components or NUM_COMPONENTS["mixture"])
    return priors.Flow(settings.latent_dim) if settings.prior == "flow" else priors.StandardNormal(settings.latent_dim)


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
