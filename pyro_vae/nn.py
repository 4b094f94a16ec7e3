"""Networks. Any `torch.nn.Module` serves in their place; these keep the leading dimensions of what they are given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["MLP", "over_leading_dims"]


class MLP(nn.Module):
    r"""A multilayer perceptron, $h_{l+1} = \phi(W_l h_l + b_l)$, linear in its last layer.

    Weights start from Glorot's uniform distribution and biases at zero, so that activations keep their variance from
    layer to layer and the first outputs lie around `output_bias`.

    Args:
        in_shape: the width of the input, or the shape of one datum, which is then flattened.
        hidden_dims: the widths of the hidden layers; an empty sequence makes an affine map.
        out_shape: the width of the output, or the shape of one output.
        activation: makes the nonlinearity $\phi$; called once a hidden layer.
        output_bias: where the last bias starts, one number or one for each output. For a Bernoulli likelihood the
            logit of the data's mean, `torch.logit(dataset.mean, eps=1e-3)`, saves the first epochs.
        input_mean: the data's mean, one number or one for each input; the first bias then starts where the first layer
            sees centred data. For an encoder of images, `dataset.mean`.

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
        self.out_shape = _checks.shape("out_shape", out_shape)
        widths = [math.prod(self.in_shape), *_checks.shape("hidden_dims", hidden_dims), math.prod(self.out_shape)]
        first, *_ = linear = [_linear(width, next_width) for width, next_width in itertools.pairwise(widths)]
        *hidden, last = linear
        with torch.no_grad():
            if input_mean is not None:
                first.bias.sub_(first.weight @ _vector("input_mean", input_mean, first.in_features))
            if output_bias is not None:
                last.bias.add_(_vector("output_bias", output_bias, last.out_features))
        self.layers = nn.Sequential(*(part for layer in hidden for part in (layer, activation())), last)

    def forward(self, x: Tensor) -> Tensor:
        """The network's value: `(..., *in_shape)` to `(..., *out_shape)`."""
        flat = x.flatten(-len(self.in_shape))
        return self.layers(flat).unflatten(-1, self.out_shape)


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


def over_leading_dims(network: nn.Module, z: Tensor) -> Tensor:
    """`network(z)` for a network that knows one batch dimension only, as most convolutional ones do.

    Shapes: z `(..., D)` to `(..., *out)`; the network sees `(prod(...), D)`.

    Examples:
        >>> over_leading_dims(nn.Linear(2, 3), torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 3])
    """
    if z.ndim == 2:
        return network(z)
    out = network(z.reshape(-1, z.shape[-1]))
    return out.reshape(*z.shape[:-1], *out.shape[1:])
