"""Convolutional networks for images of any size."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import Residual, glorot, vector
from pyro_vae.nn.batched import over_leading_dims
from pyro_vae.nn.mlp import MLP

__all__ = ["ConvDecoder", "ConvEncoder"]

Activation = Callable[[], nn.Module]


class ConvEncoder(nn.Module):
    r"""Convolutions that halve an image, and a perceptron of what is left.

    Each stage is a convolution of 4 x 4 with stride 2, $\phi(W * h + b)$, after which a side of n pixels has
    $\lfloor n / 2 \rfloor$; any size will do. Two options change all stages:

    - `gated=True`: $\phi(W * h + b) \odot \sigma(V * h + c)$. With `activation=nn.Tanh` that is the gate of van den
      Oord et al., with `nn.Identity` the one of Dauphin et al.
    - `num_residual_blocks=n`: n blocks $h + W' * \phi(W * h + b) + b'$ of 3 x 3 after each stage.

    There is no BatchNorm: it makes q(z|x) of an image depend on the others in its batch, and log p(x) of one datum is
    then undefined. `normalize=True` normalises each image by itself.

    Args:
        in_shape: `(C, H, W)`.
        channels: of the stages, one each.
        out_shape: the width of the output, or its shape; for `DiagonalNormal` `2 * latent_dim`.
        hidden_dims: the widths of the perceptron's hidden layers.
        activation: makes the nonlinearity $\phi$; a smooth one, as SiLU is, suits estimators that take gradients.
        num_residual_blocks: how many follow each stage.
        gated: whether convolutions are gated.
        normalize: whether $\phi$ is applied to layer-normalised numbers: those of all channels and pixels of an image.
        context_dim: how many further numbers there are for each image, such as a label's; they are laid beside the
            perceptron's input.

    Shapes: x `(..., C, H, W)` and context of together `context_dim` numbers `(..., K)` to `(..., *out_shape)`, with any
    leading dimensions.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, images that are too small for so many
            stages, and x of another shape.

    References:
        Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional generative
        adversarial networks; He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition; van den Oord
        et al. (2016), Conditional image generation with PixelCNN decoders; Dauphin, Fan, Auli and Grangier (2017),
        Language modeling with gated convolutional networks; Ba, Kiros and Hinton (2016), Layer normalization.

    Examples:
        >>> encoder = ConvEncoder((3, 48, 36), [16, 32], 2 * 8, num_residual_blocks=1)
        >>> encoder(torch.zeros(7, 5, 3, 48, 36)).shape
        torch.Size([7, 5, 16])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int],
        out_shape: int | Sequence[int],
        hidden_dims: Sequence[int] = (),
        activation: Activation = nn.SiLU,
        num_residual_blocks: int = 0,
        gated: bool = False,
        normalize: bool = False,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = _image_shape("in_shape", in_shape)
        self.channels = _stages(channels)
        self.out_shape = _checks.shape("out_shape", out_shape)
        self.hidden_dims = _checks.shape("hidden_dims", hidden_dims)
        self.num_residual_blocks = _checks.whole_number("num_residual_blocks", num_residual_blocks, minimum=0)
        self.gated, self.normalize = gated, normalize
        self.context_dim = _checks.whole_number("context_dim", context_dim, minimum=0)
        *_, (height, width) = _halved("in_shape", self.in_shape, len(self.channels))
        form = functools.partial(_Convolution, activation=activation, gated=gated, normalize=normalize)
        self.stages = nn.Sequential()
        for before, after in itertools.pairwise((self.in_shape[0], *self.channels)):
            self.stages.append(form(nn.Conv2d, before, after, kernel_size=4, stride=2, padding=1))
            self.stages.extend(_residual_block(form, after) for _ in range(self.num_residual_blocks))
        width_of_head = self.channels[-1] * height * width + self.context_dim
        self.head = MLP(width_of_head, self.hidden_dims, self.out_shape, activation, normalize=normalize)

    @property
    def activation(self) -> Activation:
        """Makes a nonlinearity as the first one is."""
        return functools.partial(copy.deepcopy, self.stages.get_submodule("0.activation"))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Map `(..., C, H, W)`, and context, to `(..., *out_shape)`."""
        if tuple(x.shape[-3:]) != self.in_shape:
            raise ValueError(
                f"x: expected images (..., {', '.join(map(str, self.in_shape))}); got {tuple(x.shape)}; reshape them, "
                "or make the encoder for them."
            )
        return self.head(over_leading_dims(self.stages, x, event_dim=3).flatten(-3), *context)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, {_form(self)}"


class ConvDecoder(nn.Module):
    r"""A perceptron that makes a small image, and transposed convolutions that double it: `ConvEncoder` backwards.

    Each stage is a transposed convolution of 4 x 4 with stride 2, so that all pixels are covered evenly; a row more is
    made where the size needs it. The last one is linear. `gated`, `num_residual_blocks`, `normalize` and the absence of
    BatchNorm are as in `ConvEncoder`.

    Args:
        in_dim: how many numbers z has, and context if there is any.
        channels: of the stages' inputs, one each: those of an encoder, backwards.
        out_shape: `(C, H, W)`; as many times the channels of x as the likelihood has parameters for each pixel.
        hidden_dims: the widths of the perceptron's hidden layers.
        activation: makes the nonlinearity $\phi$.
        num_residual_blocks: how many come before each stage.
        gated: whether convolutions are gated.
        normalize: whether $\phi$ is applied to layer-normalised numbers.
        output_bias: where the last bias starts, one number or one for each channel of the output.

    Shapes: z `(..., D)`, and context, to `(..., C, H, W)`, with any leading dimensions.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, images that are too small for so many
            stages, and a bias of another size.

    References:
        Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional generative
        adversarial networks; Odena, Dumoulin and Olah (2016), Deconvolution and checkerboard artifacts, for the kernel;
        and those of `ConvEncoder`.

    Examples:
        >>> decoder = ConvDecoder(8, [32, 16], (3, 45, 37), gated=True)
        >>> decoder(torch.zeros(7, 5, 8)).shape
        torch.Size([7, 5, 3, 45, 37])
    """

    starting_values = ("output_bias",)
    """Arguments that set where parameters start, and are not kept."""

    def __init__(
        self,
        in_dim: int,
        channels: Sequence[int],
        out_shape: Sequence[int],
        hidden_dims: Sequence[int] = (),
        activation: Activation = nn.SiLU,
        num_residual_blocks: int = 0,
        gated: bool = False,
        normalize: bool = False,
        output_bias: Tensor | float | None = None,
    ) -> None:
        super().__init__()
        self.in_dim = _checks.whole_number("in_dim", in_dim)
        self.channels = _stages(channels)
        self.out_shape = _image_shape("out_shape", out_shape)
        self.hidden_dims = _checks.shape("hidden_dims", hidden_dims)
        self.num_residual_blocks = _checks.whole_number("num_residual_blocks", num_residual_blocks, minimum=0)
        self.gated, self.normalize = gated, normalize
        *larger, smallest = _halved("out_shape", self.out_shape, len(self.channels))
        self.foot = MLP(self.in_dim, self.hidden_dims, (self.channels[0], *smallest), activation, normalize=normalize)
        form = functools.partial(_Convolution, activation=activation, gated=gated, normalize=normalize)
        self.stages = nn.Sequential(activation())
        widths = itertools.pairwise((*self.channels, self.out_shape[0]))
        for (before, after), size in zip(widths, reversed(larger), strict=True):
            self.stages.extend(_residual_block(form, before) for _ in range(self.num_residual_blocks))
            make = _convolution if size == larger[0] else form  # the last one is linear
            rows_more = tuple(side % 2 for side in size)
            self.stages.append(
                make(nn.ConvTranspose2d, before, after, kernel_size=4, stride=2, padding=1, output_padding=rows_more)
            )
        if output_bias is not None:
            with torch.no_grad():
                self.stages[-1].get_parameter("bias").add_(vector("output_bias", output_bias, self.out_shape[0]))

    @property
    def activation(self) -> Activation:
        """Makes a nonlinearity as the first one is."""
        return functools.partial(copy.deepcopy, self.stages[0])

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., C, H, W)`; further arguments are concatenated with z."""
        return over_leading_dims(self.stages, self.foot(z, *context), event_dim=3)

    def extra_repr(self) -> str:
        return f"out_shape={self.out_shape}, {_form(self)}"


