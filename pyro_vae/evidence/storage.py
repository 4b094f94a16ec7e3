"""Save and load results, and convert them for arviz, which is imported only here."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evidence.bounds import Bound
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.observed import Observed

if TYPE_CHECKING:
    from pyro_vae.evidence.result import Evidence

__all__ = ["PER_DATUM", "as_arviz", "fields_from", "save"]

FORMAT = 1
PREFIX = "tensor/"  # so that no site has the name of an argument of savez
PER_DATUM = (
    "log_evidence",
    "std_error",
    "ess",
    "khat",
    "reliable",
    "jackknife",
    "num_evaluations",
    "rate",
    "distortion",
)
RECORDED = ("num_samples", "seed", "method", "settings", "is_bound")
OBSERVED = ("fingerprint", "num_dims", "is_masked", "kind")
GUIDE_ELBO = ("bounds/elbo/value", "bounds/elbo/std_error")


def save(evidence: Evidence, path: str | Path) -> None:
    """Write a `.npz` file of plain arrays, and a record as JSON."""
    tensors: dict[str, Tensor] = {name: getattr(evidence, name) for name in PER_DATUM}
    for k, bound in (*evidence.all_bounds.items(), ("elbo", evidence.guide_elbo)):
        tensors |= {f"bounds/{k}/value": bound.value, f"bounds/{k}/std_error": bound.std_error}
    tensors |= _put_under("observed/", evidence.observed.values) | _put_under("diagnostics/", evidence.diagnostics)
    if evidence.draws is not None:
        tensors |= _put_under("latents/", evidence.draws.latents)
        tensors |= {"log_prior": evidence.draws.log_prior, "log_likelihood": evidence.draws.log_likelihood}
    record = {name: getattr(evidence, name) for name in RECORDED}
    _write(path, tensors, record | {name: getattr(evidence.observed, name) for name in OBSERVED})


def fields_from(path: str | Path) -> dict[str, Any]:
    """Read what `save` wrote, as fields of `Evidence`."""
    tensors, record = _read(path)
    missing = {*PER_DATUM, *GUIDE_ELBO, *RECORDED, *OBSERVED} - tensors.keys() - record.keys()
    if missing:
        raise ValueError(f"path: expected a file that save wrote; got {str(path)!r} without {min(missing)!r}.")
    latents = _found_under("latents/", tensors)
    return {
        **{name: tensors[name] for name in PER_DATUM},
        **{name: record[name] for name in RECORDED},
        "method": tuple(record["method"]),
        "all_bounds": _bounds(_found_under("bounds/", tensors)),
        "observed": Observed(_found_under("observed/", tensors), *(record[name] for name in OBSERVED)),
        "guide_elbo": Bound(1, *(tensors[name] for name in GUIDE_ELBO)),
        "draws": Draws(latents, tensors["log_prior"], tensors["log_likelihood"]) if latents else None,
        "diagnostics": _found_under("diagnostics/", tensors),
    }


def _bounds(tensors: dict[str, Tensor]) -> dict[int, Bound]:
    ks = sorted({int(name.split("/")[0]) for name in tensors if not name.startswith("elbo")})
    return {k: Bound(k, tensors[f"{k}/value"], tensors[f"{k}/std_error"]) for k in ks}


def _put_under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def _found_under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _write(path: str | Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz; got {str(path)!r}; add it.")
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    record_as_text = np.array(json.dumps({**record, "format": FORMAT}))
    np.savez_compressed(path, allow_pickle=False, record=record_as_text, **_put_under(PREFIX, arrays))


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the record. Nothing is unpickled."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file that save wrote; got {str(path)!r}, which is not there.")
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            tensors = {name: torch.as_tensor(array) for name, array in _found_under(PREFIX, file).items()}
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path: expected a file that save wrote; got {str(path)!r} ({error}); name another."
        ) from error
    if record.get("format") != FORMAT:
        raise ValueError(f"path: expected format {FORMAT}; got {record.get('format')}; read it with its own version.")
    return tensors, record


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
