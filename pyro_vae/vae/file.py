"""A VAE in one file: its tensors as safetensors, and in their header what it is made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae._files import RESTORE, as_safetensors, from_safetensors, read_file, replace_file
from pyro_vae.vae.description import Undescribable, describe

__all__ = ["content_of", "description_or_reason", "read", "write"]

FORMAT = 1
RECORD, DIGEST = "pyro_vae", "sha256"
"""Keys of the header's metadata: JSON, and the digest of that text and of all tensors."""
LENGTH = 8
"""Bytes at the start of a safetensors file, which hold the length of its header."""


def write(path: Path, vae: nn.Module) -> None:
    """Write a VAE to a file, whole or not at all."""
    replace_file(path, content_of(vae, description_or_reason(vae)))


def content_of(vae: nn.Module, program: dict[str, Any]) -> bytes:
    """Return the bytes of a VAE's file, with its description or the reason why it has none."""
    tensors = {name: value for name, value in vae.state_dict().items() if isinstance(value, Tensor)}
    versions = {"torch": torch.__version__, "pyro": pyro.__version__}
    record = json.dumps({"format": FORMAT, "program": program, "versions": versions})
    digest = _digest(record, as_safetensors(tensors))
    return as_safetensors(tensors, {RECORD: record, DIGEST: digest})


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read what a VAE is made of, as by `description_or_reason`, and its tensors.

    Raises:
        ValueError: for another kind of file, another format, or a file that is not as it was written.
    """
    content = read_file(path, path.stat().st_size if path.is_file() else 0)
    tensors = from_safetensors(path, content)
    metadata = json.loads(_header(content)).get("__metadata__", {})
    record = _record(metadata.get(RECORD))
    if record is None:
        raise ValueError(
            f"{path}: expected a file that vae.save wrote; got safetensors without a VAE; load them with "
            "vae.load_state_dict(safetensors.torch.load_file(path))."
        )
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}; got {record.get('format')!r}; read it with the version of pyro_vae "
            "that wrote it."
        )
    if _digest(metadata[RECORD], content) != metadata.get(DIGEST):
        raise ValueError(f"{path}: expected the sha256 that was written with it; got another; {RESTORE}.")
    return record.get("program"), tensors


def description_or_reason(vae: nn.Module) -> dict[str, Any]:
    """Describe a VAE, or say in `"undescribed"` why it cannot be made from a description."""
    dtypes = {str(value.dtype) for value in vae.state_dict().values() if value.is_floating_point()}
    try:
        if len(dtypes) > 1:
            raise Undescribable(f"its tensors are of several dtypes, {' and '.join(sorted(dtypes))}")
        return describe(vae)
    except Undescribable as reason:
        return {"class": type(vae).__name__, "undescribed": str(reason)}


def _record(text: Any) -> dict[str, Any] | None:
    """Return what a file says of its VAE, if it is one of ours."""
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _header(content: bytes) -> bytes:
    return content[LENGTH : LENGTH + int.from_bytes(content[:LENGTH], "little")]


def _digest(record: str, content: bytes) -> str:
    """Return the sha256 of a text and of the tensors of a safetensors file, which follow its header."""
    return hashlib.sha256(record.encode() + content[LENGTH + len(_header(content)) :]).hexdigest()