class _Convolution(nn.Module):
    r"""$\phi(W * h + b)$, or $\phi(W * h + b) \odot \sigma(V * h + c)$ where it is gated."""

    def __init__(
        self, kind: type[nn.Module], before: int, after: int, activation: Activation, gated: bool, normalize: bool,
        **options: int | tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.gated, num_outputs = gated, after * (2 if gated else 1)
        self.convolution = _convolution(kind, before, num_outputs, **options)
        # Layer normalisation is that of groups, if there is one group.
        self.normalization = nn.GroupNorm(1, num_outputs) if normalize else nn.Identity()
        self.activation = activation()

    def forward(self, h: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the next image."""
        out = self.normalization(self.convolution(h))
        if not self.gated:
            return self.activation(out)
        value, gate = out.chunk(2, 1)
        return self.activation(value) * gate.sigmoid()


def _residual_block(form: Callable[..., nn.Module], channels: int) -> nn.Module:
    inner = form(nn.Conv2d, channels, channels, kernel_size=3, padding=1)
    return Residual(nn.Sequential(inner, _convolution(nn.Conv2d, channels, channels, kernel_size=3, padding=1)))


def _convolution(kind: type[nn.Module], before: int, after: int, **options: int | tuple[int, ...]) -> nn.Module:
    # Each pixel that a transposed convolution makes is reached by one weight in four only.
    return glorot(kind(before, after, **options), gain=2.0 if kind is nn.ConvTranspose2d else 1.0)


def _image_shape(name: str, value: Sequence[int]) -> tuple[int, int, int]:
    sizes = _checks.shape(name, value)
    if len(sizes) != 3:
        raise ValueError(
            f"{name}: expected (channels, height, width); got {value!r}; grey images have one channel, (1, 28, 28)."
        )
    return sizes[0], sizes[1], sizes[2]


def _stages(channels: Sequence[int]) -> tuple[int, ...]:
    stages = _checks.shape("channels", channels)
    if not stages:
        raise ValueError("channels: expected one number a stage; got none; pass [32, 64], or use an MLP.")
    return stages


def _halved(name: str, shape: tuple[int, int, int], num_stages: int) -> list[tuple[int, int]]:
    """Return height and width before the first stage, and after each."""
    sizes = [(shape[1] // 2**stage, shape[2] // 2**stage) for stage in range(num_stages + 1)]
    if 0 in sizes[-1]:
        most = int(math.log2(min(shape[1:])))
        raise ValueError(
            f"channels: expected at most {most} stages for {name} {shape}, since each halves it; got {num_stages}; "
            "pass fewer."
        )
    return sizes


def _form(network: ConvEncoder | ConvDecoder) -> str:
    blocks = f", num_residual_blocks={network.num_residual_blocks}" if network.num_residual_blocks else ""
    return f"channels={network.channels}{blocks}" + "".join(
        f", {name}=True" for name in ("gated", "normalize") if getattr(network, name)
    )
