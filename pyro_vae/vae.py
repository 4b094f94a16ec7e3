"""The VAE: a prior p(z), a likelihood p(x|z) and a posterior q(z|x), as a Pyro model and guide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational autoencoder, written once as a Pyro program.

    The model is $p(x, z) = p(z)\,p(x|z)$ and the guide is $q(z|x)$, with the sites `"z"` and `"x"` in the plate
    `"data"`. Both are modules, so `SVI(vae.model, vae.guide, ...)` works, and so does `elbo(vae.model, vae.guide)` with
    a torch optimizer over its `parameters()`.

    Args:
        prior: `forward()` returns p(z), of batch shape `()`.
        likelihood: `forward(z)` returns p(x|z); it accepts any leading dimensions.
        posterior: `forward(x)` returns q(z|x), of the prior's event shape.
        name: prefix of the parameters in Pyro's parameter store. By default the first of vae, vae_1, vae_2, ... whose
            place there is free, so that several VAEs of one process all train. To save a VAE take its `state_dict()`.

    Shapes: x is `(N, *event_shape)`, or anything with as many numbers a datum: `(N, 784)` and `(N, 1, 28, 28)` alike.
    `event_shape` is the likelihood's. Integer, boolean and float64 data are cast to the dtype of the parameters.

    Raises:
        TypeError, ValueError: if the parts do not fit together, found here and not in training; and, by `model` and
            `guide`, for data outside the likelihood's support, of another width, without a batch dimension, with NaN
            or infinity, or on another device.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
        backpropagation and approximate inference in deep generative models.

    Examples:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.StandardNormal(2),
        ...     likelihood=pv.Bernoulli(pv.nn.MLP(2, [16], 784)),
        ...     posterior=pv.DiagonalNormal(pv.nn.MLP(784, [16], 2 * 2)),
        ... )
        >>> vae.event_shape
        torch.Size([784])
        >>> vae.guide(torch.ones(5, 1, 28, 28)).shape  # a draw of z for each image
        torch.Size([5, 2])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module, name: str | None = None) -> None:
        for argument, part in {"prior": prior, "likelihood": likelihood, "posterior": posterior}.items():
            _require_module(argument, part)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected text or None; got {name!r} of type {type(name).__name__}; pass a string.")
        super().__init__()
        observation = _fit_together(prior, likelihood, posterior)
        self.model = Model(prior, likelihood, observation, name)
        self.guide = Guide(posterior, observation, name)

    @property
    def prior(self) -> nn.Module:
        """The module whose `forward()` is p(z)."""
        return self.model.prior

    @property
    def likelihood(self) -> nn.Module:
        """The module whose `forward(z)` is p(x|z)."""
        return self.model.likelihood

    @property
    def posterior(self) -> nn.Module:
        """The module whose `forward(x)` is q(z|x)."""
        return self.guide.posterior

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.model.observation.event_shape

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """A VAE is two programs: this says so."""
        raise TypeError("vae: expected a call of one of its programs; got one of the VAE; use vae.model or vae.guide.")

    def check(self, x: Any, name: str = "x") -> Tensor:
        """`x` as the model sees it, `(N, *event_shape)` in the parameters' dtype; an error if it has no likelihood."""
        return self.model.observation.check(x, _any_parameter(self), name)

    def encode(self, x: Tensor) -> dist.Distribution:
        """q(z|x), of batch shape `(N,)`."""
        return self.posterior(self.check(x))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) at the mean of q(z|x): `(N, *event_shape)`."""
        return self.likelihood(self.encode(x).mean).mean

    @torch.no_grad()
    def sample(self, num_samples: int = 1) -> Tensor:
        """Draws from p(x), by way of p(z): `(num_samples, *event_shape)`."""
        return poutine.trace(self.model).get_trace(num_data=num_samples).nodes["x"]["value"]


class _Program(nn.Module):
    """What model and guide share: data are checked, and parameters handed to Pyro's store, before anything is drawn."""

    role: str

    def __init__(self, observation: Observation, name: str | None) -> None:
        super().__init__()
        self.observation = observation
        self.name = name
        self._name_in_use = name or "vae"

    def _check(self, x: Any) -> Tensor:
        return self.observation.check(x, _any_parameter(self))

    def _register(self) -> None:
        """Hand the parameters to the store, where SVI finds them.

        The store keeps the first tensor that a name is given, and SVI trains the store's: under a name that is taken,
        a second module would silently never train.
        """
        for name in self._names():
            full_name = f"{name}.{self.role}"
            if not _taken_by_another(full_name, self):
                self._name_in_use = name
                pyro.module(full_name, self)
                return
        raise ValueError(
            f"name: expected a name that is free in Pyro's parameter store; got {self.name!r}, under which another "
            "module's parameters lie; give this VAE another, or call pyro.clear_param_store() if the other is gone; to "
            f"take over values of a loaded store, pyro.module({full_name!r}, ..., update_module_params=True)."
        )

    def _names(self) -> Iterator[str]:
        if self.name is not None:
            return iter([self.name])
        numbered = (f"vae_{i}" for i in itertools.count(1))
        return itertools.chain([self._name_in_use, "vae"], numbered)


