"""One of several levels."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.likelihoods._base import Likelihood

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""Independent numbers, each one of L levels, $p(x_d = k|z)$ = softmax over k of $\ell_{kd}(z)$.

    Args:
        network: any module from z (and context) to L logits for each number of x, stacked along the first dimension of
            its output: `(L * D,)` for x of shape `(D,)`, `(L * C, H, W)` for images.
        num_levels: L. The data are whole numbers 0 to L - 1.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> Categorical(MLP(2, [8], 4 * 30), num_levels=4)(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def __init__(self, network: nn.Module, num_levels: int) -> None:
        super().__init__(network)
        self.num_levels = _checks.whole_number("num_levels", num_levels, minimum=2)

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """Say which numbers have a probability."""
        return f"number the levels 0 to {self.num_levels - 1}, or pass another num_levels"

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        logits = torch.stack(self.outputs([f"level {k}" for k in range(self.num_levels)], z, *context), -1)
        return self.independent(dist.Categorical(logits=logits), z)

    def extra_repr(self) -> str:
        return f"num_levels={self.num_levels}"
