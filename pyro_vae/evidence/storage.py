"""Save and load results, and convert them for arviz, which is imported only here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_arviz", "read", "write"]

FORMAT = 1


def write(path: str | Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write a `.npz` file: plain arrays, and the record as JSON."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz; got {str(path)!r}; add it.")
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    np.savez_compressed(
        path, allow_pickle=False, record=np.array(json.dumps({**record, "format": FORMAT})), **_renamed(arrays)
    )


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the record that `write` wrote. Nothing is unpickled."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file that save wrote; got {str(path)!r}, which is not there.")
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            tensors = {name[len(PREFIX) :]: torch.as_tensor(file[name]) for name in file.files if name != "record"}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path: expected a file that save wrote; got {str(path)!r} ({error}); name another."
        ) from error
    if record.get("format") != FORMAT:
        raise ValueError(f"path: expected format {FORMAT}; got {record.get('format')}; read it with its own version.")
    return tensors, record


PREFIX = "tensor/"  # so that no site has the name of an argument of savez


def _renamed(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {PREFIX + name: value for name, value in arrays.items()}


def as_arviz(
    latents: dict[str, Tensor],
    log_prior: Tensor,
    log_likelihood: Tensor,
    observed: dict[str, Tensor],
    constant: dict[str, Tensor],
) -> Any:
    """Build an InferenceData (arviz 0.x) or DataTree (1.x). Draws are `(C, S, N, ...)`, all else `(N, ...)`."""
    import arviz as az

    name_of_x = next(iter(observed)) if len(observed) == 1 else "log_likelihood"
    values: dict[str, dict[str, Tensor]] = {
        "posterior": latents,
        "log_likelihood": {name_of_x: log_likelihood},
        "sample_stats": {"log_prior": log_prior, "lp": log_prior + log_likelihood},
        "observed_data": observed,
        "constant_data": constant,
    }
    groups: dict[str, Any] = {
        group: {_netcdf_name(name): _array(value) for name, value in each.items()} for group, each in values.items()
    }
    dims = {name: ["datum"] for each in groups.values() for name in each}
    if az.__version__.startswith("0."):  # groups are arguments; in 1.x they are one dictionary
        return az.from_dict(**groups, dims=dims)
    return az.from_dict(groups, dims=dims)


def _netcdf_name(name: str) -> str:
    """Replace slashes, which would make groups."""
    return name.replace("/", ".")


def _array(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    return array.astype(np.int8) if array.dtype == bool else array  # netCDF has no bool
