"""Files in torchvision's layout, and where there are none, their download. The only file that imports torchvision."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae._files import replace_file

__all__ = ["require_files", "why_absent"]


class _Source(NamedTuple):
    """A data set of torchvision's: patterns of the files that are read, and the options of each download."""

    files: tuple[str, ...]
    options: tuple[dict[str, Any], ...] = ({},)


SOURCES = {
    "MNIST": _Source(("MNIST/raw/*-ubyte",)),
    "FashionMNIST": _Source(("FashionMNIST/raw/*-ubyte",)),
    "KMNIST": _Source(("KMNIST/raw/*-ubyte",)),
    "EMNIST": _Source(("EMNIST/raw/*-ubyte",), ({"split": "balanced"},)),  # all kinds are in one archive
    "Omniglot": _Source(("omniglot-py/images_*/*/*/*.png",), ({"background": True}, {"background": False})),
    "CelebA": _Source(("celeba/img_align_celeba/*.jpg", "celeba/*.txt")),
    "CIFAR10": _Source(("cifar-10-batches-py/*_batch*",)),
    "SVHN": _Source(("*_32x32.mat",), ({"split": "train"}, {"split": "test"})),
}
"""By the name of torchvision's class."""


def why_absent(data_dir: str | Path, name: str, download: bool, needed: str | None = None) -> str | None:
    """Return the reason why there are no files of a data set, or None if there are, or were downloaded now.

    `needed` is the pattern of those that will be read, where they are not the first of `SOURCES`.
    """
    folder, pattern = Path(data_dir), needed or SOURCES[name].files[0]
    if any(folder.glob(pattern)):
        return None
    # The deepest folder whose name is known, and the files in it.
    where = folder.joinpath(*(part for part in Path(pattern).parent.parts if "*" not in part))
    if not download:
        return f"no files of {name} in {where}, and a download was not asked for"
    failure = _download(data_dir, name)
    return None if failure is None else f"no files of {name} in {where}, and {failure}"


def require_files(data_dir: str | Path, name: str, download: bool, remedy: str, needed: str | None = None) -> Path:
    """Return the data folder, or raise an error where it has no files of a data set."""
    why = why_absent(data_dir, name, download, needed)
    if why is not None:
        raise FileNotFoundError(f"data_dir: {why}; {remedy}.")
    return Path(data_dir)


def _download(data_dir: str | Path, name: str) -> str | None:
    """Fetch the files through torchvision; return the reason if that fails."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        return f"torchvision cannot be imported ({error})"
    source = SOURCES[name]
    # Files appear in the data folder only when they are complete.
    with tempfile.TemporaryDirectory() as folder:
        try:
            for options in source.options:
                getattr(torchvision.datasets, name)(folder, download=True, **options)
        except (RuntimeError, OSError) as error:  # torchvision's own, and those of the network and the disk
            return f"their download failed ({error}; is there a network?)"
        for file in (file for pattern in source.files for file in Path(folder).glob(pattern)):
            kept = Path(data_dir) / file.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept, file.read_bytes())
    return None
