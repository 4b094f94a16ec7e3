"""Files that are written whole or not at all, and read within bounds, without running code from them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = [
    "LARGEST_JSON",
    "LONGEST",
    "RESTORE",
    "as_json",
    "as_safetensors",
    "bytes_of",
    "from_json",
    "from_safetensors",
    "make_folder",
    "read_file",
    "read_json",
    "read_own_file",
    "refuse",
    "replace_file",
    "sha256_of",
]


LARGEST_JSON = 1 << 24
"""Bytes of a JSON file whose size is not on record: a larger one is none of ours."""
RESTORE = "restore the file from a copy, or make another"
LONGEST = 300
"""Characters of what was found that a message repeats."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, and give it its own when all of it lies on the disk."""
    temporary = _temporary(path)
    try:
        _write(temporary, content)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    _sync(path.parent)


def make_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of files, in the same way; the folder around it has to be there."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, content in files.items():
            _write(temporary / name, content)
        _sync(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def read_file(path: Path, most: int, remedy: str = RESTORE) -> bytes:
    """Read a plain file of at most so many bytes: a pipe never ends."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            refuse(path, "a plain file", f"a {_kind_of(found.st_mode)}", remedy)
        if found.st_size > most:
            refuse(path, f"at most {most:,} bytes", f"{found.st_size:,}", remedy)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read; got {error.strerror}; {remedy}.") from error


def read_own_file(path: Path, most: int, remedy: str = RESTORE) -> bytes:
    """Read a file of a folder that the package writes, where links lead elsewhere."""
    if path.is_symlink():
        refuse(path, "a plain file", "a symbolic link", remedy)
    return read_file(path, most, remedy)


def read_json(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """Read a JSON object from a small file."""
    return from_json(path, read_file(path, LARGEST_JSON, remedy), remedy)


def as_json(values: Mapping[str, Any]) -> bytes:
    """Write an object as JSON, without NaN and infinity, which JSON has not."""
    return json.dumps(values, indent=1, allow_nan=False).encode()


def from_json(path: Path, content: bytes, remedy: str = RESTORE) -> dict[str, Any]:
    """Read a JSON object, without NaN and infinity."""
    try:
        found = json.loads(content, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        refuse(path, "JSON", str(error), remedy, error)
    if not isinstance(found, dict):
        refuse(path, "a JSON object", type(found).__name__, remedy)
    return found


def as_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Write tensors, from wherever they are, and text about them."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(copies, metadata)


def from_safetensors(path: Path, content: bytes, remedy: str = RESTORE) -> dict[str, Tensor]:
    """Read tensors; they are copies, so that none is larger than the file."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        refuse(path, "safetensors", str(error), remedy, error)


def bytes_of(tensor: Tensor) -> memoryview:
    """Look at a tensor's bytes, without copying those that are on the CPU already: they may be mapped from a file."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def sha256_of(content: bytes | memoryview) -> str:
    """Return what tells contents apart."""
    return hashlib.sha256(content).hexdigest()


def refuse(path: Path, expected: str, found: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    """Raise an error that names the file."""
    found = found if len(found) <= LONGEST else f"{found[:LONGEST]}..."
    raise ValueError(f"{path}: expected {expected}; got {found}; {remedy}.") from cause


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Flush a folder's entries, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that flush no folders
            raise
    finally:
        os.close(descriptor)


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text)
