"""Networks. Any `torch.nn.Module` serves in their place; these keep the leading dimensions of their input."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn_missing import WithMask

__all__ = ["MLP", "Batched", "WithMask", "over_leading_dims"]


class MLP(nn.Module):
    r"""A multilayer perceptron, $h_{l+1} = \phi(W_l h_l + b_l)$, linear in its last layer.

    Weights start from Glorot's uniform distribution and biases at zero, so that activations keep their variance from
    layer to layer and the first outputs lie around `output_bias`.

    Args:
        in_shape: the width of the input, or the shape of one datum, which is then flattened.
        hidden_dims: the widths of the hidden layers; an empty sequence makes an affine map.
        out_shape: the width of the output, or the shape of one output.
        activation: makes the nonlinearity $\phi$; called once for each hidden layer.
        output_bias: where the last bias starts, one number or one for each output. For a Bernoulli likelihood the
            logit of the data's mean, `torch.logit(dataset.mean, eps=1e-3)`, saves the first epochs.
        input_mean: the data's mean, one number or one for each input; the first bias then starts so that the first
            layer sees centred data. For an encoder of images, `dataset.mean`.

    Shapes: `(..., *in_shape)` to `(..., *out_shape)`, with any leading dimensions.

    Raises:
        TypeError, ValueError: for a size that is no positive whole number, or a bias of another size.

    References:
        Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural networks; for centred
        inputs, LeCun, Bottou, Orr and Mueller (1998), Efficient backprop.

    Examples:
        >>> net = MLP(50, [200, 200], (1, 28, 28))
        >>> net(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 1, 28, 28])
    """

    starting_values = ("output_bias", "input_mean")
    """Arguments that set where parameters start, and are not kept."""

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden_dims: Sequence[int],
        out_shape: int | Sequence[int],
        activation: Callable[[], nn.Module] = nn.Tanh,
        output_bias: Tensor | float | None = None,
        input_mean: Tensor | float | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = _checks.shape("in_shape", in_shape)
        self.hidden_dims = _checks.shape("hidden_dims", hidden_dims)
        self.out_shape = _checks.shape("out_shape", out_shape)
        widths = [math.prod(self.in_shape), *self.hidden_dims, math.prod(self.out_shape)]
        first, *_ = linear = [_linear(width, next_width) for width, next_width in itertools.pairwise(widths)]
        *hidden, last = linear
        with torch.no_grad():
            if input_mean is not None:
                first.bias.sub_(first.weight @ _vector("input_mean", input_mean, first.in_features))
            if output_bias is not None:
                last.bias.add_(_vector("output_bias", output_bias, last.out_features))
        self.layers = nn.Sequential(*(part for layer in hidden for part in (layer, activation())), last)

    @property
    def activation(self) -> Callable[[], nn.Module]:
        """Makes a nonlinearity as the first one is; without hidden layers there is none, and it stands for any."""
        # Not the function that was given: one that is local could not be pickled.
        return functools.partial(copy.deepcopy, self.layers[1]) if self.hidden_dims else nn.Tanh

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Map `(..., *in_shape)` to `(..., *out_shape)`; further arguments are concatenated with x."""
        if context:
            if len(self.in_shape) > 1:
                raise ValueError(
                    f"in_shape: expected one width where there are further arguments, which are laid beside x; got "
                    f"{self.in_shape}; flatten the data, and add up the widths."
                )
            x = _beside(x, context)
        return self.layers(x.flatten(-len(self.in_shape))).unflatten(-1, self.out_shape)


def _linear(width: int, next_width: int) -> nn.Linear:
    layer = nn.Linear(width, next_width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _vector(name: str, values: Tensor | float, size: int) -> Tensor:
    flat = torch.as_tensor(values, dtype=torch.get_default_dtype()).flatten()
    if len(flat) not in (1, size):
        raise ValueError(f"{name}: expected 1 or {size} numbers; got {len(flat)}; reshape it.")
    return _checks.finite(name, flat).expand(size)


def _beside(x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
    """Concatenate all arguments: `(..., D)`, `(..., C)`, ... to `(..., D + C + ...)`, scalars `(...)` too."""
    return torch.cat([x, *(value[..., None] if value.ndim == x.ndim - 1 else value for value in context)], dim=-1)


def over_leading_dims(network: nn.Module, x: Tensor, *context: Tensor, event_dim: int = 1) -> Tensor:
    """Call `network(x, *context)` for a network that takes one batch dimension only, as most convolutional ones do.

    Shapes: x `(..., *event)`, its last `event_dim` dimensions being the event's, and context with the same leading
    dimensions, to `(..., *out)`; the network sees `(prod(...), *event)`.

    Examples:
        >>> over_leading_dims(nn.Linear(2, 3), torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 3])
    """
    batch = x.shape[: x.ndim - event_dim]
    if len(batch) == 1:
        return network(x, *context)
    out = network(*(value.reshape(-1, *value.shape[len(batch) :]) for value in (x, *context)))
    return out.reshape(*batch, *out.shape[1:])


class Batched(nn.Module):
    """A network that takes one batch dimension only, made to take any leading dimensions.

    For the encoder of images inside plates to the left of that over data. Likelihoods do it themselves.

    Args:
        network: a module of x, and of further arguments.
        event_dim: how many dimensions a datum has: 3 for `(C, H, W)`.

    Shapes: `(..., *event)` to `(..., *out)`.

    Raises:
        TypeError, ValueError: for an `event_dim` that is no positive whole number.

    Examples:
        >>> Batched(nn.Conv2d(1, 4, 3), event_dim=3)(torch.zeros(5, 2, 1, 8, 8)).shape
        torch.Size([5, 2, 4, 6, 6])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = _checks.whole_number("event_dim", event_dim)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, `(..., *out)`."""
        return over_leading_dims(self.network, x, *context, event_dim=self.event_dim)

    def extra_repr(self) -> str:
        return f"event_dim={self.event_dim}"
