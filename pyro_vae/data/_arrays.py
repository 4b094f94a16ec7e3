"""Read arrays from `.npz` and `.npy` files. Nothing is unpickled, and headers are checked before content is read."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["read_array", "read_arrays", "read_words"]

MAX_BYTES = 16 * 2**30
"""The most that a compressed array may expand to."""
LABELS = ("labels", "label")


def read_arrays(path: Path, key: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the array `key`, or `x`, of an `.npz` file, and its labels if there are any."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = _names(archive)
            chosen = _chosen(path, names, key)
            labels = next((name for name in LABELS if name in names and name != chosen), None)
            return _member(archive, path, chosen), None if labels is None else _member(archive, path, labels)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from error


def read_words(path: Path, key: str) -> list[str] | None:
    """Read an array of words of an `.npz` file, if it is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            if key not in _names(archive):
                return None
            with archive.open(f"{key}.npy") as file:
                shape, dtype = _header(file, path)
            if dtype.kind == "U" and math.prod(shape) * dtype.itemsize <= MAX_BYTES:
                with archive.open(f"{key}.npy") as file:
                    return list(map(str, _content(file, path).flatten()))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from error
    raise ValueError(
        f"data: expected words in the array {key!r} of {str(path)!r}; got {dtype} of shape {shape}; save words."
    )


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_array(path: Path) -> np.ndarray:
    """Read an `.npy` file."""
    try:
        with path.open("rb") as file:
            _check_header(file, path, "the array")
            file.seek(0)
            return _content(file, path)
    except (EOFError, OSError) as error:
        raise _damaged(path, error) from error


def _chosen(path: Path, names: list[str], key: str | None) -> str:
    chosen = "x" if key is None else key
    if chosen in names:
        return chosen
    listed = ", ".join(map(repr, sorted(names))) or "no array"
    raise ValueError(
        f"key: expected an array {chosen!r} in {str(path)!r}; got {listed}; name the data's by key=... (--key)."
    )


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        _check_header(file, path, name)
    with archive.open(f"{name}.npy") as file:
        return _content(file, path)


def _content(file: IO[bytes], path: Path) -> np.ndarray:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # numpy and zipfile raise errors of many kinds for other bytes
        raise _damaged(path, error) from error


def _check_header(file: IO[bytes], path: Path, name: str) -> None:
    """Refuse arrays of objects and of impossible sizes by what the header says, before anything else is read."""
    shape, dtype = _header(file, path)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(
            f"data: expected an array of real numbers in {str(path)!r}; got {name} of dtype {dtype}; "
            "save numbers, np.savez(path, x=x.astype('float32'))."
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        size = math.prod(shape) * dtype.itemsize / 2**30
        raise ValueError(
            f"data: expected at most {MAX_BYTES / 2**30:.0f} GiB in {str(path)!r}; got {name} of shape {shape}, "
            f"{size:,.0f} GiB; save it in parts, or in a smaller dtype."
        )


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:
        raise _damaged(path, error) from error
    return shape, dtype


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"data: expected a file that numpy saved; got {str(path)!r} ({reason}); it is truncated, damaged or of another "
        "kind: save it again."
    )
