"""Read the parameters of a run."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

from pyro_vae import _checks
from pyro_vae.training.run import last_checkpoint
from pyro_vae.training.trainee import Trainee
from pyro_vae.vae import VAE

__all__ = ["load"]


def load(run: str | PathLike[str], vae: VAE, which: Literal["best", "last"] = "best") -> VAE:
    """Set the parameters of a VAE to those of a run.

    Args:
        run: the folder that `fit(..., run=...)` kept the run in. Reading it runs no code from its files.
        vae: a VAE of the same parts, whose parameters and buffers are replaced.
        which: "best", by the validation ELBO, or the last where there was no validation; or "last".

    Returns:
        The VAE, in evaluation mode.

    Raises:
        TypeError, ValueError: for a folder without a run, a file that is damaged or of another format, or parameters
            of other names or shapes, before any of them changes.

    Examples:
        >>> import pathlib, tempfile, torch
        >>> import pyro_vae as pv
        >>> def new():
        ...     return pv.VAE(
        ...         pv.priors.StandardNormal(1),
        ...         pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...         pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ...     )
        >>> run = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> trained = new()
        >>> _ = pv.fit(trained, torch.randn(50, 3), num_epochs=1, run=run, progress=False)
        >>> again = pv.load(run, new())
        >>> all(map(torch.equal, trained.parameters(), again.parameters()))
        True
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"vae: expected a VAE of the parts that were trained; got {vae!r}; make one.")
    _checks.choice("which", which, ("best", "last"))
    checkpoint = last_checkpoint(Path(run))
    best = checkpoint.best if which == "best" else None
    Trainee.of(vae).load(checkpoint.weights if best is None else best, "run")
    return vae.eval()
