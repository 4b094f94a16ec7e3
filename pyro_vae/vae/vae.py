"""The VAE: a prior p(z), a likelihood p(x|z) and a posterior q(z|x), as a Pyro model and guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae._private import name_of_module
from pyro_vae.distributions import Incomplete
from pyro_vae.vae import file, param_store
from pyro_vae.vae.datum import any_parameter, fit_together
from pyro_vae.vae.programs import Guide, Model

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational autoencoder, written once as a Pyro program.

    The model is $p(x, z) = p(z)\,p(x|z)$ and the guide is $q(z|x)$, with the sites `"z"` and `"x"` in the plate
    `"data"`. Both are modules, so `SVI(vae.model, vae.guide, ...)` works, and so does `elbo(vae.model, vae.guide)` with
    a torch optimizer over its `parameters()`.

    Both can be called inside other programs: `z = vae.model(x)`. A call inside a plate at `dim=-1` takes it for the
    plate over data; plates to the left, of groups or time steps or particles, may lie around it. With a `name`, sites
    and plate are `"name/z"`, `"name/x"` and `"name/data"`, as under Pyro's `scope`.

    Args:
        prior: `forward(*context)` returns p(z), of batch shape `()` or, given context, one for each row of it.
        likelihood: `forward(z, *context)` returns p(x|z); it accepts any leading dimensions.
        posterior: `forward(x, *context)` returns q(z|x), of the prior's event shape.
        name: prefix of sites, plate and parameters, for several VAEs in one program. Without one, sites have no prefix,
            and parameters that of the first of vae, vae_1, vae_2, ... that is free in Pyro's parameter store, so that
            several VAEs of one process all train. To keep a VAE use `save`, or its `state_dict()`: parameters in the
            store after `pyro.get_param_store().load(...)` are not used, and a warning says so once for each VAE;
            `load_param_store` takes them over.
        context_shapes: shapes, for one datum, of the further arguments of `model` and `guide` (labels, covariates,
            exposure); all three parts are called with them.

    Shapes: x is `(N, *event_shape)`, or anything with as many numbers a datum: `(N, 784)` and `(N, 1, 28, 28)` alike.
    `event_shape` is the likelihood's. Inside plates to the left of that over data, x may also be
    `(..., N, *event_shape)`. Further arguments are `(..., N, *shape)`. Integer, boolean and float64 data are cast to
    the dtype of the parameters.

    Raises:
        TypeError, ValueError: if the parts do not fit together, found here and not in training; and, by `model` and
            `guide`, for data outside the likelihood's support, of another width, without a batch dimension, with NaN
            (unless the likelihood is `likelihoods.Incomplete`) or infinity, or on another device; for rows that do not
            fit the plates around; and for a site or plate whose name is taken.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
        backpropagation and approximate inference in deep generative models; with context, Sohn, Lee and Yan (2015),
        Learning structured output representation using deep conditional generative models.

    Examples:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.likelihoods.Bernoulli(pv.nn.MLP(2, [16], 784)),
        ...     posterior=pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [16], 2 * 2)),
        ... )
        >>> vae.event_shape
        torch.Size([784])
        >>> vae.guide(torch.ones(5, 1, 28, 28)).shape  # a draw of z for each image
        torch.Size([5, 2])

        Given the label y of each digit, p(x|z, y) and q(z|x, y):

        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.likelihoods.Bernoulli(pv.nn.MLP(2 + 10, [16], 784)),
        ...     posterior=pv.posteriors.DiagonalNormal(pv.nn.MLP(784 + 10, [16], 2 * 2)),
        ...     context_shapes=[(10,)],
        ... )
        >>> vae.model(torch.ones(5, 784), torch.eye(10)[:5]).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        name: str | None = None,
        context_shapes: Sequence[int | Sequence[int]] = (),
    ) -> None:
        for argument, part in {"prior": prior, "likelihood": likelihood, "posterior": posterior}.items():
            _require_module(argument, part)
        name = _checked_name(name)
        shapes = tuple(_checks.shape(f"context_shapes[{i}]", shape) for i, shape in enumerate(context_shapes))
        super().__init__()
        datum = fit_together(prior, likelihood, posterior, shapes)
        self.model = Model(prior, likelihood, datum, name)
        self.guide = Guide(posterior, datum, name)

    @property
    def name(self) -> str | None:
        """The prefix of sites, plate and parameters; a copy can be given another."""
        return self.model.name

    @name.setter
    def name(self, name: str | None) -> None:
        self.model.name = self.guide.name = _checked_name(name)

    @property
    def prior(self) -> nn.Module:
        """The module whose `forward(*context)` is p(z)."""
        return self.model.prior

    @property
    def likelihood(self) -> nn.Module:
        """The module whose `forward(z, *context)` is p(x|z)."""
        return self.model.likelihood

    @property
    def posterior(self) -> nn.Module:
        """The module whose `forward(x, *context)` is q(z|x)."""
        return self.guide.posterior

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.model.datum.event_shape

    @property
    def context_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes, for one datum, of the further arguments."""
        return self.model.datum.context_shapes

    def save(self, path: str | PathLike[str]) -> None:
        """Write the VAE to one file, which `pv.load(path)` reads; a file of that name is replaced.

        The file is safetensors, with parameters, buffers and their dtype; its header says what the VAE is made of:
        public classes of pyro_vae and torch.nn, with their arguments. A VAE with other parts is written too, and
        `pv.load(path, vae)` then needs one made of the same. Which parameters are frozen is not kept.

        Examples:
            >>> import pathlib, tempfile, torch
            >>> import pyro_vae as pv
            >>> vae = pv.VAE(
            ...     pv.priors.StandardNormal(1),
            ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
            ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
            ... )
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "vae.safetensors"
            >>> vae.save(path)
            >>> again = pv.load(path)
            >>> all(map(torch.equal, vae.parameters(), again.parameters()))
            True
        """
        file.write(Path(path), self)

    def load_param_store(self, saved: str | PathLike[str] | Mapping[str, Any], name: str | None = None) -> None:
        """Set the parameters to those that a VAE of the same parts left in Pyro's parameter store.

        Buffers are not in that store: a running mean of BatchNorm stays as it is, and a warning says so.

        Args:
            saved: a file of `pyro.get_param_store().save(...)`, of which no code is run, or `get_state()`.
            name: under which they lie there: the VAE's `name`, or "vae" for one without.

        Raises:
            TypeError, ValueError: for another file, and for parameters that are missing, that this VAE does not have,
                or that have other shapes, before any of them changes.

        Examples:
            >>> import pyro, torch
            >>> import pyro_vae as pv
            >>> def new():
            ...     return pv.VAE(
            ...         pv.priors.StandardNormal(1),
            ...         pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
            ...         pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
            ...         name="example",
            ...     )
            >>> trained, vae = new(), new()
            >>> _ = pv.fit(trained, torch.randn(50, 3), num_epochs=1, progress=False)
            >>> vae.load_param_store(pyro.get_param_store().get_state())
            >>> all(map(torch.equal, trained.parameters(), vae.parameters()))
            True
        """
        halves = {half.role: half for half in (self.model, self.guide)}
        param_store.load(saved, _checked_name(name) or self.name or "vae", halves)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Raise an error: a VAE is two programs, `model` and `guide`."""
        raise TypeError("vae: expected a call of one of its programs; got one of the VAE; use vae.model or vae.guide.")

    def check(self, x: Any, name: str = "x") -> Tensor:
        """View `x` as `(N, *event_shape)` in the parameters' dtype, or raise an error if it has no likelihood."""
        return self.model.datum.check(x, any_parameter(self), name)

    def encode(self, x: Any, *context: Any) -> dist.Distribution:
        """Return q(z|x), of batch shape `(N,)`. Inside a Pyro program its parameters are registered, as by `guide`."""
        values = self.guide.registered_or_looked_for()
        return self.guide.posterior_of(self.guide.check(x), self.guide.check_context(context), values)

    def decode(self, z: Any, *context: Any) -> dist.Distribution:
        """Return p(x|z), of batch shape `(N,)`. Inside a Pyro program its parameters are registered, as by `model`."""
        values = self.model.registered_or_looked_for()
        return self.model.likelihood_of(self.model.check_latent(z), self.model.check_context(context), values)

    @torch.no_grad()
    def reconstruct(self, x: Any, *context: Any) -> Tensor:
        """Return the mean of p(x|z) at the mean of q(z|x): `(N, *event_shape)`, finite numbers.

        Where a distribution has no finite mean (a Categorical, a Cauchy), its mode replaces it; of a flow, the image
        of the mean that is transformed.

        Raises:
            ValueError: if p(x|z) or q(z|x) has neither, or none that Pyro knows.
        """
        z = _centre("posterior", self.encode(x, *context))
        return _centre("likelihood", self.decode(z, *context))

    @torch.no_grad()
    def sample(self, num_samples: int = 1, *context: Any) -> Tensor:
        """Draw from p(x), by way of p(z): `(num_samples, *event_shape)`. The context has a row for each, or one."""
        rows = self.model.datum.num_rows(None, None, self.model.check_context(context))
        if rows not in (None, num_samples):
            raise ValueError(
                f"num_samples: expected {rows}, one for each row of the context; got {num_samples}; pass as many rows."
            )
        trace = poutine.trace(self.model).get_trace(None, *context, num_data=num_samples)
        return trace.nodes[self.model.site("x")]["value"]


