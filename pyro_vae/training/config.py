"""What a run was started with, as JSON."""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae._files import bytes_of, sha256_of
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.memory_mapped import MemoryMapped
from pyro_vae.training.trainee import Trainee
from pyro_vae.vae import file

__all__ = ["code_of", "config_of"]


def config_of(trainee: Trainee, data: Any, validation: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Describe the program, the data and all settings."""
    shapes = {name: list(tensor.shape) for name, tensor in trainee.tensors().items()}
    pair = [_name_of(trainee.model), _name_of(trainee.guide)]
    return {
        "program": pair if trainee.vae is None else file.description_or_reason(trainee.vae),
        "parameters": shapes,
        "data": _described(data),
        "validation": _described(validation),
        **{name: _described(value) for name, value in settings.items()},
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
    }


def code_of(*programs: Any) -> str:
    """Identify the code of this package, and of the files that programs are written in."""
    own = sorted(Path(__file__).parents[1].rglob("*.py"))
    files = [*own, *filter(None, map(_file_of, programs))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _file_of(program: Any) -> Path | None:
    """Find the file of a function or of a module's class; None for what was typed in."""
    written = inspect.unwrap(program) if inspect.isroutine(program) else type(program)
    try:
        found = inspect.getsourcefile(written)
    except TypeError:
        return None
    return Path(found) if found is not None and Path(found).is_file() else None


def _described(value: Any) -> Any:
    """Describe a value, so that another has another description."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Dataset):
        return value.provenance.as_dict()
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        return {"shape": list(tensor.shape), "sha256": sha256_of(bytes_of(tensor))}
    if isinstance(value, (tuple, list)):
        return [_described(each) for each in value]
    return _described_by_kind(value)


def _described_by_kind(value: Any) -> dict[str, Any]:
    if isinstance(value, PyroOptim):
        return {"optimizer": _name_of(value.pt_optim_constructor), "options": _options(value.pt_optim_args)}
    if isinstance(value, ELBO):
        return {"objective": type(value).__name__, "num_particles": value.num_particles}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    data = getattr(value, "dataset", value)  # of a DataLoader
    fingerprint = {"sha256": data.fingerprint} if isinstance(data, MemoryMapped) else {}
    length = len(value) if hasattr(value, "__len__") else None
    return {"type": type(value).__name__, "length": length, **fingerprint}


def _options(options: Any) -> Any:
    return {key: _described(value) for key, value in options.items()} if isinstance(options, dict) else "a function"


def _name_of(program: Any) -> str:
    return str(getattr(program, "__qualname__", type(program).__qualname__))