class Model(_Program):
    """The generative program p(z) p(x|z): the `model` of a `VAE`."""

    role = "model"

    def __init__(self, prior: nn.Module, likelihood: nn.Module, observation: Observation, name: str | None) -> None:
        super().__init__(observation, name)
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Any = None, num_data: int | None = None, subsample_size: int | None = None) -> Tensor:
        """Draw z, and draw x or, if it is given, condition on it.

        Args:
            x: data, or None to generate.
            num_data: how many data x stands for (log densities are then scaled by `num_data / len(x)`); without x, how
                many to generate (1 by default).
            subsample_size: with x the whole data set, how many of its rows to take at random.

        Returns:
            z, of shape `(N, latent_dim)`, with the leading dimensions of outer plates before it.
        """
        if x is not None:
            x = self._check(x)
        self._register()
        with _data_plate(x, num_data, subsample_size) as rows:
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=_take(x, rows, subsample_size))
        return z


class Guide(_Program):
    """The amortized posterior q(z|x): the `guide` of a `VAE`."""

    role = "guide"

    def __init__(self, posterior: nn.Module, observation: Observation, name: str | None) -> None:
        super().__init__(observation, name)
        self.posterior = posterior

    def forward(self, x: Any, num_data: int | None = None, subsample_size: int | None = None) -> Tensor:
        """Draw z from q(z|x). The arguments, and what is returned, are the model's."""
        x = self._check(x)
        self._register()
        with _data_plate(x, num_data, subsample_size) as rows:
            return pyro.sample("z", self.posterior(_take(x, rows, subsample_size)))


@dataclass(frozen=True)
class Observation:
    """What one datum is: its shape, and the values to which the likelihood gives a density."""

    event_shape: torch.Size
    support: Any

    def check(self, x: Any, like: Tensor | None, name: str = "x") -> Tensor:
        """`x` viewed as `(N, *event_shape)` with the dtype of `like`, or an error that says what is wrong with it."""
        x = _checks.batch_of(name, _checks.tensor(name, x), self.event_shape)
        if like is not None:
            x = _checks.same_device(name, x, like.device)
        x = _checks.finite(name, x.to(torch.get_default_dtype() if like is None else like.dtype))
        return x if self.support is None else _checks.in_support(name, x, self.support)


def _data_plate(x: Tensor | None, num_data: int | None, subsample_size: int | None) -> pyro.plate:
    if num_data is not None:
        num_data = _checks.whole_number("num_data", num_data, minimum=1 if x is None else len(x))
    if subsample_size is not None:
        return pyro.plate("data", _whole_size(x, num_data, subsample_size), subsample_size, dim=-1)
    if x is None:
        return pyro.plate("data", num_data or 1, dim=-1)
    return pyro.plate("data", num_data or len(x), subsample=x, dim=-1)


