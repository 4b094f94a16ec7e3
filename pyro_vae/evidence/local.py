"""A guide whose distribution is refined for each datum on its own, within its family."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae._structure import sample_sites
from pyro_vae.program import Program
from pyro_vae.tiling import kept

__all__ = ["refine"]

INSTEAD = "for log p(x) use log_evidence; the inference gap of such a guide cannot be parted."


@dataclass(frozen=True)
class _Family:
    """The distribution of one site, with parameters that are free for each datum."""

    make: Any
    event_dims: int
    transforms: dict[str, Any]

    def distribution(self, free: dict[str, Tensor]) -> Any:
        parameters = {name: self.transforms[name](value) for name, value in free.items()}
        return self.make(**parameters).to_event(self.event_dims)


class _Replaced(Messenger):
    """Run a guide with other distributions at its sites."""

    def __init__(self, distributions: dict[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]]


def refine(
    program: Program,
    num_steps: int = 300,
    num_particles: int = 8,
    columns: Tensor | None = None,
    lr: float = 0.05,
) -> Program:
    r"""The program with, as its guide, the member of the guide's family that maximises each datum's own ELBO.

    Adam on the parameters of each site's distribution, from where the guide puts them, with reparametrized gradients of
    `num_particles` draws, a step size that falls to zero, and the mean over the last quarter of the path. The model is
    run on some columns alone, if they are given, and the others' distributions stay what they were.

    References:
        Kim et al. (2018), Semi-amortized variational autoencoders; Cremer et al. (2018).
    """
    columns = torch.arange(program.num_data, device=program.args[0].device) if columns is None else columns
    families, free = _free_parameters(program)
    leaves = [value for each in free.values() for value in each.values()]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    averages = [torch.zeros_like(leaf) for leaf in leaves]
    first_kept = num_steps - max(1, num_steps // 4)
    for step in range(num_steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -_elbo(_with_guide(program, families, free), num_particles, columns).sum()
        gradients = torch.autograd.grad(loss, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.nan_to_num()
        optimizer.step()
        schedule.step()
        if step >= first_kept:
            torch._foreach_add_(averages, [leaf.detach() for leaf in leaves], alpha=1 / (num_steps - first_kept))
    pairs = iter(averages)
    best = {site: {name: next(pairs) for name in each} for site, each in free.items()}
    return _with_guide(program, families, best)


def _elbo(program: Program, num_particles: int, columns: Tensor) -> Tensor:
    latents, log_q = kept(program, program.draw, columns)(num_particles)
    prior, likelihood = program.at(columns).log_joint(latents)
    return (prior + likelihood - log_q).mean(0)


def _with_guide(program: Program, families: dict[str, _Family], free: dict[str, dict[str, Tensor]]) -> Program:
    distributions = {site: family.distribution(free[site]) for site, family in families.items()}
    return Program(
        program.model, _Replaced(distributions)(program.guide), program.args, program.kwargs, program.structure
    )


def _free_parameters(program: Program) -> tuple[dict[str, _Family], dict[str, dict[str, Tensor]]]:
    families, free = {}, {}
    one, other = (dict(sample_sites(program._run(program.guide, 1))) for _ in range(2))
    for name, site in one.items():
        fn, event_dims, found = _parameters(name, site["fn"])
        again = _parameters(name, other[name]["fn"])[2]
        if any(not torch.equal(found[key], again[key]) for key in found):
            raise ValueError(
                f"guide: expected sites that do not depend on each other, to refine each; got parameters of {name!r} "
                f"that moved with another draw; {INSTEAD}"
            )
        constraints = fn.arg_constraints  # its own: a Uniform's, say, depend on its values
        transforms = {key: biject_to(constraints[key]) for key in found}
        families[name] = _Family(type(fn), event_dims, transforms)
        free[name] = {key: transforms[key].inv(value).detach().clone().requires_grad_() for key, value in found.items()}
    return families, free


def _parameters(name: str, fn: Any) -> tuple[Any, int, dict[str, Tensor]]:
    """A distribution without its event wrappers, how many dimensions those take, and its parameters in full shape."""
    event_dims = 0
    shape = fn.batch_shape
    while isinstance(fn, torch.distributions.Independent):
        event_dims += fn.reinterpreted_batch_ndims
        shape = fn.base_dist.batch_shape
        fn = fn.base_dist
    arguments = set(inspect.signature(type(fn).__init__).parameters) & set(getattr(fn, "arg_constraints", {}))
    given = {key for key in arguments if key in vars(fn)} or {key for key in arguments if hasattr(fn, key)}
    if not given or not fn.has_rsample:
        raise ValueError(
            f"guide: expected reparametrized distributions with parameters of their own, to refine them; got "
            f"{type(fn).__name__} at site {name!r}; {INSTEAD}"
        )
    tensors = {key: torch.as_tensor(getattr(fn, key)) for key in sorted(given)}
    extra = {key: value.ndim - len(shape) for key, value in tensors.items()}
    full = {
        key: value.expand(*shape, *value.shape[len(shape) :]) if extra[key] >= 0 else value.expand(shape)
        for key, value in tensors.items()
    }
    return fn, event_dims, full
