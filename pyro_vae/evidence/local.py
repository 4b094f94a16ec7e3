"""Refine a guide's distribution for each datum on its own, within its family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, transform_to

from pyro_vae._private import foreach_add_
from pyro_vae.program.core import Program
from pyro_vae.program.runs import GuideOfRows
from pyro_vae.program.tiles import kept

__all__ = ["refine"]

INSTEAD = "for log p(x) use log_evidence; the inference gap of such a guide cannot be parted."


Offsets = dict[str, dict[str, Tensor]]
"""Of each parameter of each site, unconstrained: `(1, ..., N, ...)`."""


class _Moved(Messenger):
    """Run a guide with the parameters of its sites moved."""

    def __init__(self, offsets: Offsets) -> None:
        super().__init__()
        self.offsets = offsets

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.offsets:
            msg["fn"] = _moved(msg["name"], msg["fn"], self.offsets[msg["name"]])


def _moved(name: str, site_fn: Any, offsets: dict[str, Tensor]) -> Any:
    fn, parameters = _parameters(name, site_fn)
    constraints = fn.arg_constraints  # of the instance: a Uniform's, say, depend on its values
    for key, offset in offsets.items():
        value, to = parameters[key], transform_to(constraints[key])
        # In the guide's run there may be no dimension of draws, or not yet.
        shape = offset.shape[max(0, offset.ndim - value.ndim) :]
        parameters[key] = to(to.inv(value) + offset.reshape(shape))
    return type(fn)(**parameters).to_event(site_fn.event_dim - fn.event_dim)


@dataclass(frozen=True)
class _Refined(GuideOfRows):
    """A guide with offsets of its own for each row."""

    guide: Callable[..., Any]
    offsets: Offsets
    axis: int
    """Where rows lie in offsets."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Moved(self.offsets)(self.guide)(*args, **kwargs)

    def at(self, rows: Tensor) -> _Refined:
        chosen = {
            site: {name: value.index_select(self.axis, rows) for name, value in each.items()}
            for site, each in self.offsets.items()
        }
        return replace(self, offsets=chosen)


def refine(
    program: Program,
    num_steps: int = 300,
    num_particles: int = 8,
    columns: Tensor | None = None,
    lr: float = 0.05,
) -> Program:
    r"""Replace the guide by the member of its family that maximises each datum's own ELBO.

    The family has free offsets for each datum: a parameter $\theta$ of a site's distribution becomes
    $T(T^{-1}(\theta) + \delta_n)$, $T$ from `transform_to` its constraint. Where sites do not depend on each other,
    these are all distributions of the sites' kinds. Where one depends on the draws of others, $\theta$ is what the
    guide makes of them: how it depends on them stays the guide's.

    Adam moves the offsets from zero, with reparametrized gradients of `num_particles` draws and a step size that falls
    to zero. The result is the mean over the last quarter of the path. If `columns` are given, the model runs on them
    alone, and the other columns keep their distributions.

    References:
        Kim et al. (2018), Semi-amortized variational autoencoders; Cremer et al. (2018).
    """
    columns = torch.arange(program.num_data, device=program.device) if columns is None else columns
    offsets = _no_offsets(program)

    def refined(offsets: Offsets) -> Program:
        return program.with_guide(_Refined(program.guide, offsets, program.structure.data_axis))

    leaves = [value for each in offsets.values() for value in each.values()]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    averages = [torch.zeros_like(leaf) for leaf in leaves]
    first_kept = num_steps - max(1, num_steps // 4)
    for step in range(num_steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -_elbo(refined(offsets), num_particles, columns).sum()
        gradients = torch.autograd.grad(loss, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.nan_to_num()
        optimizer.step()
        schedule.step()
        if step >= first_kept:
            foreach_add_(averages, [leaf.detach() for leaf in leaves], alpha=1 / (num_steps - first_kept))
    pairs = iter(averages)
    best = {site: {name: next(pairs) for name in each} for site, each in offsets.items()}
    return refined(best)


def _elbo(program: Program, num_particles: int, columns: Tensor) -> Tensor:
    latents, log_q = kept(program, program.draw, columns)(num_particles)
    prior, likelihood = program.at(columns).log_joint(latents)
    return (prior + likelihood - log_q).mean(0)


def _no_offsets(program: Program) -> Offsets:
    """Make offsets of zero for all parameters but those that decide a support."""
    if program.structure.in_turn is not None:
        raise ValueError(
            f"guide: expected sites of all data at once, to refine them; got those of the plate "
            f"{program.structure.in_turn.plate!r}, which visits data in turn; {INSTEAD}"
        )
    sites = {name: (name, *_parameters(name, site["fn"])) for name, site in program.guide_sites(1).items()}
    return {name: _no_offsets_of(*each) for name, each in sites.items()}


def _no_offsets_of(name: str, fn: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    free = {key: value for key, value in parameters.items() if not _moves_support(fn, parameters, key)}
    if not free:
        raise ValueError(_unrefinable(name, fn))
    unconstrained = {key: _to(fn.arg_constraints[key], name, fn).inv(value) for key, value in free.items()}
    return {key: torch.zeros_like(value).requires_grad_() for key, value in unconstrained.items()}


def _moves_support(fn: Any, parameters: dict[str, Tensor], key: str) -> bool:
    """Tell whether a parameter moves the support: to refine it would cut off a part of p(z|x)."""
    here, moved = (type(fn)(**{**parameters, key: parameters[key] + step}) for step in (0.0, 0.125))
    return _bounds(moved.support) != _bounds(here.support)


def _bounds(support: Any) -> list[Any]:
    return [value.flatten().tolist() if isinstance(value, Tensor) else value for value in vars(support).values()]


def _to(constraint: Any, name: str, fn: Any) -> Any:
    try:
        return transform_to(constraint)
    except NotImplementedError as error:
        raise ValueError(_unrefinable(name, fn)) from error


def _unrefinable(name: str, fn: Any) -> str:
    return (
        f"guide: expected reparametrized distributions with parameters of their own, to refine them; got "
        f"{type(fn).__name__} at site {name!r}; {INSTEAD}"
    )


def _parameters(name: str, fn: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a site's distribution without wrappers, and its parameters for all of its batch."""
    while isinstance(fn, (MaskedDistribution, Independent)):
        fn = fn.base_dist
    shape = fn.batch_shape
    signature = inspect.signature(type(fn).__init__).parameters
    required = {key for key, each in signature.items() if each.default is each.empty} - {"self", "args", "kwargs"}
    arguments = signature.keys() & getattr(fn, "arg_constraints", {}).keys()
    # To ask for another one of torch's lazy properties is to set it: look among those of the instance first.
    given = {key for key in arguments if key in vars(fn)} | {key for key in arguments & required if hasattr(fn, key)}
    given = given or {key for key in arguments if hasattr(fn, key)}
    if {"probs", "logits"} <= given:
        given.discard("probs")
    if not given or not required <= given or not fn.has_rsample or fn.support.is_discrete:
        raise ValueError(_unrefinable(name, fn))
    tensors = {key: torch.as_tensor(getattr(fn, key)) for key in sorted(given)}
    extra = {key: value.ndim - len(shape) for key, value in tensors.items()}
    full = {
        key: value.expand(*shape, *value.shape[len(shape) :]) if extra[key] >= 0 else value.expand(shape)
        for key, value in tensors.items()
    }
    return fn, full