def _whole_size(x: Tensor | None, num_data: int | None, subsample_size: int) -> int:
    _checks.whole_number("subsample_size", subsample_size)
    if x is None or num_data is not None:
        raise ValueError(
            "subsample_size: expected it with x, the whole data set, and without num_data; got "
            f"{'no x' if x is None else f'num_data={num_data}'}; pass one of the two, and x."
        )
    if subsample_size > len(x):
        raise ValueError(f"subsample_size: expected at most {len(x)}, the data in x; got {subsample_size}; take fewer.")
    return len(x)


def _take(x: Tensor | None, rows: Tensor, subsample_size: int | None) -> Tensor | None:
    return x if x is None or subsample_size is None else x[rows]


def _fit_together(prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> Observation:
    """Run the three parts once on zeros, drawing nothing, and read off what a datum is."""
    with _at_rest(prior, likelihood, posterior):
        latent_shape = _called("prior()", prior).event_shape
        p_x = _called("likelihood(z)", likelihood, _zeros(latent_shape, _any_parameter(likelihood)))
        _require_batch_of_one("likelihood(z)", p_x)
        q_z = _called("posterior(x)", posterior, _zeros(p_x.event_shape, _any_parameter(posterior)))
        _require_batch_of_one("posterior(x)", q_z)
    if q_z.event_shape != latent_shape:
        raise ValueError(
            f"posterior: expected q(z|x) over z of shape {tuple(latent_shape)}, the prior's; got "
            f"{tuple(q_z.event_shape)}; give its network {2 * latent_shape.numel()} outputs, or change the prior."
        )
    return Observation(p_x.event_shape, _fixed_support(p_x))


@contextmanager
def _at_rest(*parts: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no handlers, and a generator left as it was."""
    modes = {module: module.training for part in parts for module in part.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block():
        for module in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _zeros(shape: torch.Size, like: Tensor | None) -> Tensor:
    """One datum of zeros, with the dtype and device of a part's parameters."""
    return torch.zeros(1, *shape) if like is None else torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def _called(call: str, part: nn.Module, *args: Tensor) -> dist.Distribution:
    given = f" of shape {tuple(args[0].shape)}" if args else ""
    try:
        result = part(*args)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{call}: expected a distribution for an input{given}; got an error, {str(error).rstrip('.')}; make the "
            "widths of its network fit the other parts."
        ) from error
    if not isinstance(result, torch.distributions.Distribution):
        raise TypeError(f"{call}: expected it to return a Pyro distribution; got {type(result).__name__}; return one.")
    return result


def _require_module(argument: str, part: Any) -> None:
    if not isinstance(part, nn.Module):
        raise TypeError(
            f"{argument}: expected a torch.nn.Module whose forward returns a Pyro distribution; got "
            f"{type(part).__name__}; pass an instance."
        )


def _require_batch_of_one(call: str, distribution: dist.Distribution) -> None:
    if distribution.batch_shape != (1,):
        raise ValueError(
            f"{call}: expected batch shape (1,) for one datum, its other dimensions being the event's; got "
            f"{tuple(distribution.batch_shape)}; declare them with .to_event(...)."
        )


def _fixed_support(distribution: dist.Distribution) -> Any:
    """The support, or None where it depends on z."""
    support = distribution.support
    base = getattr(support, "base_constraint", support)
    return None if any(isinstance(value, Tensor) for value in vars(base).values()) else support


def _any_parameter(module: nn.Module) -> Tensor | None:
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _taken_by_another(name: str, module: nn.Module) -> bool:
    store = pyro.get_param_store()
    own = {pyro.params.param_with_module_name(name, key): value for key, value in module.named_parameters()}
    return any(key in store and store[key].unconstrained() is not value for key, value in own.items())
