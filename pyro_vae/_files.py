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
from safetensors import SafetensorError
from torch import Tensor

__all__ = [
    "as_json",
    "as_safetensors",
    "from_json",
    "from_safetensors",
    "make_folder",
    "read_file",
    "refuse",
    "replace_file",
    "sha256_of",
]


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


def read_file(path: Path, most: int, remedy: str) -> bytes:
    """Read a plain file of at most so many bytes; links lead elsewhere, and a pipe never ends."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            refuse(path, "a plain file", f"a {_kind_of(found.st_mode)}", remedy)
        if found.st_size > most:
            refuse(path, f"at most {most:,} bytes", f"{found.st_size:,}", remedy)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read; got {error.strerror}; {remedy}.") from error


def as_json(values: Mapping[str, Any]) -> bytes:
    """Write an object as JSON, without NaN and infinity, which JSON has not."""
    return json.dumps(values, indent=1, allow_nan=False).encode()


def from_json(path: Path, content: bytes, remedy: str) -> dict[str, Any]:
    """Read a JSON object, without NaN and infinity."""
    try:
        found = json.loads(content, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        refuse(path, "JSON", str(error), remedy, error)
    if not isinstance(found, dict):
        refuse(path, "a JSON object", type(found).__name__, remedy)
    return found


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors, from wherever they are."""
    return safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def from_safetensors(path: Path, content: bytes, remedy: str) -> dict[str, Tensor]:
    """Read tensors; they are copies, so that none is larger than the file."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        refuse(path, "safetensors", str(error), remedy, error)


def sha256_of(content: bytes) -> str:
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
    kinds = {stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _no_number(text)
