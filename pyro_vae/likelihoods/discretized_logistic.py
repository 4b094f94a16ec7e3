"""Pixels of 8 bits, or of any other number of levels."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks, distributions
from pyro_vae.likelihoods._base import Form, Likelihood, PositiveNumber, ScaledLikelihood

__all__ = ["DiscretizedLogistic", "DiscretizedLogisticMixture"]


def _remedy(num_levels: int) -> str:
    return f"pass whole numbers 0 to {num_levels - 1}, as images of bytes are, or another num_levels"


class DiscretizedLogistic(ScaledLikelihood):
    r"""Independent pixels of L levels, each a rounded logistic variable:
    $p(k|z) = \sigma((u_k + h - \mu) / s) - \sigma((u_k - h - \mu) / s)$.

    Level k lies at $u_k = 2 k / (L - 1) - 1$, and $h = 1 / (L - 1)$ is half a bin; the first and last level take the
    tails. The data are whole numbers 0 to L - 1, bytes for 256 levels, and log p(x) is a probability, with
    `Evidence.bits_per_dim`. An encoder is better off with numbers around zero:
    `pv.nn.Standardized(encoder, 127.5, 127.5)` gives it bytes from -1 to 1.

    Args:
        network: any module from z (and context) to the location of each pixel, from -1 to 1 (`"per-pixel"`: location
            and raw scale).
        scale: a positive number, `"learned"` or `"per-pixel"`, where 2 is the whole range.
        num_levels: L.
        min_scale: the floor of a learned scale.
        scale_shape: how many scales are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    References:
        Kingma et al. (2016), Improved variational inference with inverse autoregressive flow.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> DiscretizedLogistic(MLP(2, [8], 30))(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def __init__(
        self,
        network: nn.Module,
        scale: Form = "learned",
        num_levels: int = 256,
        min_scale: float = 1e-3,
        scale_shape: int | Sequence[int] = (),
    ) -> None:
        super().__init__(network, scale, min_scale, scale_shape)
        self.num_levels = _checks.whole_number("num_levels", num_levels, minimum=2)

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """Say which numbers have a probability."""
        return _remedy(self.num_levels)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        loc, scale = self.loc_and_scale(z, *context)
        return self.independent(distributions.DiscretizedLogistic(loc, scale, self.num_levels), z)

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}, {super().extra_repr()}"


class DiscretizedLogisticMixture(Likelihood):
    r"""Independent pixels of L levels, each a mixture of K rounded logistic variables.

    $p(k|z) = \sum_j \pi_j(z) p_j(k|z)$, with location, scale and share of each component from the network.

    Args:
        network: any module from z (and context) to 3 K numbers for each pixel, stacked along the first dimension of its
            output: shares (logits), locations and raw scales.
        num_components: K.
        num_levels: L.
        min_scale: the floor of the scales, where 2 is the whole range.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    References:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, section 2.1; without its dependence between channels.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> DiscretizedLogisticMixture(MLP(2, [8], 3 * 5 * 30), num_components=5)(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def __init__(
        self, network: nn.Module, num_components: int = 5, num_levels: int = 256, min_scale: float = 1e-3
    ) -> None:
        super().__init__(network)
        self.num_components = _checks.whole_number("num_components", num_components)
        self.num_levels = _checks.whole_number("num_levels", num_levels, minimum=2)
        self.min_scale = min_scale
        self.scale_form = PositiveNumber("scale", "per-pixel", min_scale)

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """Say which numbers have a probability."""
        return _remedy(self.num_levels)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        count = self.num_components
        names = [f"{name} {j}" for name in ("share", "loc", "scale") for j in range(count)]
        out = self.outputs(names, z, *context)
        share, loc, raw_scale = (torch.stack(out[j * count : (j + 1) * count], -1) for j in range(3))
        components = distributions.DiscretizedLogistic(loc, self.scale_form(raw_scale, beside=loc), self.num_levels)
        return self.independent(dist.MixtureSameFamily(dist.Categorical(logits=share), components), z)

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, num_levels={self.num_levels}, min_scale={self.min_scale}"