def _centre(part: str, distribution: dist.Distribution) -> Tensor:
    """Return the mean, with the mode's numbers where it is not finite."""
    mean = _known(distribution, "mean")
    if mean is not None and mean.isfinite().all():
        return mean
    mode = _mode(distribution)
    if mode is None:
        mode = getattr(distribution, "centre", None)
    if mode is not None:
        centre = mode if mean is None else torch.where(mean.isfinite(), mean, mode.to(mean.dtype))
        # Even if all probabilities are NaN, argmax returns a value.
        if centre.isfinite().all() and not distribution.log_prob(mode).isnan().any():
            return centre
    of_mean = "no mean that Pyro knows" if mean is None else "a mean of NaN or infinity"
    of_mode = "no mode that Pyro knows" if mode is None else "a mode that is no better"
    raise ValueError(
        f"{part}: expected a distribution with a finite mean or with a mode; got {_described(distribution)}, with "
        f"{of_mean} and {of_mode}; draw from it, vae.decode(vae.encode(x).sample()).sample(), or take another."
    )


def _mode(distribution: Any) -> Tensor | None:
    """Return the mode, if it is known; for a discrete distribution over numbers, search all of them."""
    if isinstance(distribution, (torch.distributions.Independent, dist.MaskedDistribution, Incomplete)):
        return _mode(distribution.base_dist)
    if isinstance(distribution, ExpandedDistribution):
        mode = _mode(distribution.base_dist)
        return None if mode is None else mode.expand(distribution.batch_shape + distribution.event_shape)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        return _likeliest(distribution, distribution.component_distribution)
    mode = _known(distribution, "mode")
    return _likeliest(distribution, distribution) if mode is None else mode


