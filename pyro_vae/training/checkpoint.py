"""Checkpoints on disk: written whole or not at all, and read without running code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae._files import (
    LARGEST_JSON,
    as_json,
    as_safetensors,
    from_json,
    from_safetensors,
    make_folder,
    read_own_file,
    refuse,
    sha256_of,
)
from pyro_vae.training import state

__all__ = ["FORMAT", "RESTORE", "Checkpoint", "of_our_format", "read_checkpoint", "write_checkpoint"]

FORMAT = 2
"""Of all files of a run."""
MANIFEST, WEIGHTS, BEST = "manifest.json", "weights.safetensors", "best.safetensors"
TRAINING, TENSORS = "training.json", "training.safetensors"
NEEDED = {WEIGHTS, TRAINING, TENSORS}
RESTORE = "restore the file from a copy, or start another run"


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on."""

    weights: dict[str, Tensor]
    training: dict[str, Any]
    """Numbers, text and tensors: optimizer, schedule, generators, place, history."""
    best: dict[str, Tensor] | None = None
    """The weights with the best validation ELBO."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint, whole or not at all.

    Returns:
        sha256 of its manifest, which has that of each file.
    """
    training, tensors = state.split(checkpoint.training)
    files = {
        WEIGHTS: as_safetensors(checkpoint.weights),
        TRAINING: as_json(training),
        TENSORS: as_safetensors(tensors),
    }
    if checkpoint.best is not None:
        files[BEST] = as_safetensors(checkpoint.best)
    entries = {name: {"bytes": len(content), "sha256": sha256_of(content)} for name, content in files.items()}
    versions = {"torch": torch.__version__, "pyro": pyro.__version__}
    manifest = as_json({"format": FORMAT, "files": entries, "versions": versions})
    make_folder(folder, {**files, MANIFEST: manifest})
    return sha256_of(manifest)


def read_checkpoint(folder: Path, sha256: str) -> Checkpoint:
    """Read a checkpoint whose manifest has this sha256.

    Raises:
        ValueError: for another manifest, unless each file is what the manifest says, to the byte, and for a state that
            no training has.
    """
    if folder.is_symlink():
        refuse(folder, "a folder", "a symbolic link", RESTORE)
    entries = _manifest(folder / MANIFEST, sha256)
    contents = {name: _content(folder / name, entry) for name, entry in entries.items()}
    tensors = {name: _tensors(folder / name, contents[name]) for name in (WEIGHTS, BEST, TENSORS) if name in contents}
    try:
        training = state.joined(from_json(folder / TRAINING, contents[TRAINING], RESTORE), tensors[TENSORS])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        refuse(folder / TRAINING, "numbers, text and the names of tensors", str(error), RESTORE, error)
    checkpoint = Checkpoint(tensors[WEIGHTS], training, tensors.get(BEST))
    _refuse_what_nobody_wrote(folder, checkpoint)
    return checkpoint


def _refuse_what_nobody_wrote(folder: Path, checkpoint: Checkpoint) -> None:
    problem = next(state.problems(checkpoint.training, checkpoint.weights), None)
    if problem is not None:
        refuse(folder / TRAINING, "the state of a training", problem, RESTORE)
    if checkpoint.best is not None and _forms(checkpoint.best) != _forms(checkpoint.weights):
        refuse(folder / BEST, f"the names, shapes and types of {WEIGHTS}", "others", RESTORE)


def _forms(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def of_our_format(path: Path, content: bytes) -> dict[str, Any]:
    """Read a JSON object of a run."""
    found = from_json(path, content, RESTORE)
    if found.get("format") != FORMAT:
        other = "read it with the version of pyro_vae that wrote it"
        refuse(path, f"format {FORMAT}", repr(found.get("format")), other)
    return found


def _manifest(path: Path, sha256: str) -> dict[str, Any]:
    """Read what the manifest says of each file."""
    content = read_own_file(path, LARGEST_JSON, RESTORE)
    manifest = of_our_format(path, content)
    if sha256_of(content) != sha256:
        refuse(path, f"sha256 {sha256[:12]}, as last.json says", sha256_of(content)[:12], RESTORE)
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not entries.keys() >= NEEDED or not entries.keys() <= {*NEEDED, BEST}:
        refuse(path, "the files of a checkpoint", repr(entries), RESTORE)
    return entries


def _content(path: Path, entry: Any) -> bytes:
    """Read a file, and compare it with its entry in the manifest."""
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
        refuse(path.parent / MANIFEST, f"the bytes of {path.name!r}", repr(entry), RESTORE)
    remedy = f"restore it, or {MANIFEST}, from a copy, or start another run"
    content = read_own_file(path, entry["bytes"], remedy)
    found = {"bytes": len(content), "sha256": sha256_of(content)}
    if found != entry:
        refuse(path, _described(entry), _described(found), remedy)
    return content


def _described(entry: dict[str, Any]) -> str:
    return f"{entry['bytes']:,} bytes with sha256 {str(entry.get('sha256'))[:12]}"


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    return from_safetensors(path, content, RESTORE)
