"""Read a VAE from a run, or from a file."""

from __future__ import annotations

import importlib
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pyro_vae import _checks
from pyro_vae.training.run import last_checkpoint, read_config
from pyro_vae.training.trainee import Trainee
from pyro_vae.vae import VAE, file
from pyro_vae.vae.description import build

__all__ = ["load"]

HOW_TO_PASS_ONE = 'pass a VAE of the same parts, or where it is made, vae="my_package.models:make_vae"'


def load(path: str | PathLike[str], vae: VAE | str | None = None, which: Literal["best", "last"] = "best") -> VAE:
    """Read a VAE from a run's folder, or from a file of `vae.save`.

    Reading runs no code from a file. A VAE that is made from its description has only public classes of pyro_vae and
    torch.nn.

    Args:
        path: the folder that `fit(..., run=...)` kept the run in, or a file.
        vae: a VAE of the same parts, whose parameters and buffers are replaced; or where it is found, as
            `"my_package.models:make_vae"`, a VAE or a function without arguments that returns one, which is imported.
            Without it, the VAE is made from its description, on the CPU, with the dtype and the name that it had.
        which: of a run: "best", by the validation ELBO, or the last where there was no validation; or "last".

    Returns:
        The VAE, in evaluation mode.

    Raises:
        TypeError, ValueError: for a folder without a run, a file that is damaged or of another format, a VAE with parts
            of other classes, which has no description, or parameters of other names or shapes, before any of them
            changes.

    Examples:
        >>> import pathlib, tempfile, torch
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> run = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> _ = pv.fit(vae, torch.randn(50, 3), num_epochs=1, run=run, progress=False)
        >>> again = pv.load(run)
        >>> all(map(torch.equal, vae.parameters(), again.parameters()))
        True
    """
    _checks.choice("which", which, ("best", "last"))
    path = Path(path)
    program, weights = _from_run(path, which) if path.is_dir() else file.read(path)
    vae = _built(path, program, weights) if vae is None else _given(vae)
    Trainee.of(vae).load(weights, str(path))
    return vae.eval()


def _from_run(folder: Path, which: str) -> tuple[Any, dict[str, Tensor]]:
    """Read what a run trains, and its parameters."""
    checkpoint = last_checkpoint(folder)
    best = checkpoint.best if which == "best" else None
    return read_config(folder).get("program"), checkpoint.weights if best is None else best


def _built(path: Path, program: Any, weights: dict[str, Tensor]) -> VAE:
    """Make a VAE from its description, with the dtype of its parameters."""
    if not isinstance(program, dict):
        raise ValueError(
            f"{path}: expected a run of a VAE; got that of {program!s:.200}; read a pair's by pv.fit(..., resume=True)."
        )
    if "undescribed" in program:
        raise ValueError(
            f"{path}: expected a VAE that can be made from its description; got one that cannot: "
            f"{program['undescribed']}; {HOW_TO_PASS_ONE}."
        )
    try:
        vae = build(program)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected the description of a VAE; got an error, {error}; {HOW_TO_PASS_ONE}."
        ) from error
    if not isinstance(vae, VAE):
        raise ValueError(
            f"{path}: expected the description of a VAE; got that of a {type(vae).__name__}; {HOW_TO_PASS_ONE}."
        )
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    return vae.to(dtypes.pop()) if len(dtypes) == 1 else vae


def _given(vae: Any) -> VAE:
    """Return the caller's VAE, which may be named by where it is found."""
    found = _imported(vae) if isinstance(vae, str) else vae
    if not isinstance(found, VAE):
        raise TypeError(f"vae: expected a VAE of the parts that were trained; got {found!r}; make one.")
    return found


def _imported(where: str) -> Any:
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ValueError(
            f'vae: expected "package.module:name"; got {where!r}; write the path of a VAE, or of a function.'
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"vae: expected {name!r} in a module {module!r}; got an error, {error}; name another."
        ) from error
    return found if isinstance(found, VAE) or not callable(found) else found()
