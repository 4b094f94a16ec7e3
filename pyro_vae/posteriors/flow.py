"""A Gaussian, transformed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae._flows import Kind, flow_of, transformed_normal
from pyro_vae.nn._shared import bounded
from pyro_vae.posteriors._base import AmortizedPosterior

__all__ = ["Flow"]


class Flow(AmortizedPosterior):
    r"""A Gaussian with independent dimensions, transformed: $z = f(\mu(x) + \sigma(x) \epsilon;\, h(x))$.

    f is a stack of invertible transforms, whose parameters depend on h(x). Density and draws take one pass each with
    coupling transforms. Autoregressive ones are richer: their density takes one pass, a draw several. Inverse
    autoregressive ones are as rich the other way round: a draw and its own density take one pass, so that they train
    as fast as coupling transforms, and the density of any other value takes several. Several are at most as many as
    there are dimensions (so in a compiled graph); otherwise passes end where the numbers settle, which a trained flow
    does after a few. All start as the identity, gated ones near it. The flows are zuko's
    (`pip install 'pyro-vae[flows]'`).

    Args:
        network: any module from x (and context) to `2 * latent_dim + context_dim` numbers: loc, log scale, h.
        latent_dim: D, 2 or more.
        context_dim: how many numbers h has.
        kind: `"affine"`, $m + s u$; `"gated"`, $\sigma u + (1 - \sigma) m$ with $0 < \sigma < 1$, as in an LSTM; or
            `"spline"`, monotonic rational-quadratic splines of eight bins between -5 and 5, which are wide beside a
            narrow posterior. They take noise to z with `autoregressive="inverse"`, else z to noise.
        num_transforms: how many.
        hidden_dims: of the network of each transform.
        autoregressive: whether each dimension depends on all before it, or half of them on the other half;
            `"inverse"` for dimensions that depend on the noise of all before them.
        max_log_scale: the bound on $|\log \sigma|$.

    Shapes: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers, or a network of another width.
        ImportError: without zuko.

    References:
        Rezende and Mohamed (2015), Variational inference with normalizing flows; Kingma et al. (2016), Improved
        variational inference with inverse autoregressive flow; Dinh, Sohl-Dickstein and Bengio (2017), Density
        estimation using real NVP; Durkan, Bekasov, Murray and Papamakarios (2019), Neural spline flows.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> posterior = Flow(MLP(784, [200], 2 * 10 + 32), latent_dim=10, context_dim=32)
        >>> posterior(torch.zeros(3, 784)).event_shape
        torch.Size([10])
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        context_dim: int = 32,
        kind: Kind = "affine",
        num_transforms: int = 4,
        hidden_dims: Sequence[int] = (64, 64),
        autoregressive: bool | Literal["inverse"] = False,
        max_log_scale: float = 7.0,
    ) -> None:
        super().__init__(network)
        _checks.choice("autoregressive", autoregressive, (False, True, "inverse"))
        self.flow = flow_of(kind, latent_dim, context_dim, num_transforms, hidden_dims, bool(autoregressive))
        self.latent_dim, self.kind, self.num_transforms = latent_dim, kind, num_transforms
        self.context_dim = _checks.whole_number("context_dim", context_dim)
        self.hidden_dims, self.autoregressive = tuple(hidden_dims), autoregressive
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def num_outputs(self, latent_dim: int) -> int:
        """Return how many numbers the network has to give."""
        return 2 * latent_dim + self.context_dim

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        sizes = [self.latent_dim, self.latent_dim, self.context_dim]
        loc, raw, h = self.outputs(x, *context).split(sizes, -1)
        return transformed_normal(loc, bounded(raw, self.max_log_scale).exp(), self._transform(h))

    def _transform(self, h: Tensor) -> Any:
        flow: Any = self.flow
        transform = flow.transform(h)
        return transform.inv if self.autoregressive == "inverse" else transform

    def extra_repr(self) -> str:
        return (
            f"latent_dim={self.latent_dim}, context_dim={self.context_dim}, kind={self.kind!r}, "
            f"num_transforms={self.num_transforms}, autoregressive={self.autoregressive!r}"
        )
