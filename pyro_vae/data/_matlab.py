"""Read arrays from MATLAB files up to version 7. The only file that imports scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["read_mat"]


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Read the arrays of some names."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            f"data_dir: expected the package scipy, to read {path}; got none; pip install scipy."
        ) from error
    try:
        found = loadmat(path)
    except Exception as error:  # scipy raises errors of many kinds for other bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data_dir: expected a MATLAB file up to version 7 in {path}; got another ({reason:.200}): it is "
            "truncated, corrupted or of another kind; put it there again."
        ) from error
    absent = [name for name in names if name not in found]
    if absent:
        listed = ", ".join(name for name in found if not name.startswith("__")) or "none"
        raise ValueError(
            f"data_dir: expected an array {absent[0]!r} in {path}; got {listed}; put the right file there."
        )
    return [np.asarray(found[name]) for name in names]
