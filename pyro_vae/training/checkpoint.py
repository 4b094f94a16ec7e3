"""Checkpoints on disk: written whole or not at all, and read without running code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae._files import RESTORE, as_safetensors, from_safetensors, read_file, read_json, sync, write_file

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

FORMAT = 1
MANIFEST, WEIGHTS, BEST, TRAINING = "manifest.json", "weights.safetensors", "best.safetensors", "training.pt"


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on."""

    weights: dict[str, Tensor]
    training: dict[str, Any]
    """Numbers, text and tensors: optimizer, schedule, generators, place, history."""
    best: dict[str, Tensor] | None = None
    """The weights with the best validation ELBO."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint under a temporary name, and give it its own when all of it lies on the disk.

    Returns:
        sha256 of its manifest, which has that of each file.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files = {WEIGHTS: as_safetensors(checkpoint.weights), TRAINING: _as_pt(checkpoint.training)}
        if checkpoint.best is not None:
            files[BEST] = as_safetensors(checkpoint.best)
        for name, content in files.items():
            write_file(temporary / name, content)
        entries = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        versions = {"torch": torch.__version__, "pyro": pyro.__version__}
        manifest = json.dumps({"format": FORMAT, "files": entries, "versions": versions}, indent=1).encode()
        write_file(temporary / MANIFEST, manifest)
        sync(temporary)
        temporary.rename(folder)
        sync(folder.parent)
        return hashlib.sha256(manifest).hexdigest()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_checkpoint(folder: Path, sha256: str) -> Checkpoint:
    """Read a checkpoint whose manifest has this sha256.

    Raises:
        ValueError: for another manifest, or unless each file is what the manifest says, to the byte.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder / MANIFEST}: expected format {FORMAT}; got {manifest.get('format')!r}; read it with the version "
            "of pyro_vae that wrote it."
        )
    found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{folder / MANIFEST}: expected sha256 {sha256[:12]}, as when it was written; got {found[:12]}; {RESTORE}."
        )
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not {WEIGHTS, TRAINING} <= entries.keys() <= {WEIGHTS, TRAINING, BEST}:
        raise ValueError(f"{folder / MANIFEST}: expected the files of a checkpoint; got {entries!r}; {RESTORE}.")
    contents = {name: _content(folder / name, entry) for name, entry in entries.items()}
    weights = {name: from_safetensors(folder / name, contents[name]) for name in (WEIGHTS, BEST) if name in contents}
    return Checkpoint(weights[WEIGHTS], _from_pt(folder / TRAINING, contents[TRAINING]), weights.get(BEST))


def _content(path: Path, entry: Any) -> bytes:
    """Read a file, and compare it with its entry in the manifest."""
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
        raise ValueError(f"{path.parent / MANIFEST}: expected the bytes of {path.name!r}; got {entry!r}; {RESTORE}.")
    content = read_file(path, entry["bytes"])
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if found != entry:
        raise ValueError(f"{path}: expected {_described(entry)}; got {_described(found)}; {RESTORE}.")
    return content


def _described(entry: dict[str, Any]) -> str:
    return f"{entry['bytes']:,} bytes with sha256 {str(entry.get('sha256'))[:12]}"


def _as_pt(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _from_pt(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises errors of many kinds for other bytes
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: expected numbers and tensors alone; got {first}; {RESTORE}.") from error
