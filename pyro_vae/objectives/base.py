"""Objectives: a value to report, a surrogate to differentiate, and both as compiled graphs."""

from __future__ import annotations

import copy
import inspect
import math
import types
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae._options import unknown_option
from pyro_vae._private import PYRO_STACK, FakeTensor
from pyro_vae.compile.graph import with_gradients
from pyro_vae.compile.steps import GRADIENT, UPDATE, VALUE, Kind, NotCompilable, Pair
from pyro_vae.optim import FusedAdam
from pyro_vae.program.points import delta_of
from pyro_vae.program.refusals import is_refusal, refuse_points, said
from pyro_vae.program.sites import drawn_sites, plates_of, sample_sites

__all__ = ["LogWeights", "Objective", "as_it_is", "is_same_scale", "refuse_not_reparametrized", "refuse_unguided"]

MAX_PAIRS = 16
"""How many pairs of model and guide, with their graphs, an objective keeps: the last used."""


class LogWeights(NamedTuple):
    """Log weights of the particles of an objective, nats. A datum is an element of the plates that all sites share."""

    value: Tensor
    """log p(x, z) - log q(z|x), `(K, *plates)`: without the scale of plates."""
    scale: Tensor | float
    """The factor on the bound of each datum, from `poutine.scale` and subsampling plates."""


