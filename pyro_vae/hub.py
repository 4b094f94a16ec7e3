"""VAEs on the Hugging Face Hub, by `huggingface_hub`, which is imported only here and only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.evidence.result import Evidence
from pyro_vae.training.load import load as load_from_disk
from pyro_vae.vae import VAE, file

__all__ = ["load", "push"]

FILE, CARD = "vae.safetensors", "README.md"


def push(vae: VAE, repo_id: str, evidence: Evidence | None = None, private: bool | None = None) -> str:
    """Write a VAE and its card to a repository, in one commit.

    The repository is made if there is none. It gets the file of `vae.save`, and a card that says what the VAE is made
    of and, if it is given, how good it is: `evidence.summary()`. A card that is there is replaced.

    Args:
        vae: of public classes of pyro_vae and torch.nn, so that `load` can make it again.
        repo_id: `"user/name"`. Whose token is used is up to `huggingface_hub`.
        evidence: what `pv.log_evidence` and the like return, of data that the VAE was not trained on.
        private: of a repository that is made; by default as the Hub's own setting is.

    Returns:
        The commit's hash, which is a `revision` of `load`.

    Raises:
        ImportError: without `huggingface_hub`: `pip install "pyro-vae[hub]"`.
        TypeError, ValueError: for anything but a VAE, and for one without a description, before anything is sent.

    Examples:
        >>> import pyro_vae as pv
        >>> evidence = pv.log_evidence(vae.model, vae.guide, x_test)  # doctest: +SKIP
        >>> revision = pv.hub.push(vae, "user/digits", evidence)  # doctest: +SKIP
        >>> vae = pv.hub.load("user/digits", revision)  # doctest: +SKIP
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"vae: expected a VAE; got {vae!r}; pass one.")
    if evidence is not None and not isinstance(evidence, Evidence):
        raise TypeError(f"evidence: expected Evidence, as pv.log_evidence returns it; got {evidence!r}; pass one.")
    program = file.description_or_reason(vae)
    if "undescribed" in program:
        raise ValueError(
            "vae: expected one that can be made from its description; got one that cannot: "
            f"{program['undescribed']}; push the file of vae.save by huggingface_hub, and say how the VAE is made."
        )
    hub = _huggingface_hub()
    api = hub.HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    files = {FILE: file.content_of(vae, program), CARD: _card(vae, repo_id, evidence).encode()}
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in files.items()]
    return api.create_commit(repo_id, operations, commit_message="A VAE of pyro_vae").oid


def load(repo_id: str, revision: str | None = None) -> VAE:
    """Read a VAE from a repository that `push` has written to.

    One file is fetched, safetensors, and no code from the repository runs: see `pv.load`.

    Args:
        repo_id: `"user/name"`.
        revision: a commit, tag or branch; by default the newest commit. Others may write to a branch: name a commit
            where it matters.

    Returns:
        The VAE, on the CPU and in evaluation mode.

    Raises:
        ImportError: without `huggingface_hub`: `pip install "pyro-vae[hub]"`.
        ValueError: for a file that is no VAE; and errors of `huggingface_hub`, for a repository that is not there.
    """
    return load_from_disk(Path(_huggingface_hub().hf_hub_download(repo_id, FILE, revision=revision)))


def _card(vae: VAE, repo_id: str, evidence: Evidence | None) -> str:
    """Write the page of a repository."""
    number = sum(parameter.numel() for parameter in vae.parameters())
    context = f", given {vae.context_shapes}" if vae.context_shapes else ""
    measured = "Not measured." if evidence is None else f"```\n{evidence.summary()}\n```"
    return f"""---
library_name: pyro_vae
tags:
- pyro
- variational-autoencoder
---

# {repo_id}

A variational autoencoder of data of shape {tuple(vae.event_shape)}{context}, with {number:,} parameters.

```python
import pyro_vae as pv

vae = pv.hub.load("{repo_id}")
```

## How good it is

{measured}

## What it is made of

```
{vae}
```
"""


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f'hub: expected the package huggingface_hub; got an error, {error}; pip install "pyro-vae[hub]".'
        ) from error
    return huggingface_hub
