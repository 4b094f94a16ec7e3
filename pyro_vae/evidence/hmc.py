"""Hamiltonian Monte Carlo for many data and chains at once, on a geometric path between two densities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.program.tiles import Noise

__all__ = ["Evaluate", "Metric", "State", "evaluating", "step"]

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""log densities of the path's start and end, `(K, N)` each, at u `(K, N, D)`."""


class Metric(Protocol):
    """A linear map L for each datum; momenta are standard normal in coordinates v with u = L v."""

    def scaled(self, v: Tensor) -> Tensor: ...

    def scaled_transposed(self, v: Tensor) -> Tensor: ...


class State(NamedTuple):
    """Positions of the chains, with log densities and gradients of both ends of the path: enough for every beta."""

    position: Tensor
    log_start: Tensor
    log_end: Tensor
    gradient_start: Tensor
    gradient_end: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        r"""$(1 - \beta) \log f_0 + \beta \log f_1$, `(K, N)`."""
        return torch.where(beta > 0, (1 - beta) * self.log_start + beta * self.log_end, self.log_start)

    def gradient(self, beta: Tensor) -> Tensor:
        """Gradient of `log_density`, `(K, N, D)`."""
        return (1 - beta)[..., None] * self.gradient_start + beta[..., None] * self.gradient_end


Evaluate = Callable[[Tensor], State]
"""A state at u `(K, N, D)`: one evaluation of the densities and of both gradients."""


def evaluating(density: Density) -> Evaluate:
    """Return a function that evaluates a pair of densities with their gradients."""

    def evaluate(position: Tensor) -> State:
        u = position.detach().requires_grad_()
        with torch.enable_grad():
            log_start, log_end = density(u)
            gradients = [_gradient(each, u) for each in (log_start, log_end)]
        return State(position, log_start.detach(), log_end.detach(), *gradients)

    return evaluate


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(u)
    (gradient,) = torch.autograd.grad(value.sum(), u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if gradient is None else gradient.nan_to_num()


def step(
    state: State,
    evaluate: Evaluate,
    noise: Noise,
    metric: Metric,
    beta: Tensor,
    step_size: Tensor,
    num_leapfrog: int,
) -> tuple[State, Tensor]:
    r"""Make a reversible transition that leaves $f_0^{1 - \beta} f_1^{\beta}$ invariant, with its acceptance `(K, N)`.

    Args:
        state: of K chains for each of N data.
        evaluate: evaluates both ends of the path.
        noise: makes momenta and uniform numbers.
        metric: L of each datum, fixed: it must not depend on the chains.
        beta: where on the path, `(N,)`.
        step_size: $\epsilon$ of each datum, `(N,)`, in units of the metric. Each chain's own is up to a fifth longer or
            shorter, at random, so that no orbit closes.
        num_leapfrog: the number of leapfrog steps, each one evaluation.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics.
    """
    num_chains = len(state.position)
    momentum = noise.normal(num_chains)
    size = (step_size * (0.8 + 0.4 * noise.uniform(num_chains)))[..., None]
    proposed, end_momentum = _leapfrog(state, momentum, evaluate, metric, beta, size, num_leapfrog)
    log_ratio = proposed.log_density(beta) - state.log_density(beta)
    log_ratio = log_ratio + 0.5 * (momentum.square() - end_momentum.square()).sum(-1)
    # Far out, rounding makes a density +inf or NaN, as where a scale becomes zero: the chain must not stay there.
    log_ratio = log_ratio.where(proposed.log_density(beta).isfinite(), -torch.inf)
    accept_prob = log_ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
    accepted = noise.uniform(num_chains) < accept_prob
    return State(*(_choose(accepted, new, old) for new, old in zip(proposed, state, strict=True))), accept_prob


def _leapfrog(
    state: State, momentum: Tensor, evaluate: Evaluate, metric: Metric, beta: Tensor, size: Tensor, num_leapfrog: int
) -> tuple[State, Tensor]:
    half_kick = 0.5 * size * metric.scaled_transposed(state.gradient(beta))
    for _ in range(num_leapfrog):
        momentum = momentum + half_kick
        state = evaluate(state.position + size * metric.scaled(momentum))
        half_kick = 0.5 * size * metric.scaled_transposed(state.gradient(beta))
        momentum = momentum + half_kick
    return state, momentum


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted if new.ndim == 2 else accepted[..., None], new, old)
