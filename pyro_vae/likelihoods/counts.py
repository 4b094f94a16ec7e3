"""Counts: Poisson, binomial, negative binomial and multinomial, with exposures and zero inflation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import _checks, distributions
from pyro_vae.likelihoods._base import Form, Likelihood, PositiveNumber, bounded_exp

__all__ = ["Binomial", "Multinomial", "NegativeBinomial", "Poisson"]

COUNTS = "pass counts, whole numbers of 0 or more; of transformed counts, undo the transformation"


class _Counts(Likelihood):
    """What counts share: a factor of the mean, or a total, that is the last of the context."""

    remedy = COUNTS

    @staticmethod
    def _parted(z: Tensor, context: tuple[Tensor, ...], what: str) -> tuple[tuple[Tensor, ...], Tensor]:
        """Part the context into what the network sees, and its last, one number for each datum `(..., 1)`."""
        if not context:
            raise ValueError(
                f"context: expected {what} for each datum as the last argument; got none; build the VAE with "
                "context_shapes=[..., ()], and pass it after x."
            )
        *others, last = context
        return tuple(others), last if last.ndim == z.ndim else last[..., None]


class Poisson(_Counts):
    r"""Independent counts, $x_d \sim \mathrm{Poisson}(t\, e^{\rho_d(z)})$.

    The mean's logarithm is bounded smoothly, $c \tanh(\rho / c)$ with c = 20, so that it is never zero or infinite.

    Args:
        network: any module from z (and context) to the logarithm of each mean, without exposure.
        has_exposure: whether the last of the context is the exposure t of a datum: a time, an area, a library size. The
            network does not see it.
        zero_inflated: whether a count is zero with a further probability, whose logit the network gives as a second set
            of channels.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum; the exposure is `(...)`
    or `(..., 1)`.

    References:
        Lambert (1992), Zero-inflated Poisson regression, with an application to defects in manufacturing.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> Poisson(MLP(2, [8], 30), has_exposure=True)(torch.zeros(3, 2), 100 * torch.ones(3)).event_shape
        torch.Size([30])
    """

    def __init__(self, network: nn.Module, has_exposure: bool = False, zero_inflated: bool = False) -> None:
        super().__init__(network)
        self.has_exposure, self.zero_inflated = has_exposure, zero_inflated

    @property
    def last_context(self) -> tuple[Any, str] | None:  # type: ignore[override]
        """Exposures are positive."""
        return (constraints.positive, "leave out data without exposure") if self.has_exposure else None

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        mean, (gate,) = self._mean(("gate",) if self.zero_inflated else (), z, context)
        if gate is None:
            return self.independent(dist.Poisson(mean), z)
        return self.independent(dist.ZeroInflatedPoisson(mean, gate_logits=gate), z)

    def _mean(
        self, others: Sequence[str], z: Tensor, context: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the mean, and what else the network gives."""
        exposure = None
        if self.has_exposure:
            context, exposure = self._parted(z, context, "an exposure")
        log_mean, *rest = self.outputs(("log mean", *others), z, *context)
        mean = bounded_exp(log_mean)
        if exposure is not None:
            mean = mean * exposure.reshape(*exposure.shape, *[1] * (mean.ndim - exposure.ndim))
        return mean, tuple(rest) or (None,)

    def extra_repr(self) -> str:
        return f"has_exposure={self.has_exposure}, zero_inflated={self.zero_inflated}"


