"""log p(x) from draws of the posterior: the estimator of Kingma and Welling's appendix D."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import apart_from_the_program
from pyro_vae.evidence.importance import NUM_ELBO_SAMPLES, guide_terms
from pyro_vae.evidence.laplace import Gaussian
from pyro_vae.evidence.posterior import posterior_samples
from pyro_vae.evidence.result import Evidence, Observed
from pyro_vae.evidence.weights import estimate
from pyro_vae.program import Program
from pyro_vae.unconstrained import Unconstrained

__all__ = ["reciprocal_importance_sampling"]

MAX_DIM = 5


@apart_from_the_program()
def reciprocal_importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 500,
    num_chains: int = 4,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    **kwargs: Any,
) -> Evidence:
    r"""$\log \hat p(x) = -\log \frac{1}{L} \sum_l \frac{q(z_l)}{p(x, z_l)}$ with $z_l \sim p(z|x)$, for few latent
    numbers.

    Half of each datum's draws, by HMC, fit a Gaussian q; the other half are averaged. As $E\, q / p(x, z) = 1 /
    p(x)$, the estimate of log p(x) is too *high* in expectation, by Jensen's inequality, where importance sampling
    and AIS are too low. It has no certified lower bound, and a q with heavier tails than p(z|x) gives it an infinite
    variance. It is here for comparison; `log_evidence` is better in every other respect.

    Args:
        model, guide: a Pyro program and its guide, with at most five continuous latent numbers a datum.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first.
        num_samples: draws of each chain.
        num_chains: chains for each datum.
        seed: fixes the noise.
        plate, first_index, kwargs: as of `importance_sampling`.

    Returns:
        `Evidence`, never `reliable`: its error supposes independent draws.

    Raises:
        TypeError, ValueError: as `ais`; for more than five latent numbers.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix D; Gelfand and Dey (1994).
    """
    _checks.whole_number("num_samples", num_samples, minimum=8)
    program = Program.of(model, guide, args, kwargs, plate)
    view = Unconstrained.of(program)
    if view.dim > MAX_DIM:
        raise ValueError(
            f"model: expected at most {MAX_DIM} latent numbers a datum for this estimator; got {view.dim}; use "
            "log_evidence or ais."
        )
    posterior = inspect.unwrap(posterior_samples)(
        model, guide, *args, num_samples=num_samples, num_chains=num_chains, seed=seed, plate=plate,
        first_index=first_index, **kwargs,
    )  # fmt: skip
    half = num_samples // 2
    u, log_joint = _flat(view, posterior.latents), posterior.log_prior + posterior.log_likelihood
    fitted = _fit_gaussian(u[:, :half].flatten(0, 1))
    rest = u[:, half:].flatten(0, 1)
    _, stretch = view.unpack(rest.to(view.device))
    log_ratio = fitted.log_prob(rest) - (log_joint[:, half:].flatten(0, 1) + stretch.cpu())
    found = estimate(log_ratio)
    found = found._replace(
        log_evidence=-found.log_evidence, jackknife=-found.jackknife, reliable=torch.zeros_like(found.reliable)
    )
    terms = guide_terms(program, NUM_ELBO_SAMPLES, seed, first_index)
    spent = posterior.num_evaluations + NUM_ELBO_SAMPLES
    return Evidence(
        **found._asdict(),
        num_evaluations=spent,
        num_samples=len(rest),
        seed=seed,
        method=("reciprocal importance sampling (biased upwards)",) * program.num_data,
        all_bounds={},
        observed=Observed.of(program),
        guide_elbo=terms.elbo,
        rate=terms.rate,
        distortion=terms.distortion,
        is_bound=False,
        diagnostics={"rhat": posterior.rhat},
    )


def _flat(view: Unconstrained, latents: dict[str, Tensor]) -> Tensor:
    """u `(C, S, N, D)` of latents `(C, S, N, ...)`."""
    chains = next(iter(latents.values())).shape[0]
    axis = view.program.structure.data_axis
    draws = {name: value.flatten(0, 1).movedim(1, axis).to(view.device) for name, value in latents.items()}
    return view.pack(draws).unflatten(0, (chains, -1)).cpu()


def _fit_gaussian(u: Tensor) -> Gaussian:
    """Of draws `(S, N, D)`."""
    loc = u.mean(0)
    centred = (u - loc).movedim(0, 1)
    covariance = centred.mT @ centred / (len(u) - 1)
    jitter = 1e-12 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return Gaussian(loc, torch.linalg.cholesky(covariance + jitter * torch.eye(u.shape[-1], dtype=u.dtype)))
