"""Encoder and decoder as files that run without pyro_vae, or without Python."""

from __future__ import annotations

import copy
import importlib.util
import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae._files import replace_file
from pyro_vae.compile.graph import reason_of
from pyro_vae.distributions import Incomplete
from pyro_vae.vae import VAE
from pyro_vae.vae.datum import any_parameter

__all__ = ["onnx", "torch_program"]

NEEDED_FOR_ONNX = ("onnx", "onnxscript")


def torch_program(vae: VAE, folder: str | PathLike[str]) -> list[Path]:
    """Write `encoder.pt2` and `decoder.pt2`, which `torch.export.load` reads where there is only torch.

    The encoder maps `(x, *context)` to the parameters of q(z|x), the decoder `(z, *context)` to those of p(x|z), each
    a dictionary of tensors by name: `loc` and `scale` of a Gaussian, `logits` of a Bernoulli. Both are as in evaluation
    mode, in the dtype and on the device of the VAE, and check no data.

    Args:
        vae: a VAE whose q(z|x) and p(x|z) are distributions with parameters, of independent numbers or not: no mixture,
            and nothing that is transformed.
        folder: made if there is none; files of these names are replaced.

    Shapes: x `(N, *event_shape)`, z `(N, *latent_shape)` and context `(N, *shape)`, for any N.

    Returns:
        The paths of both files.

    Raises:
        TypeError, ValueError: for anything but a VAE, a distribution without parameters, and a network that branches on
            values or depends on N.

    Examples:
        >>> import tempfile, torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> encoder, decoder = pv.export.torch_program(vae, tempfile.mkdtemp())
        >>> out = torch.export.load(encoder).module()(torch.zeros(5, 3))
        >>> sorted(out), out["loc"].shape
        (['loc', 'scale'], torch.Size([5, 1]))
    """
    contents = {f"{name}.pt2": _as_pt2(part.exported()) for name, part in _parts(vae).items()}
    return _written(Path(folder), contents)


def onnx(vae: VAE, folder: str | PathLike[str]) -> list[Path]:
    """Write `encoder.onnx` and `decoder.onnx`, which ONNX Runtime and other runtimes read.

    Inputs are `x` or `z`, with `context_0` and so on; outputs have the names of the distribution's parameters. All else
    is as for `torch_program`. Needs the packages `onnx` and `onnxscript`: `pip install "pyro-vae[onnx]"`. A file has
    less than 2 GiB.

    Raises:
        ImportError: without these packages.
        TypeError, ValueError: as `torch_program` does, and for an operation that ONNX has not, such as a Cholesky
            factorization.
    """
    missing = [package for package in NEEDED_FOR_ONNX if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"onnx: expected the packages {' and '.join(NEEDED_FOR_ONNX)}; got no {' and no '.join(missing)}; "
            'pip install "pyro-vae[onnx]".'
        )
    contents = {f"{name}.onnx": _as_onnx(part) for name, part in _parts(vae).items()}
    return _written(Path(folder), contents)


class _Parameters(nn.Module):
    """A part of a VAE, from tensors to the parameters of its distribution."""

    def __init__(self, role: str, part: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.part = copy.deepcopy(part).eval().requires_grad_(False)
        self.role, self.inputs = role, tuple(inputs.values())
        self.input_names = list(inputs)
        with pyro.validation_enabled(False), torch.no_grad():
            self.output_names = _names_of_parameters(role, self.part(*self.inputs))

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        distribution = _base_of(self.part(*inputs))
        return {name: getattr(distribution, name) for name in self.output_names}

    def exported(self) -> Any:
        """Record the part as a graph, for any number of rows."""
        rows = torch.export.Dim("rows")
        shapes = (tuple({0: rows} for _ in self.inputs),)
        try:
            with pyro.validation_enabled(False), _checks.trusting_values():
                return torch.export.export(self, self.inputs, dynamic_shapes=shapes)
        except Exception as error:  # whatever the compiler raises
            raise ValueError(
                f"{self.role}: expected a network that is one graph for any number of rows; got {reason_of(error)}; "
                "replace what branches on values or on the number of rows."
            ) from error


def _parts(vae: Any) -> dict[str, _Parameters]:
    """Return encoder and decoder."""
    if not isinstance(vae, VAE):
        raise TypeError(f"vae: expected a VAE; got {vae!r}; pass one.")
    like, datum = any_parameter(vae), vae.model.datum
    context = {f"context_{i}": _rows_of(shape, like) for i, shape in enumerate(vae.context_shapes)}
    return {
        "encoder": _Parameters("posterior", vae.posterior, {"x": _rows_of(datum.event_shape, like), **context}),
        "decoder": _Parameters("likelihood", vae.likelihood, {"z": _rows_of(datum.latent_shape, like), **context}),
    }


def _rows_of(shape: Sequence[int], like: Tensor | None) -> Tensor:
    """Return two rows of ones, to try a part on."""
    return torch.ones(2, *shape) if like is None else torch.ones(2, *shape, dtype=like.dtype, device=like.device)


def _base_of(distribution: Any) -> Any:
    """Return what `to_event` wraps, and what makes data incomplete."""
    while isinstance(distribution, (torch.distributions.Independent, Incomplete)):
        distribution = distribution.base_dist
    return distribution


def _names_of_parameters(role: str, distribution: Any) -> list[str]:
    """Return the names of a distribution's parameters; of equivalent ones, those that it was made of."""
    base = _base_of(distribution)
    names = [*getattr(base, "arg_constraints", {})]
    if not names:
        raise TypeError(
            f"{role}: expected a distribution with parameters, of independent numbers or not; got a "
            f"{type(base).__name__}, which has none of its own; export the networks inside it by torch.export."
        )
    return [name for name in names if name in vars(base)] or names


def _as_pt2(program: Any) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _as_onnx(part: _Parameters) -> bytes:
    graph = part.exported()
    names: dict[str, Any] = {"input_names": part.input_names, "output_names": part.output_names}
    try:
        program: Any = torch.onnx.export(graph, **names, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"{part.role}: expected operations that ONNX has; got {reason_of(error)}; replace it, or take "
            "torch_program."
        ) from error
    return program.model_proto.SerializeToString()


def _written(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Write files, each whole or not at all, when all of them are made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content)
    return [folder / name for name in contents]