class NegativeBinomial(Poisson):
    r"""Independent counts with more variance than Poisson's, $\mathrm{Var}\, x_d = \mu_d + \mu_d^2 / r_d$.

    A Poisson variable whose mean has a Gamma distribution of mean $\mu_d = t\, e^{\rho_d(z)}$ and shape r. The inverse
    dispersion r has three forms; learned or per pixel, it is $r_{min} + e^\rho$, bounded as the mean is.

    Args:
        network: any module from z (and context) to the logarithm of each mean (`"per-pixel"`: and the raw inverse
            dispersion; zero-inflated: and the logit of a further zero), stacked along the first dimension.
        inverse_dispersion: r, a positive number, `"learned"` or `"per-pixel"`.
        inverse_dispersion_shape: how many are learned: `()`, one for all, or the shape of x, one for each gene.
        has_exposure: whether the last of the context is the exposure t of a datum.
        zero_inflated: whether a count is zero with a further probability.
        min_inverse_dispersion: the floor of a learned one.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    References:
        Lopez, Regier, Cole, Jordan and Yosef (2018), Deep generative modeling for single-cell transcriptomics.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> counts = NegativeBinomial(MLP(2, [8], 30), "learned", inverse_dispersion_shape=30)
        >>> counts(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def __init__(
        self,
        network: nn.Module,
        inverse_dispersion: Form = "learned",
        inverse_dispersion_shape: int | Sequence[int] = (),
        has_exposure: bool = False,
        zero_inflated: bool = False,
        min_inverse_dispersion: float = 1e-2,
    ) -> None:
        super().__init__(network, has_exposure, zero_inflated)
        self.inverse_dispersion, self.min_inverse_dispersion = inverse_dispersion, min_inverse_dispersion
        self.inverse_dispersion_shape = inverse_dispersion_shape
        self.inverse_dispersion_form = PositiveNumber(
            "inverse_dispersion", inverse_dispersion, min_inverse_dispersion, inverse_dispersion_shape, bounded_exp
        )

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        form = self.inverse_dispersion_form
        names = [*["inverse dispersion"] * form.is_from_network, *["gate"] * self.zero_inflated]
        mean, rest = self._mean(names, z, context)
        given = dict(zip(names, rest, strict=False))
        number = form(given.get("inverse dispersion"), beside=mean)
        shape = torch.as_tensor(number, dtype=mean.dtype, device=mean.device)
        counts: Any = distributions.NegativeBinomial(shape, logits=mean.log() - shape.log())
        if self.zero_inflated:
            counts = dist.ZeroInflatedDistribution(counts, gate_logits=given["gate"])
        return self.independent(counts, z)

    def extra_repr(self) -> str:
        return f"{self.inverse_dispersion_form.described()}, {super().extra_repr()}"


Total = int | Literal["context"]


class _OfTotal(_Counts):
    """Counts of a known total: a number, or the last of the context."""

    def __init__(self, network: nn.Module, total_count: Total) -> None:
        super().__init__(network)
        if total_count != "context":
            _checks.whole_number("total_count", total_count)
        self.total_count = total_count

    @property
    def last_context(self) -> tuple[Any, str] | None:  # type: ignore[override]
        """Totals are whole numbers."""
        is_given = self.total_count == "context"
        return (constraints.nonnegative_integer, "pass the total of each datum") if is_given else None

    def _total_and_logits(self, z: Tensor, context: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        total: Any = self.total_count
        if total == "context":
            context, total = self._parted(z, context, "a total")
        logits = self.output(z, *context)
        return torch.as_tensor(total, dtype=logits.dtype, device=logits.device), logits

    def extra_repr(self) -> str:
        return f"total_count={self.total_count!r}"


class Binomial(_OfTotal):
    r"""Independent counts of successes among n, $x_d \sim \mathrm{Binomial}(n, \sigma(\ell_d(z)))$.

    Args:
        network: any module from z (and context) to the logit of each success.
        total_count: n, a whole number, or `"context"`: the last of the context, one for each datum.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> Binomial(MLP(2, [8], 30), total_count=4)(torch.zeros(3, 2)).mean[0, 0].item()
        2.0
    """

    remedy = "pass counts, whole numbers from 0 to the total"

    @property
    def support(self) -> Any:
        """Whole numbers from 0 to the total, where all data share one."""
        if self.total_count == "context":
            return constraints.nonnegative_integer
        return constraints.integer_interval(0, self.total_count)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        total, logits = self._total_and_logits(z, context)
        total = total.reshape(*total.shape, *[1] * (logits.ndim - total.ndim)) if total.ndim else total
        return self.independent(dist.Binomial(total, logits=logits), z)


class Multinomial(_OfTotal):
    r"""Counts of D kinds, such as words, given their total: $p(x|z, n) = n! \prod_d \pi_d(z)^{x_d} / x_d!$.

    $\pi$ is the softmax of the network's output. With the total as context, log p(x) is that of the counts given it.

    Args:
        network: any module from z (and context) to D logits.
        total_count: n, a whole number, or `"context"`: the last of the context, `x.sum(-1)` of each datum.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape `(D,)`.

    References:
        Miao, Yu and Blunsom (2016), Neural variational inference for text processing.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> Multinomial(MLP(2, [8], 30), total_count=100)(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        total, logits = self._total_and_logits(z, context)
        return distributions.Multinomial(total[..., 0] if total.ndim else total, logits)
