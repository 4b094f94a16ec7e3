"""`write_report`: a training run as one HTML page."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from pyro_vae import _checks
from pyro_vae._files import replace_file
from pyro_vae.evidence.result import Evidence
from pyro_vae.report.findings import Other, Pair, find
from pyro_vae.report.sections import page_of
from pyro_vae.vae import VAE

__all__ = ["write_report"]


def write_report(
    run: str | PathLike[str],
    data: Any = None,
    *,
    vae: VAE | Pair | None = None,
    evidence: Evidence | None = None,
    output: str | PathLike[str] | None = None,
    compare_with: Other | None = None,
    num_data: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write one HTML page about a run: how it trained, what it makes of data, log p(x), and how to run it again.

    The page needs no other file and no network, and can be read on a phone, in the dark and on paper. Whatever comes
    from files is escaped.

    Args:
        run: the folder that `fit(..., run=...)` kept the run in.
        data: data that it was not trained on: a `pyro_vae.data.Dataset`, a tensor `(N, ...)`, or a tuple of one of
            these and its context. Images are `(N, H, W)`, `(N, C, H, W)` or flat squares of 8 by 8 or more, with
            numbers from 0 to 1; all else is shown as tables.
        vae: the VAE, with the parameters of the run; by default `pv.load(run)`. Or the pair (model, guide), which a
            folder cannot bring back: without it, the page shows training alone.
        evidence: an evaluation of the first of the data; by default `log_evidence` of the first `num_data`.
        output: the file; `report.html` in the run's folder by default.
        compare_with: another run's folder, to be evaluated on the same data; the folder, and the VAE or pair that it
            cannot bring back; or its `Evidence` of these data.
        num_data: how many data to evaluate where there is no `evidence`.
        seed: fixes all draws.
        progress: show bars while log p(x) is evaluated.

    Returns:
        The path of the page.

    Raises:
        TypeError, ValueError: for a folder without a run; for data that the program cannot take, or that `evidence` is
            not of; for runs that cannot be compared.

    Examples:
        >>> import pathlib, tempfile, torch
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> run = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> _ = pv.fit(vae, torch.randn(200, 3), num_epochs=2, run=run, progress=False)
        >>> pv.write_report(run, torch.randn(20, 3), progress=False).name
        'report.html'
    """
    num_data, seed = _checks.whole_number("num_data", num_data), _checks.seed(seed)
    path = Path(run) / "report.html" if output is None else Path(output)
    findings = find(run, data, vae, evidence, compare_with, num_data, seed, progress)
    replace_file(path, page_of(findings, seed).encode())
    return path
