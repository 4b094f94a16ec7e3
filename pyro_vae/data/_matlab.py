"""Read arrays from MATLAB files up to version 7. The only file that imports scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_vae import _checks
from pyro_vae.data._shared import damaged

__all__ = ["read_mat"]


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Read the arrays of some names."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise _checks.missing_package("data_dir", "scipy", f"to read {path}") from error
    try:
        found = loadmat(path)
    except Exception as error:  # scipy raises errors of many kinds for other bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise damaged(path, "a MATLAB file up to version 7", reason, "put it there again") from error
    absent = [name for name in names if name not in found]
    if absent:
        listed = ", ".join(name for name in found if not name.startswith("__")) or "none"
        raise ValueError(
            f"data_dir: expected an array {absent[0]!r} in {path}; got {listed}; put the right file there."
        )
    return [np.asarray(found[name]) for name in names]