def _likeliest(distribution: Any, enumerated: Any) -> Tensor | None:
    """Return the likeliest of the numbers that another distribution enumerates; None if it does not."""
    if not enumerated.has_enumerate_support or enumerated.event_shape:
        return None
    numbers = enumerated.enumerate_support(expand=False).flatten()
    log_probs = distribution.log_prob(numbers.reshape(-1, *[1] * len(distribution.batch_shape)))
    return numbers[log_probs.argmax(0)]


def _known(distribution: Any, name: str) -> Tensor | None:
    """Return an attribute that distributions need not have."""
    try:
        return getattr(distribution, name)
    except NotImplementedError:
        return None


def _described(distribution: Any) -> str:
    """Name a distribution, with what it wraps in brackets."""
    name = type(distribution).__name__
    inner = getattr(distribution, "base_dist", getattr(distribution, "component_distribution", None))
    return name if inner is None else f"{name}({_described(inner)})"


def _require_module(argument: str, part: Any) -> None:
    if not isinstance(part, nn.Module):
        raise TypeError(
            f"{argument}: expected a torch.nn.Module whose forward returns a Pyro distribution; got "
            f"{type(part).__name__}; pass an instance."
        )
    nameless = next(
        (each for each in part.modules() if isinstance(each, PyroModule) and not name_of_module(each)), None
    )
    if nameless is not None:
        raise ValueError(
            f"{argument}: expected modules of torch's, or a PyroModule with a name; got {type(nameless).__name__} "
            "without one, whose parameters all VAEs of a process would share in Pyro's store; call "
            "super().__init__(name) with a name of its own, or use torch.nn.Parameter."
        )


def _checked_name(name: Any) -> str | None:
    if name is None or (isinstance(name, str) and name and "/" not in name and "$$$" not in name):
        return name
    kind = ValueError if isinstance(name, str) else TypeError
    raise kind(
        f"name: expected text without '/' and '$$$', or None; got {name!r} of type {type(name).__name__}; pass such a "
        "string."
    )