class Objective(ELBO):
    """A loss to train by: one method returns what is reported and what is differentiated.

    An objective is a Pyro `ELBO`, with its constructor, for use in `SVI`, as a module with a torch optimizer, and in
    `fit`. From the second call of a kind on, value and gradient are a compiled graph, as in `CompiledTrace_ELBO`; with
    the `SVI` of this package and `FusedAdam` the update is part of it. Where there is no graph, a warning says why,
    once, and the call runs eagerly.

    A subclass defines `value_and_surrogate`, most often from `log_weights`. Keep a number that changes at each step,
    such as a KL weight, in a tensor that is changed in place, or pass it as an argument: a replaced attribute makes
    another program. `compile = False`, on a class or an instance, runs every call eagerly.

    Examples:
        The multi-sample bound of Burda, Grosse and Salakhutdinov (2016), $E \\log \\frac{1}{K} \\sum_k w_k$:

        >>> import math, pyro, torch
        >>> import pyro_vae as pv
        >>> class ImportanceWeighted(pv.objectives.Objective):
        ...     def value_and_surrogate(self, model, guide, *args, **kwargs):
        ...         weights = self.log_weights(model, guide, args, kwargs)
        ...         bound = weights.value.logsumexp(0) - math.log(len(weights.value))
        ...         loss = -(weights.scale * bound).sum()
        ...         return loss, loss
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> objective = ImportanceWeighted(num_particles=5, vectorize_particles=True)
        >>> svi = pv.SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-3}), objective)
        >>> svi.step(torch.randn(500, 3)) > 0
        True
    """

    compile = True

    sums_over_rows = True
    """Whether the value is a sum over the data of a batch, which can then be taken in shares."""

    def __init__(self, *args: Any, **options: Any) -> None:
        known = {*inspect.signature(ELBO.__init__).parameters, *inspect.signature(type(self).__init__).parameters}
        for name in options.keys() - known:
            raise unknown_option(
                type(self).__name__, name, options[name], known - {"self", "args", "kwargs", "options"}
            )
        super().__init__(*args, **options)

    @abstractmethod
    def value_and_surrogate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the loss to report, and the one to differentiate: two numbers, nats, summed over the data.

        It runs model and guide (`log_weights` does), and draws random numbers there and nowhere else. Where the wanted
        gradient is not that of the value, the surrogate is another function with the wanted gradient.
        """

    def losses(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return value and surrogate, checked to be two numbers."""
        found = self.value_and_surrogate(model, guide, *args, **kwargs)
        is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, Tensor) for each in found)
        if not is_pair or any(each.numel() != 1 for each in found):
            shapes = [tuple(each.shape) for each in found] if is_pair else type(found).__name__
            raise TypeError(
                f"{type(self).__name__}.value_and_surrogate: expected two tensors of one number each, the loss that is "
                f"reported and the one that is differentiated; got {shapes}; return loss, loss if they are the same, "
                "each summed over the data."
            )
        return found

    def log_weights(
        self, model: Any, guide: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> LogWeights:
        """Run model and guide for each particle; return log weights, differentiable in parameters and draws.

        Raises:
            ValueError: for latents that are not reparametrized, whose draws carry no gradient; for points (Delta) of
                the guide where the model has a density, whose log weights bound nothing.
        """
        runs = [self._weights_of(*traces) for traces in self._get_traces(model, guide, args, kwargs or {})]
        scale = runs[0].scale
        if self.vectorize_particles and self.num_particles > 1:
            return LogWeights(runs[0].value, scale)
        return LogWeights(torch.stack([run.value for run in runs]), scale)

    def _weights_of(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> LogWeights:
        """Weigh one run, per element of the plates that all sites share. Dimensions of particles come first."""
        sites = [*_sample_sites(model_trace), *_sample_sites(guide_trace)]
        refuse_not_reparametrized(guide_trace)
        refuse_unguided(model_trace, guide_trace)
        refuse_points(drawn_sites(model_trace), drawn_sites(guide_trace))
        shared = self._shared_dims(model_trace, guide_trace)
        log_weight = self._log_density(model_trace, shared) - self._log_density(guide_trace, shared)
        return LogWeights(log_weight, _common_scale(sites))

    @staticmethod
    def _shared_dims(*traces: poutine.Trace) -> set[int]:
        """Return the dimensions of plates that all sites share, counted from the right; points need not be in them."""
        sites = [site for trace in traces for site in _sample_sites(trace)]
        drawn = [site for site in sites if site["is_observed"] or delta_of(site["fn"]) is None]
        return {dim for dim, *_ in set.intersection(*map(_plates, drawn or sites))}

    @staticmethod
    def _log_density(trace: poutine.Trace, shared: set[int]) -> Any:
        """Sum the log densities of a run's sites over all but these dimensions.

        A point that is outside of them counts once: each datum gets an equal share.
        """
        sites = [*_sample_sites(trace)]
        sizes = {dim: size for site in sites for dim, _, size in _plates(site)}
        total: Any = 0.0
        for site in sites:
            log_prob = _summed_to(scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]), shared)
            total = total + log_prob / math.prod(sizes[dim] for dim in shared - {dim for dim, *_ in _plates(site)})
        return total

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _get_vectorized_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Run all particles at once; where that alone is what fails, say so."""
        try:
            return super()._get_vectorized_trace(model, guide, args, kwargs)
        except Exception as error:
            if is_refusal(error) or not self._runs_alone(model, guide, args, kwargs):
                raise
            raise ValueError(
                f"{type(self).__name__}: expected a program that takes its particles in a dimension to the left of its "
                f"plates; got {said(error)}; pass vectorize_particles=False, which runs it once for each."
            ) from error

    def _runs_alone(self, model: Any, guide: Any, args: Any, kwargs: Any) -> bool:
        try:
            self._get_trace(model, guide, args, kwargs)
        except Exception:  # whatever it is, it does not come of the particles
            return False
        return True

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the value, nats, summed over the data: a number, without gradients."""
        found = self._run(VALUE, model, guide, args, kwargs)
        if found is None:
            return self._loss_as_it_is(model, guide, *args, **kwargs)
        _, (loss,) = found
        return _number(loss)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the value, and add the gradient of the surrogate to that of each parameter."""
        found = self._run(GRADIENT, model, guide, args, kwargs) if torch.is_grad_enabled() else None
        if found is None:
            return self._loss_and_grads_as_it_is(model, guide, *args, **kwargs)
        graph, (loss, *gradients) = found
        if graph.params:  # as Pyro does: a program without parameters of the store is not differentiated
            for leaf, gradient in zip(graph.leaves, gradients, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return _number(loss)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the value as a tensor that can be differentiated once: its gradient is that of the surrogate."""
        found = self._run(GRADIENT if torch.is_grad_enabled() else VALUE, model, guide, args, kwargs)
        if found is None:
            return self._differentiable_loss_as_it_is(model, guide, *args, **kwargs)
        graph, (loss, *gradients) = found
        warn_if_nan(loss, "loss")
        return with_gradients(loss, gradients, graph.leaves) if gradients else loss

    def update(
        self, model: Any, guide: Any, optim: FusedAdam, *args: Any, **kwargs: Any
    ) -> tuple[Callable[..., tuple[Tensor, ...]], Tensor] | None:
        """Take value, gradient and the optimizer's step in one graph; without one, do nothing and return None.

        Returns the graph and the loss. The graph itself takes a step with tensors of the same kinds, for those who know
        that nothing of the program has changed since: it does not look.
        """
        found = self._run(UPDATE, model, guide, args, kwargs, optim) if torch.is_grad_enabled() else None
        if found is None:
            return None
        graph, (loss,) = found
        return graph, loss

    def _loss_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return _number(self.losses(model, guide, *args, **kwargs)[0])

    def _loss_and_grads_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with poutine.trace(param_only=True) as capture:
            value, surrogate = self.losses(model, guide, *args, **kwargs)
        if capture.trace.nodes and surrogate.requires_grad:  # as in a graph, and as Pyro does
            surrogate.backward(retain_graph=self.retain_graph)
        return _number(value)

    def _differentiable_loss_as_it_is(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        value, surrogate = self.losses(model, guide, *args, **kwargs)
        return value.detach() + (surrogate - surrogate.detach())

    def _run(
        self,
        kind: Kind,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        optim: FusedAdam | None = None,
    ) -> tuple[Any, tuple[Tensor, ...]] | None:
        """Run a call as a graph; return the graph and its outputs, or None if the call has to run eagerly."""
        pair = self._pair_of(model, guide)
        if not self.compile or kind in pair.refused:
            return None
        try:
            _refuse_surroundings()
            return pair.run(kind, args, kwargs, optim)
        except NotCompilable as reason:
            pair.say(type(self).__name__, str(reason), kind.instead)
        return None

    def execution(self, model: Any, guide: Any) -> str:
        """Say how the calls for this pair ran so far: as graphs, or as they are, and why."""
        pair = self._pair_of(model, guide)
        if not self.compile:
            return "as it is: compile=False"
        if pair.num_compiled:
            return f"compiled: {type(self).__name__}, {pair.num_compiled:,} calls by {pair.num_graphs} graphs"
        return f"as it is: {'; '.join(sorted(pair.said)) or 'too few calls of a kind'}"

    def _pair_of(self, model: Any, guide: Any) -> Pair:
        pairs: OrderedDict[Any, Pair] = self.__dict__.setdefault("_pairs", OrderedDict())
        key = _identity(model), _identity(guide)
        if key not in pairs:
            pairs[key] = Pair(self, model, guide)
            if len(pairs) > MAX_PAIRS:
                pairs.popitem(last=False)
        pairs.move_to_end(key)
        return pairs[key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pairs"}


def as_it_is(objective: ELBO) -> ELBO:
    """Return an objective with the same options that is not compiled."""
    if not isinstance(objective, Objective):
        return objective
    chosen = copy.copy(objective)
    chosen.compile = False
    return chosen


def refuse_not_reparametrized(guide_trace: poutine.Trace) -> None:
    """Refuse draws that carry no gradient."""
    for site in _sample_sites(guide_trace):
        if not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"guide: expected reparametrized latents, whose draws carry a gradient; got site {site['name']!r}, "
                f"a {type(site['fn']).__name__}; use Pyro's Trace_ELBO or TraceEnum_ELBO."
            )


def refuse_unguided(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Refuse latents that the model draws itself: their density would count as if they had been observed.

    A point (Delta) has one value, given what is before it, and its density counts as the estimators count it.
    """
    for name, site in drawn_sites(model_trace).items():
        if name not in guide_trace and site["mask"] is not False and delta_of(site["fn"]) is None:
            raise ValueError(
                f"guide: expected a draw of each latent of the model; got none of site {name!r}; draw it in the "
                "guide, or observe it in the model."
            )


def _sample_sites(trace: poutine.Trace) -> Iterator[dict[str, Any]]:
    """Yield the sites that count; `pyro.deterministic` and sites that are masked as a whole have no density."""
    return (site for _, site in sample_sites(trace) if site["mask"] is not False)


def _plates(site: dict[str, Any]) -> set[tuple[int, str, int]]:
    """Return the plates of a site, identified by dimension, name and size."""
    return {(frame.dim, frame.name, frame.size) for frame in plates_of(site)}


def _summed_to(log_prob: Tensor, dims: set[int]) -> Tensor:
    """Sum over all dimensions but these, counted from the right; the result has each of these."""
    width = max((-dim for dim in dims), default=0)
    log_prob = log_prob.reshape((1,) * (width - log_prob.ndim) + log_prob.shape)
    others = [dim for dim in range(-log_prob.ndim, 0) if dim not in dims]
    return log_prob.sum(others) if others else log_prob


def _common_scale(sites: list[dict[str, Any]]) -> Tensor | float:
    """Return the scale of all sites, which they must share in a bound of several particles."""
    scale: Tensor | float = sites[0]["scale"]
    for site in sites[1:]:
        if not is_same_scale(scale, site["scale"]):
            raise ValueError(
                f"model, guide: expected one scale of all sites, which the bound of a datum can be multiplied by; got "
                f"{scale!r} at site {sites[0]['name']!r} and {site['scale']!r} at {site['name']!r}; scale model and "
                "guide as a whole, or use an ELBO, whose terms may have scales of their own."
            )
    return scale


def is_same_scale(one: Any, other: Any) -> bool:
    """Tell whether two scales are the same."""
    if one is other:
        return True
    if not isinstance(one, Tensor) and not isinstance(other, Tensor):
        return math.isclose(one, other, rel_tol=1e-9)
    if any(isinstance(scale, FakeTensor) for scale in (one, other)):
        raise NotCompilable("scales that are tensors, of which a graph cannot tell whether they are the same")
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return bool(torch.isclose(one, other.to(one), rtol=1e-6).all())


def _refuse_surroundings() -> None:
    """Refuse handlers and autocast around the call, which a compiled graph would ignore."""
    if not all(type(handler) is TraceMessenger and handler.param_only for handler in PYRO_STACK):
        raise NotCompilable(
            "a call inside a handler, such as a plate or poutine.scale: put the handler inside the model"
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise NotCompilable("a call under autocast")


def _identity(program: Any) -> Any:
    """Identify a program: a bound method is a new object at each lookup."""
    if isinstance(program, types.MethodType):
        return id(program.__self__), id(program.__func__)
    return id(program)


def _number(loss: Tensor) -> float:
    number = loss.item()
    warn_if_nan(number, "loss")
    return number
