"""Save and load results, and convert them for arviz, which is imported only here."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._files import LONGEST, replace_file
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
    """Read what `save` wrote, as fields of `Evidence`.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that `save` cannot have written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file that save wrote; got {str(path)!r}, which is not there.")
    tensors, record = _read(path)
    try:
        problem = next(_problems(tensors, record), None)
        if problem is None:
            return _fields(tensors, record)
    except KeyError as error:
        problem = f"no {error}"
    raise _refused(path, problem)


def _fields(tensors: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Any]:
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


def _problems(tensors: dict[str, Tensor], record: dict[str, Any]) -> Iterator[str]:
    """Yield what no evaluation of N data returns."""
    num_data = tensors["log_evidence"].numel()
    for name, value in tensors.items():
        is_figure = name in PER_DATUM or re.fullmatch(BOUND, name) is not None
        if not (value.shape == (num_data,) if is_figure else _is_of(num_data, name, value)):
            yield f"{name} of shape {tuple(value.shape)} for {num_data} data"
        if is_figure and value.dtype != TYPES.get(name, torch.float64):
            yield f"{name} of {value.dtype}"
    yield from (f"a {name} of {record[name]!r:.100}" for name, is_one in KINDS.items() if not is_one(record[name]))
    if len(record["method"]) != num_data:
        yield f"methods of {len(record['method'])} data for {num_data}"


def _is_of(num_data: int, name: str, value: Tensor) -> bool:
    """Tell whether a tensor is one of draws `(S, N, ...)`, of data `(N, ...)`, or of diagnostics, which are either."""
    kind = name.split("/", maxsplit=1)[0]
    of_data, of_draws = value.shape[:1] == (num_data,), value.shape[1:2] == (num_data,)
    expected = {"observed": of_data, "diagnostics": of_data or of_draws}
    return expected.get(kind, of_draws and kind in ("latents", "log_prior", "log_likelihood"))


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


BOUND = r"bounds/(elbo|[1-9]\d{0,11})/(value|std_error)"
TYPES = {"reliable": torch.bool, "num_evaluations": torch.int64}
KINDS: dict[str, Callable[[Any], bool]] = {
    "num_samples": lambda value: value is None or _is_whole(value),
    "seed": _is_whole,
    "method": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "settings": lambda value: isinstance(value, dict),
    "is_bound": lambda value: isinstance(value, bool),
    "fingerprint": lambda value: isinstance(value, str),
    "num_dims": _is_whole,
    "is_masked": lambda value: isinstance(value, bool),
    "kind": lambda value: value in ("probability", "density", "mixed", "factor"),
}


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
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, record=record_as_text, **_put_under(PREFIX, arrays))
    replace_file(path, content.getvalue())


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the record. Nothing is unpickled, and no more unpacked than such a file can hold."""
    try:
        with zipfile.ZipFile(path) as file:
            sizes = sum(member.file_size for member in file.infolist())
        if sizes > LARGEST_RATIO * path.stat().st_size + LARGEST_SMALL:
            raise _refused(path, f"{sizes:,} bytes packed into {path.stat().st_size:,}")
        with np.load(path, allow_pickle=False) as file:
            record = dict(json.loads(str(file["record"])))
            tensors = {name: torch.as_tensor(array) for name, array in _found_under(PREFIX, file).items()}
    except Exception as error:  # zipfile, zlib and numpy raise errors of many kinds for other bytes
        raise error if isinstance(error, _Refused) else _refused(path, str(error) or type(error).__name__) from error
    if record.get("format") != FORMAT:
        found = repr(record.get("format"))[:100]
        raise ValueError(f"path: expected {str(path)!r} of format {FORMAT}; got {found}; read it with its own version.")
    return tensors, record


REMEDY = "name another file, or evaluate again"
LARGEST_RATIO, LARGEST_SMALL = 100, 1 << 28
"""Bytes that one byte of a file may stand for, and those that any file may hold."""


class _Refused(ValueError):
    pass


def _refused(path: Path, found: str) -> _Refused:
    found = found[:LONGEST]
    return _Refused(f"path: expected a file that save wrote; got {str(path)!r} ({found}); {REMEDY}.")


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
