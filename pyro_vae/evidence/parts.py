"""What was measured of each block, on disk as it comes: an evaluation that was killed goes on from there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_vae import _checks, distributed
from pyro_vae._files import (
    as_json,
    as_safetensors,
    from_json,
    from_safetensors,
    read_json,
    read_own_file,
    replace_file,
    sha256_of,
)

__all__ = ["Parts"]

Part = TypeVar("Part")

FORMAT = 1
EVALUATION, RECORD = "evaluation.json", "record"
LARGEST = 1 << 32
"""Bytes of a file; a larger one is none of ours."""
PACKAGE = "pyro_vae."
LARGEST_DIFFERENCE = 1e-5
"""Nats, relative, by which log weights of the same draws may differ: other machines round otherwise."""


class Parts:
    """A folder with one file for each block that was measured, named by its place and by its sha256.

    Files hold tensors and JSON; reading them runs no code. One that is damaged is measured again.

    Args:
        folder: a new one, or that of the same evaluation.
        evaluation: what decides its numbers: settings, data, versions.
        log_weights: those of a few draws, which another program, or other parameters, would weigh otherwise.

    Raises:
        ValueError: for a folder with another evaluation, or one that cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], evaluation: dict[str, Any], log_weights: Tensor) -> None:
        self.folder = Path(folder)
        mine = {"format": FORMAT, **evaluation, "log_weights": [repr(each) for each in log_weights.flatten().tolist()]}
        team = distributed.team()
        if team is None:
            self._open(mine)
        else:
            team.by_the_first(lambda: self._open(mine))
            self.folder.mkdir(parents=True, exist_ok=True)  # on a disk of its own, if the first one's is elsewhere

    def of_block(self, place: int, measure: Callable[[], Part]) -> Part:
        """Return what is there of a block, or measure it and write it."""
        for path in sorted(self.folder.glob(f"block-{place:012d}-*.safetensors")):
            try:
                return self._read(path)
            except Exception as error:  # whatever is wrong with a file, its block can be measured again
                _checks.warn(
                    f"partial: expected {path.name!r} as it was written; got an error, {error}; its data are measured "
                    "again."
                )
                path.unlink(missing_ok=True)
        tensors: dict[str, Tensor] = {}
        packed = _packed(measure(), tensors)
        record = as_json({"part": packed})
        content = as_safetensors({**tensors, RECORD: torch.frombuffer(bytearray(record), dtype=torch.uint8)})
        replace_file(self.folder / f"block-{place:012d}-{sha256_of(content)[:16]}.safetensors", content)
        return _unpacked(packed, tensors)  # on the CPU, as it will be read

    def _open(self, mine: dict[str, Any]) -> None:
        path = self.folder / EVALUATION
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(self.folder.iterdir()):
                    raise ValueError(
                        f"partial: expected a new folder, or that of an evaluation that was begun; got "
                        f"{str(self.folder)!r}, which has other files; name another."
                    )
                replace_file(path, as_json(mine))
        except OSError as error:
            raise ValueError(
                f"partial: expected a folder that can be written to; got {str(self.folder)!r} ({error.strerror}); make "
                "room or get leave to write there, or name another."
            ) from error
        found = read_json(path)
        others = [name for name in mine if name != "log_weights" and found.get(name) != mine[name]]
        if not others and not _are_close(mine["log_weights"], found.get("log_weights")):
            others = ["model, guide or parameters"]
        if others:
            raise ValueError(
                f"partial: expected the folder of this evaluation; got {str(self.folder)!r}, begun with another "
                f"{', '.join(others)}; remove it, or name another."
            )

    def _read(self, path: Path) -> Any:
        content = read_own_file(path, LARGEST)
        if not path.stem.endswith(sha256_of(content)[:16]):
            raise ValueError("another sha256")
        tensors = from_safetensors(path, content)
        record = from_json(path, tensors.pop(RECORD).numpy().tobytes())
        return _unpacked(record["part"], tensors)


def _are_close(mine: list[str], found: Any) -> bool:
    if not isinstance(found, list) or len(found) != len(mine):
        return False
    try:
        one, other = (torch.tensor([*map(float, each)]) for each in (mine, found))
    except (TypeError, ValueError):
        return False
    return torch.allclose(one, other, rtol=LARGEST_DIFFERENCE, atol=LARGEST_DIFFERENCE, equal_nan=True)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Write a value as JSON, with its tensors aside; an object of this package as its class and its fields."""
    if value is None or isinstance(value, (bool, int, str, float)):
        return {"$float": repr(value)} if isinstance(value, float) else value
    if isinstance(value, Tensor):
        name = f"{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, slice):
        return {"$slice": [value.start, value.stop]}
    if type(value) in (list, tuple):
        packed = [_packed(each, tensors) for each in value]
        return packed if type(value) is list else {"$tuple": packed}
    if type(value) is dict:
        return {"$pairs": [[_packed(each, tensors) for each in pair] for pair in value.items()]}
    kind: Any = type(value)
    fields = dict(zip(kind._fields, value, strict=True)) if isinstance(value, tuple) else vars(value)
    if not kind.__module__.startswith(PACKAGE):
        raise TypeError(f"partial: expected numbers, tensors and objects of this package; got a {kind.__name__}.")
    return {"$object": [kind.__module__, kind.__qualname__, _packed(dict(fields), tensors)]}


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return READERS[tag](content, tensors)


READERS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "$float": lambda text, _: float(text),
    "$pairs": lambda pairs, tensors: dict(_unpacked(pairs, tensors)),
    "$tensor": lambda name, tensors: tensors[name],
    "$slice": lambda ends, _: slice(*ends),
    "$tuple": lambda values, tensors: tuple(_unpacked(values, tensors)),
    "$object": lambda made, tensors: _made(made[0], made[1], _unpacked(made[2], tensors)),
}


def _made(module: str, name: str, fields: dict[str, Any]) -> Any:
    """Make an object of this package from its fields, of a class that holds nothing else; no code of its own runs."""
    kind = getattr(sys.modules.get(module), name, None) if module.startswith(PACKAGE) else None
    if not isinstance(kind, type) or kind.__module__ != module or not name.isidentifier():
        raise ValueError(f"an object of {module}.{name}")
    if issubclass(kind, tuple):
        return kind(**fields)
    made = object.__new__(kind)
    made.__dict__.update(fields)
    return made
