"""Why the ELBO lies below log p(x): the family of the guide, or its encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for
from pyro_vae.distributed import shared
from pyro_vae.evidence.annealing import block_size
from pyro_vae.evidence.auto import Auto
from pyro_vae.evidence.bounds import Bound, std_error_of_mean
from pyro_vae.evidence.collect import GuideTerms
from pyro_vae.evidence.estimator import Task, evaluate
from pyro_vae.evidence.local import refine
from pyro_vae.evidence.observed import Observed
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.summary import Row, Table, plus_minus
from pyro_vae.program.joint import Compile
from pyro_vae.program.tiles import Block, DrawSome, evaluating, in_strips, kept, noise, tiles_of

__all__ = ["InferenceGap", "inference_gap"]


@dataclass(frozen=True, repr=False)
class InferenceGap:
    r"""log p(x) - ELBO in two parts, for each datum, nats. Tensors are `(N,)` of float64.

    Attributes:
        evidence: log p(x).
        best_elbo: the ELBO of the best member of the guide's family for the datum.
        elbo: the ELBO of the guide.
    """

    evidence: Evidence
    best_elbo: Bound
    elbo: Bound

    @property
    def approximation(self) -> Tensor:
        """log p(x) - best ELBO, what the guide's family cannot reach."""
        return self.evidence.log_evidence - self.best_elbo.value

    @property
    def amortization(self) -> Tensor:
        """Best ELBO - ELBO, what the encoder loses within its family."""
        return self.best_elbo.value - self.elbo.value

    @property
    def total(self) -> Tensor:
        """log p(x) - ELBO, the sum of both."""
        return self.evidence.log_evidence - self.elbo.value

    @property
    def approximation_std_error(self) -> Tensor:
        """The standard error of `approximation`."""
        return (self.evidence.std_error.square() + self.best_elbo.std_error.square()).sqrt()

    @property
    def amortization_std_error(self) -> Tensor:
        """The standard error of `amortization`."""
        return (self.best_elbo.std_error.square() + self.elbo.std_error.square()).sqrt()

    def summary(self) -> str:
        """Return the means over data as a table."""
        figures = [
            ("log p(x)", self.evidence.log_evidence, self.evidence.std_error),
            ("approximation gap", self.approximation, self.approximation_std_error),
            ("best ELBO of the family", self.best_elbo.value, self.best_elbo.std_error),
            ("amortization gap", self.amortization, self.amortization_std_error),
            ("ELBO", self.elbo.value, self.elbo.std_error),
        ]
        rows = [Row(name, value.mean().item(), plus_minus(std_error_of_mean(error))) for name, value, error in figures]
        title = f"inference gap of {len(self.total):,} data; nats per datum, with Monte Carlo errors"
        bad = int((~self.evidence.reliable).sum())
        remark = f"log p(x) is not reliable for {bad:,} of {len(self.total):,} data; its gap there may be too small"
        return Table(title, rows, [remark] if bad else []).text

    def __repr__(self) -> str:
        return (
            f"InferenceGap(approximation={self.approximation.mean():.3f}, amortization={self.amortization.mean():.3f} "
            f"nats, {len(self.total)} data)"
        )


@refusing_unknown_options
def inference_gap(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    num_steps: int = 300,
    num_particles: int = 8,
    evidence: Evidence | None = None,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    compile: Compile = "auto",
) -> InferenceGap:
    r"""Split $\log p(x) - \mathrm{ELBO} = \mathrm{KL}(q \| p(z|x))$ of each datum into approximation and amortization
    gap.

    The best member $q^*$ of the guide's family, with free parameters for each datum, divides it:
    $[\log p(x) - \mathrm{ELBO}(q^*)] + [\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)]$. Gradient ascent from the guide looks
    for $q^*$. By what the search misses, the amortization gap is too small and the approximation gap too large.

    Where a site depends on the draws of others, $q(z_2|z_1)$, the guide's parameters given those draws are moved by an
    offset of the datum's own, before they are mapped to their constraints. How they depend on $z_1$ stays the guide's,
    and what that loses is part of the approximation gap.

    Args:
        model, guide: a Pyro program and its guide, whose sites have reparametrized distributions.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        num_samples: draws for each ELBO.
        num_steps, num_particles: steps of Adam in the search, and draws in each.
        evidence: log p(x) of the same data, if it is known; `log_evidence` by default.
        seed: fixes the noise.
        plate, first_index, kwargs: as in `importance_sampling`.
        compile: as in `ais`, for log p(x); the search for $q^*$ runs as it is.

    Returns:
        `InferenceGap`.

    Raises:
        TypeError, ValueError: as `importance_sampling`; for a guide of another kind, and evidence of other data.

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders.
    """
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("num_particles", num_particles)):
        _checks.whole_number(name, value)
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index, num_posterior_draws=16,
        compile=compile, evaluations=Auto().max_evaluations if evidence is None else 0,
    )  # fmt: skip
    if evidence is not None and evidence.observed.fingerprint != Observed.of(task.program).fingerprint:
        raise ValueError("evidence: expected that of the same data; got another's; leave it out, or evaluate these.")

    def refined(block: Block) -> tuple[GuideTerms, GuideTerms]:
        with noise(block.program, seed_for(task.seed, "refinement"), block.place):
            best = refine(block.program, num_steps, num_particles, block.asked_for)
        return (
            _terms(block, best.draw, num_samples, seed_for(task.seed, "best")),
            _terms(block, block.program.draw, num_samples, seed_for(task.seed, "guide")),
        )

    pairs = shared(task.blocks(block_size(task.program, num_particles)), refined)
    best, guides = (GuideTerms.joined([*terms]) for terms in zip(*pairs, strict=True))
    evidence = evaluate(Auto(), task) if evidence is None else evidence
    return InferenceGap(evidence, best.elbo, guides.elbo)


def _terms(block: Block, draw: DrawSome, num_samples: int, seed: int) -> GuideTerms:
    terms, part = GuideTerms(), block.part(block.asked_for)
    evaluate = evaluating(part.program, in_strips(block.program, kept(block.program, draw, block.asked_for)))
    for tile in tiles_of(part, evaluate, num_samples, seed, block.program.num_data):
        terms.add(tile.densities)
    return terms
