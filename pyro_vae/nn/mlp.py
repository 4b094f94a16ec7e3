"""Multilayer perceptrons."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import Residual, glorot, vector

__all__ = ["MLP"]


class MLP(nn.Module):
    r"""A multilayer perceptron, $h_{l+1} = \phi(W_l h_l + b_l)$, linear in its last layer.

    With `residual=True` all hidden layers but the first are added to what they take, $h_{l+1} = h_l + \phi(W_l h_l +
    b_l)$; with `normalize=True` $\phi$ is applied to $\mathrm{LayerNorm}(W_l h_l + b_l)$. That normalises each datum by
    itself; BatchNorm would make log p(x) of one datum depend on the others in its batch.

    Weights start from Glorot's uniform distribution and biases at zero, so that activations keep their variance from
    layer to layer and the first outputs lie around `output_bias`.

    Args:
        in_shape: the width of the input, or the shape of one datum, which is then flattened; `()` for scalars.
        hidden_dims: the widths of the hidden layers; an empty sequence makes an affine map.
        out_shape: the width of the output, or the shape of one output.
        activation: makes the nonlinearity $\phi$; called once for each hidden layer.
        output_bias: where the last bias starts, one number or one for each output. For a Bernoulli likelihood the
            logit of the data's mean, `torch.logit(dataset.mean, eps=1e-3)`, saves the first epochs.
        input_mean: the data's mean, one number or one for each input; the first bias then starts so that the first
            layer sees centred data. For an encoder of images, `dataset.mean`.
        residual: whether hidden layers are added to their input; all of them then have one width.
        normalize: whether hidden layers are layer-normalised.

    Shapes: `(..., *in_shape)` to `(..., *out_shape)`, with any leading dimensions.

    Raises:
        TypeError, ValueError: for a size that is no positive whole number, a bias of another size, or residual layers
            of several widths.

    References:
        Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural networks; for centred
        inputs, LeCun, Bottou, Orr and Mueller (1998), Efficient backprop; He, Zhang, Ren and Sun (2016), Deep residual
        learning for image recognition; Ba, Kiros and Hinton (2016), Layer normalization.

    Examples:
        >>> net = MLP(50, [200, 200], (1, 28, 28))
        >>> net(torch.zeros(7, 3, 50)).shape
        torch.Size([7, 3, 1, 28, 28])
        >>> MLP(2, [64] * 4, 784, nn.SiLU, residual=True, normalize=True)(torch.zeros(7, 2)).shape
        torch.Size([7, 784])
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
        residual: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = _checks.shape("in_shape", in_shape)
        self.hidden_dims = _checks.shape("hidden_dims", hidden_dims)
        self.out_shape = _checks.shape("out_shape", out_shape)
        self.residual, self.normalize = residual, normalize
        if residual and len({*self.hidden_dims}) > 1:
            raise ValueError(
                f"hidden_dims: expected one width for all residual layers; got {self.hidden_dims}; make them equal, or "
                "leave residual out."
            )
        widths = [math.prod(self.in_shape), *self.hidden_dims, math.prod(self.out_shape)]
        first, *_ = linear = [glorot(nn.Linear(width, following)) for width, following in itertools.pairwise(widths)]
        *hidden, last = linear
        with torch.no_grad():
            if input_mean is not None:
                first.bias.sub_(first.weight @ vector("input_mean", input_mean, first.in_features))
            if output_bias is not None:
                last.bias.add_(vector("output_bias", output_bias, last.out_features))
        self.layers = nn.Sequential(*self._hidden(hidden, activation), last)

    def _hidden(self, linear: list[nn.Module], activation: Callable[[], nn.Module]) -> Iterator[nn.Module]:
        for place, layer in enumerate(linear):
            parts = [layer, *([nn.LayerNorm(layer.out_features)] if self.normalize else []), activation()]
            if self.residual and place > 0:
                yield Residual(nn.Sequential(*parts))
            else:
                yield from parts

    @property
    def activation(self) -> Callable[[], nn.Module]:
        """Makes a nonlinearity as the first one is; without hidden layers there is none, and it stands for any."""
        # Not the function that was given: one that is local could not be pickled.
        return (
            functools.partial(copy.deepcopy, self.layers[2 if self.normalize else 1]) if self.hidden_dims else nn.Tanh
        )

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Map `(..., *in_shape)` to `(..., *out_shape)`; further arguments are concatenated with x."""
        if context:
            if len(self.in_shape) > 1:
                raise ValueError(
                    f"in_shape: expected one width where there are further arguments, which are laid beside x; got "
                    f"{self.in_shape}; flatten the data, and add up the widths."
                )
            x = _beside(x, context)
        x = x.flatten(-len(self.in_shape)) if self.in_shape else x[..., None]
        return self.layers(x).unflatten(-1, self.out_shape)


def _beside(x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
    """Concatenate all arguments: `(..., D)`, `(..., C)`, ... to `(..., D + C + ...)`, scalars `(...)` too."""
    return torch.cat([x, *(value[..., None] if value.ndim == x.ndim - 1 else value for value in context)], dim=-1)
