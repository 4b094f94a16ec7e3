"""Refine a guide's distribution for each datum on its own, within its family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae._private import foreach_add_
from pyro_vae.program.core import Program
from pyro_vae.program.masks import elements_of
from pyro_vae.program.runs import GuideOfRows
from pyro_vae.program.tiles import kept

__all__ = ["refine"]

INSTEAD = "for log p(x) use log_evidence; the inference gap of such a guide cannot be parted."


@dataclass(frozen=True)
class _Family:
    """The distribution of one site, with parameters that are free for each datum."""

    make: Any
    event_dims: int
    transforms: dict[str, Any]
    fixed: dict[str, Tensor]
    """Parameters that decide the support."""

    def at(self, rows: Tensor, axis: int) -> _Family:
        """Select rows by index, which lie on this axis."""
        return replace(self, fixed=_selected(self.fixed, rows, axis))

    def distribution(self, free: dict[str, Tensor]) -> Any:
        parameters = {name: self.transforms[name](value) for name, value in free.items()}
        return self.make(**parameters, **self.fixed).to_event(self.event_dims)


class _Replaced(Messenger):
    """Run a guide with other distributions at its sites."""

    def __init__(self, distributions: dict[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]]


def _selected(values: dict[str, Tensor], rows: Tensor, axis: int) -> dict[str, Tensor]:
    return {name: value.index_select(axis, rows) for name, value in values.items()}


@dataclass(frozen=True)
class _Refined(GuideOfRows):
    """A guide with distributions of its own for each row."""

    guide: Callable[..., Any]
    families: dict[str, _Family]
    free: dict[str, dict[str, Tensor]]
    axis: int
    """Where rows lie in parameters."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        distributions = {site: family.distribution(self.free[site]) for site, family in self.families.items()}
        return _Replaced(distributions)(self.guide)(*args, **kwargs)

    def at(self, rows: Tensor) -> _Refined:
        families = {site: family.at(rows, self.axis) for site, family in self.families.items()}
        free = {site: _selected(values, rows, self.axis) for site, values in self.free.items()}
        return replace(self, families=families, free=free)


def refine(
    program: Program,
    num_steps: int = 300,
    num_particles: int = 8,
    columns: Tensor | None = None,
    lr: float = 0.05,
) -> Program:
    r"""Replace the guide by the member of its family that maximises each datum's own ELBO.

    Adam moves the parameters of each site's distribution from where the guide puts them, with reparametrized gradients
    of `num_particles` draws and a step size that falls to zero. The result is the mean over the last quarter of the
    path. If `columns` are given, the model runs on them alone, and the other columns keep their distributions.

    References:
        Kim et al. (2018), Semi-amortized variational autoencoders; Cremer et al. (2018).
    """
    columns = torch.arange(program.num_data, device=program.device) if columns is None else columns
    families, free = _free_parameters(program)

    def refined(free: dict[str, dict[str, Tensor]]) -> Program:
        return program.with_guide(_Refined(program.guide, families, free, program.structure.data_axis))

    leaves = [value for each in free.values() for value in each.values()]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    averages = [torch.zeros_like(leaf) for leaf in leaves]
    first_kept = num_steps - max(1, num_steps // 4)
    for step in range(num_steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -_elbo(refined(free), num_particles, columns).sum()
        gradients = torch.autograd.grad(loss, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.nan_to_num()
        optimizer.step()
        schedule.step()
        if step >= first_kept:
            foreach_add_(averages, [leaf.detach() for leaf in leaves], alpha=1 / (num_steps - first_kept))
    pairs = iter(averages)
    best = {site: {name: next(pairs) for name in each} for site, each in free.items()}
    return refined(best)


def _elbo(program: Program, num_particles: int, columns: Tensor) -> Tensor:
    latents, log_q = kept(program, program.draw, columns)(num_particles)
    prior, likelihood = program.at(columns).log_joint(latents)
    return (prior + likelihood - log_q).mean(0)


def _free_parameters(program: Program) -> tuple[dict[str, _Family], dict[str, dict[str, Tensor]]]:
    if program.structure.in_turn is not None:
        raise ValueError(
            f"guide: expected sites of all data at once, to refine them; got those of the plate "
            f"{program.structure.in_turn.plate!r}, which visits data in turn; {INSTEAD}"
        )
    families, free = {}, {}
    one, other = (program.guide_sites(1) for _ in range(2))
    for name, site in one.items():
        fn, event_dims, found = _parameters(site)
        again = _parameters(other[name])[2]
        if any(not torch.equal(found[key], again[key]) for key in found):
            raise ValueError(
                f"guide: expected sites that do not depend on each other, to refine each; got parameters of {name!r} "
                f"that moved with another draw; {INSTEAD}"
            )
        fixed = {key: value for key, value in found.items() if _moves_support(fn, found, key)}
        found = {key: value for key, value in found.items() if key not in fixed}
        if not found:
            raise ValueError(_unrefinable(name, fn))
        constraints = fn.arg_constraints  # of the instance: a Uniform's, say, depend on its values
        transforms = {key: _to(constraints[key], name, fn) for key in found}
        families[name] = _Family(type(fn), event_dims, transforms, fixed)
        free[name] = {key: transforms[key].inv(value).detach().clone().requires_grad_() for key, value in found.items()}
    return families, free


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


def _parameters(site: dict[str, Any]) -> tuple[Any, int, dict[str, Tensor]]:
    """Return a site's distribution without wrappers, the event dimensions that they add, and its full parameters."""
    name, fn = site["name"], elements_of(site).fn
    event_dims, shape = site["fn"].event_dim - fn.event_dim, fn.batch_shape
    arguments = set(inspect.signature(type(fn).__init__).parameters) & set(getattr(fn, "arg_constraints", {}))
    given = {key for key in arguments if key in vars(fn)} or {key for key in arguments if hasattr(fn, key)}
    if {"probs", "logits"} <= given:
        given.discard("probs")
    required = {
        key
        for key, parameter in inspect.signature(type(fn).__init__).parameters.items()
        if parameter.default is parameter.empty and key not in ("self", "args", "kwargs")
    }
    if not given or not required <= given or not fn.has_rsample or fn.support.is_discrete:
        raise ValueError(_unrefinable(name, fn))
    tensors = {key: torch.as_tensor(getattr(fn, key)) for key in sorted(given)}
    extra = {key: value.ndim - len(shape) for key, value in tensors.items()}
    full = {
        key: value.expand(*shape, *value.shape[len(shape) :]) if extra[key] >= 0 else value.expand(shape)
        for key, value in tensors.items()
    }
    return fn, event_dims, full
