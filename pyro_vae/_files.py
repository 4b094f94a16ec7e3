"""Files, written whole or not at all, and read without running code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = [
    "LARGEST_JSON",
    "RESTORE",
    "as_safetensors",
    "from_safetensors",
    "read_file",
    "read_json",
    "replace_file",
    "sync",
    "write_file",
]

LARGEST_JSON = 1 << 20
"""Bytes of a JSON file: a larger one is none of ours."""

RESTORE = "restore the file from a copy, or make another"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a small file."""
    content = read_file(path, LARGEST_JSON)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; got {error}; {RESTORE}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object; got {type(found).__name__}; {RESTORE}.")
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_file(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def read_file(path: Path, most: int) -> bytes:
    """Read a file, and no more than so many bytes of it."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read; got {error.strerror}; {RESTORE}.") from error
    if len(content) > most:
        raise ValueError(f"{path}: expected at most {most:,} bytes; got more; {RESTORE}.")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write a file, down to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Flush a folder's entries, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(copies, metadata)


def from_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: expected safetensors; got {error}; {RESTORE}.") from error
