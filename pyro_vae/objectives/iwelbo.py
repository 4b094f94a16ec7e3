"""Bounds of several particles: importance-weighted, and Rényi's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._private import FakeTensor
from pyro_vae.objectives.base import LogWeights, Objective
from pyro_vae.program.sites import drawn_sites

__all__ = ["IWELBO", "RenyiBound"]

Gradient = Literal["standard", "stl", "dreg"]


class IWELBO(Objective):
    r"""The importance-weighted bound $L_K = E \log \frac{1}{K} \sum_{k=1}^K w_k \le \log p(x)$, for each datum.

    With $w_k = p(x, z_k) / q(z_k|x)$ and K = `num_particles`; it grows with K, from the ELBO (K = 1) to log p(x). The
    value is the bound itself, nats, summed over the data times their scale, whichever gradient is chosen. With
    $\tilde w_k = w_k / \sum_j w_j$:

    - `"standard"`: the gradient of the value. For the guide its signal-to-noise ratio falls with K.
    - `"dreg"`: for the model the same; for the guide
      $\sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi}$, doubly reparametrized: the same
      expectation, and a variance that falls with K.
    - `"stl"`: for the guide $\sum_k \tilde w_k \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi}$, which
      "sticks to the landing": no noise where the guide is exact. Unbiased for K = 1 alone.

    Args:
        num_particles: K, in all groups together.
        gradient: `"standard"`, `"dreg"` or `"stl"`.
        num_groups: M: the mean of M bounds of K / M particles (MIWAE), another lower bound.
        elbo_weight: $\beta$ from 0 to 1, $\beta\, \mathrm{ELBO} + (1 - \beta) L_K$ (CIWAE), another lower bound.
        guide_groups: train the guide by the mean of so many bounds of fewer particles, as of `num_groups`, and the
            model by the bound of all (PIWAE). The value is the model's.
        kwargs: Pyro's, as of `Trace_ELBO`; particles are vectorized unless `vectorize_particles=False`.

    Raises:
        TypeError, ValueError: for impossible numbers, for groups that do not divide the particles, and for latents
            that are not reparametrized.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Roeder, Wu and Duvenaud (2017),
        Sticking the landing; Rainforth et al. (2018), Tighter variational bounds are not necessarily better; Tucker,
        Lawson, Gu and Maddison (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives. PIWAE,
        MIWAE and CIWAE are by Rainforth et al.

    Examples:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> x = torch.randn(200, 3)
        >>> history = pv.fit(vae, x, objective=IWELBO(5, gradient="dreg"), num_epochs=1, progress=False)
    """

    def __init__(
        self,
        num_particles: int = 5,
        gradient: Gradient = "standard",
        *,
        num_groups: int = 1,
        elbo_weight: float = 0.0,
        guide_groups: int | None = None,
        vectorize_particles: bool = True,
        **kwargs: Any,
    ) -> None:
        num_particles = _checks.whole_number("num_particles", num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles, **kwargs)
        self.gradient = _checks.choice("gradient", gradient, ("standard", "dreg", "stl"))
        self.num_groups = _divisor("num_groups", num_groups, num_particles)
        self.guide_groups = None if guide_groups is None else _divisor("guide_groups", guide_groups, num_particles)
        if isinstance(elbo_weight, bool) or not isinstance(elbo_weight, (int, float)) or not 0 <= elbo_weight <= 1:
            raise ValueError(f"elbo_weight: expected a number from 0 to 1; got {elbo_weight!r}; pass one.")
        self.elbo_weight = float(elbo_weight)
        if self.guide_groups and (self.num_groups > 1 or self.elbo_weight):
            raise ValueError(
                f"guide_groups: expected None beside num_groups={num_groups} and elbo_weight={elbo_weight}, for which "
                f"model and guide have one bound; got {guide_groups}; leave the others out."
            )

    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the bound, and what has the chosen gradient."""
        if self.guide_groups:
            return self._apart(model, guide, args, kwargs)
        if self.gradient == "standard":
            loss = self._loss(self.log_weights(model, guide, args, kwargs))
            return loss, loss
        paths = [self._along_the_path(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        log_weights = self._of_particles([path.log_weight for path in paths])
        loss = self._loss(LogWeights(log_weights, paths[0].scale))
        if self.gradient == "dreg":
            factors = self._factor_of_the_guide(log_weights.detach())
            for path, factor in zip(paths, [factors] if self._is_one_run else factors, strict=True):
                path.draws.scale_gradients_by(factor, path.shared)
        return loss.detach(), loss

    @property
    def _is_one_run(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _of_particles(self, runs: list[Tensor]) -> Tensor:
        return runs[0] if self._is_one_run else torch.stack(runs)

    def _apart(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the bound, and what has its gradient for the model, and for the guide that of groups.

        The draws are leaves. What the groups' bound says of them is found first, by a gradient that stops there; the
        model runs once, and the gradients of its parameters are taken once.
        """
        parts = [self._at_leaves(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        model_log_prob, guide_log_prob = (
            self._of_particles([getattr(part, name) for part in parts]) for name in ("model", "guide")
        )
        log_weights, scale = model_log_prob - guide_log_prob, parts[0].scale
        loss = self._loss(LogWeights(log_weights.detach(), scale))
        share = log_weights.detach().softmax(0)
        of_groups = log_weights.detach().unflatten(0, (self.guide_groups, -1)).softmax(1).flatten(0, 1)
        of_draws = (of_groups.square() if self.gradient == "dreg" else of_groups) / self.guide_groups
        surrogate = (scale * share * model_log_prob).sum()
        if self.gradient == "standard":
            surrogate = surrogate - (scale * of_draws * guide_log_prob).sum()
        draws = [draw for part in parts for draw in part.draws.leaves]
        if draws and log_weights.requires_grad:
            leaves, values = zip(*draws, strict=True)
            gradients = torch.autograd.grad(
                (scale * of_draws * log_weights).sum(), leaves,
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            surrogate = surrogate + sum((g * value).sum() for g, value in zip(gradients, values, strict=True))
        return loss, -surrogate

    def _at_leaves(self, model_trace: Any, guide_trace: Any) -> _AtLeaves:
        """Weigh a run of which the draws are leaves."""
        found = self._weights_of(model_trace, guide_trace)
        shared = self._shared_dims(model_trace, guide_trace)
        model, guide = (self._log_density(trace, shared) for trace in (model_trace, guide_trace))
        drawn = guide_trace.draws.trace
        drawn.compute_log_prob()
        _refuse_another(guide, self._log_density(drawn, shared))
        return _AtLeaves(model, guide, found.scale, guide_trace.draws)

    def _loss(self, weights: LogWeights) -> Tensor:
        grouped = self._grouped(weights.value)
        bound = (grouped.logsumexp(1) - math.log(grouped.shape[1])).mean(0)
        if self.elbo_weight:
            bound = self.elbo_weight * weights.value.mean(0) + (1 - self.elbo_weight) * bound
        return -(weights.scale * bound).sum()

    def _grouped(self, log_weights: Tensor) -> Tensor:
        return log_weights.unflatten(0, (self.num_groups, -1))

    def _factor_of_the_guide(self, log_weights: Tensor) -> Tensor:
        """Return what the gradient of each draw is multiplied with: the normalised weight, for a bound alone."""
        share = self._grouped(log_weights).softmax(1).flatten(0, 1)
        if not self.elbo_weight:
            return share
        ours, elbos = (1 - self.elbo_weight) / self.num_groups, self.elbo_weight / self.num_particles
        return (elbos + ours * share.square()) / (elbos + ours * share)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Run guide and model, at the guide's draws or, for gradients apart from each other, at copies of them."""
        if self.gradient == "standard" and not self.guide_groups:
            return super()._get_trace(model, guide, args, kwargs)
        draws = _Draws(poutine.trace(guide).get_trace(*args, **kwargs), are_leaves=bool(self.guide_groups))
        model_trace, guide_trace = super()._get_trace(model, poutine.replay(guide, draws.copies), args, kwargs)
        guide_trace.draws = draws
        if not self.guide_groups:
            guide_trace.apart = poutine.trace(poutine.replay(guide, draws.detached)).get_trace(*args, **kwargs)
            guide_trace.apart.compute_log_prob()
        return model_trace, guide_trace

    def _along_the_path(self, model_trace: Any, guide_trace: Any) -> _Path:
        """Weigh a run, with log q as a function of the draws, but not of the guide's parameters."""
        found = self._weights_of(model_trace, guide_trace)
        shared = self._shared_dims(model_trace, guide_trace)
        score = self._log_density(guide_trace.apart, shared)
        _refuse_another(self._log_density(guide_trace, shared), score)
        return _Path(found.value + score - score.detach(), found.scale, shared, guide_trace.draws)


def _refuse_another(log_prob: Tensor, again: Tensor) -> None:
    """Refuse a guide that says something else of the same draws when it is run again, as dropout does."""
    if isinstance(log_prob, FakeTensor):  # without values; the first call of a kind has them
        return
    if not torch.allclose(log_prob, again.to(log_prob), rtol=1e-4, atol=1e-3, equal_nan=True):
        raise ValueError(
            "guide: expected the same density of the same draws at each run, of which this gradient needs "
            "several; got another, as with dropout; take gradient='standard' without guide_groups, or leave it out."
        )


def _divisor(name: str, value: Any, num_particles: int) -> int:
    number = _checks.whole_number(name, value)
    if num_particles % number:
        raise ValueError(f"{name}: expected a divisor of the {num_particles} particles; got {value}; change one.")
    return number


class _Path(NamedTuple):
    """Log weights `(K, *plates)` whose gradients for the guide run through its draws alone."""

    log_weight: Tensor
    scale: Tensor | float
    shared: set[int]
    draws: _Draws


class _AtLeaves(NamedTuple):
    """Log densities `(K, *plates)` of draws that are leaves."""

    model: Tensor
    guide: Tensor
    scale: Tensor | float
    draws: _Draws


class _Draws:
    """Draws of a guide, and copies: leaves, or such that gradients can be scaled on their way back, or carry none."""

    def __init__(self, trace: Any, are_leaves: bool) -> None:
        self.trace, self.copies, self.detached = trace, trace.copy(), trace.copy()
        self.sites = drawn_sites(trace)
        self.leaves: list[tuple[Tensor, Tensor]] = []
        """Leaves, and the draws that they are copies of."""
        self.scaling = _Scaling()
        for name, site in self.sites.items():
            self.detached.nodes[name] = site | {"value": site["value"].detach()}
            if site["value"].requires_grad:
                copy = self._leaf(site["value"]) if are_leaves else self._copy(site)
                self.copies.nodes[name] = site | {"value": copy}

    def scale_gradients_by(self, factor: Tensor, shared: set[int]) -> None:
        """Multiply gradients by factors `(*plates)`, in the dimensions that are shared."""
        self.scaling.factor, self.scaling.shared = factor, shared

    def _leaf(self, value: Tensor) -> Tensor:
        leaf: Any = value.detach().requires_grad_()
        leaf.is_draw = True  # no parameter: a compiled step asks for no gradient of it
        self.leaves.append((leaf, value))
        return leaf

    def _copy(self, site: dict[str, Any]) -> Tensor:
        copy = site["value"].clone()
        copy.register_hook(partial(self.scaling.of, event_dim=site["fn"].event_dim))
        return copy


class _Scaling:
    """What gradients on their way back are multiplied with.

    It knows no draws: a hook on a draw that led back to it would be a cycle through autograd's graph, which nothing
    collects.
    """

    factor: Tensor | None = None
    shared: set[int]

    def of(self, gradient: Tensor, event_dim: int) -> Tensor:
        """Multiply in the dimensions that are shared."""
        return gradient if self.factor is None else gradient * self._spread(self.factor, event_dim)

    def _spread(self, factor: Tensor, event_dim: int) -> Tensor:
        """View the factor so that it is broadcast over the dimensions that are not shared, and the event's."""
        sizes = iter(factor.shape)
        width = max((-dim for dim in self.shared), default=0)
        batch = [next(sizes) if -dim in self.shared else 1 for dim in range(width, 0, -1)]
        return factor.reshape(*batch, *[1] * event_dim)


class RenyiBound(Objective):
    r"""Rényi's bound $\frac{1}{1 - \alpha} E \log \frac{1}{K} \sum_k w_k^{1 - \alpha}$, for each datum.

    From log p(x) ($\alpha = 0$, many particles) to the ELBO ($\alpha \to 1$), and below. For $0 \le \alpha < 1$ and
    $\alpha > 1$ its expectation is at most log p(x). For $\alpha < 0$ it is **no bound**: its limit for many particles
    lies above log p(x), its expectation for few on either side. The value is minus the bound, nats, summed over the
    data times their scale.

    Args:
        alpha: any number but 1, where it is the ELBO.
        num_particles: K.
        kwargs: Pyro's, as of `Trace_ELBO`; particles are vectorized unless `vectorize_particles=False`.

    Raises:
        TypeError, ValueError: for impossible numbers, and for latents that are not reparametrized.

    References:
        Li and Turner (2016), Rényi divergence variational inference.

    Examples:
        >>> RenyiBound(alpha=0.5, num_particles=10).alpha
        0.5
    """

    def __init__(
        self, alpha: float = 0.5, num_particles: int = 5, *, vectorize_particles: bool = True, **kwargs: Any
    ) -> None:
        num_particles = _checks.whole_number("num_particles", num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles, **kwargs)
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha == 1:
            raise ValueError(f"alpha: expected a number other than 1; got {alpha!r}; at 1 it is Trace_ELBO.")
        self.alpha = float(alpha)

    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the bound, twice."""
        weights = self.log_weights(model, guide, args, kwargs)
        scaled = (1 - self.alpha) * weights.value
        bound = (scaled.logsumexp(0) - math.log(len(scaled))) / (1 - self.alpha)
        loss = -(weights.scale * bound).sum()
        return loss, loss
