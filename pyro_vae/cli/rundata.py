"""The data of a run: what is trained on, validated on and evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_vae import data
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.settings import REAL, Settings
from pyro_vae.data import Dataset

__all__ = ["RunData", "Scaling", "is_binary", "is_image", "read_data", "read_incomplete"]

MOST_VALIDATED = 5000
MOST_LABELS = 1000


@dataclass(frozen=True)
class Scaling:
    """Columns of a table with mean 0 and deviation 1, as (x - shift) / scale."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        """Take both from what was observed of training data; a column that never changes keeps its unit."""
        shift = x.nanmean(0).nan_to_num()
        num_observed = x.isfinite().sum(0)
        spread = ((x - shift).square().nansum(0) / (num_observed - 1).clamp(min=1)).sqrt()
        return cls(shift, torch.where(spread > 0, spread, 1.0))

    def applied_to(self, x: Tensor) -> Tensor:
        """Return standardized data."""
        return (x - self.shift) / self.scale

    def undone(self, x: Tensor) -> Tensor:
        """Return data in their own unit."""
        return x * self.scale + self.shift

    def log_volume(self, x: Tensor) -> float:
        """What log p of what was observed loses in the data's own unit, nats; the mean over data."""
        return torch.where(x.isnan(), 0.0, self.scale.double().log()).sum(-1).mean().item()


@dataclass(frozen=True)
class RunData:
    """Data sets as the VAE takes them, and what is known of their form.

    Attributes:
        train, validation, test: the parts.
        shape: of one datum.
        names: of a table's columns, or None.
        num_labels: how many classes are told to a conditional VAE; None for another.
        scaling: of standardized columns.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    num_labels: int | None
    scaling: Scaling | None

    def with_context(self, dataset: Dataset | None) -> Any:
        """Return data as `fit` takes them: alone, or with labels."""
        return dataset if dataset is None or self.num_labels is None else (dataset, *self.context(dataset))

    def context(self, dataset: Dataset) -> tuple[Tensor, ...]:
        """Return the further arguments of model and guide."""
        return () if self.num_labels is None else (as_context(dataset.labels, self.num_labels),)

    def as_dict(self) -> dict[str, Any]:
        """Return what is needed to read them again, and to see whether they are the same, for JSON."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            **{name: None if part is None else part.provenance.as_dict() for name, part in parts.items()},
            "shape": list(self.shape),
            "num_labels": self.num_labels,
        }

    def columns(self) -> dict[str, Any]:
        """Return what is known of a table's columns, for JSON."""
        scaling = self.scaling
        return {
            "names": self.names,
            "shift": None if scaling is None else scaling.shift.tolist(),
            "scale": None if scaling is None else scaling.scale.tolist(),
        }


def as_context(labels: Tensor | None, num_labels: int) -> Tensor:
    """Return labels as unit vectors."""
    if labels is None:
        refuse("--conditional", "data with labels", "none", "leave it out, or add a column or array of labels")
    if labels.min() < 0 or labels.max() >= num_labels:
        low, high = int(labels.min()), int(labels.max())
        refuse("labels", f"classes numbered from 0 to {num_labels - 1}", f"{low} to {high}", "number them anew")
    return one_hot(labels, num_labels).float()


def is_binary(x: Tensor) -> bool:
    """Tell whether data are zeros and ones, where they were observed."""
    return bool(((x == 0) | (x == 1) | x.isnan()).all())


def is_image(shape: tuple[int, ...]) -> bool:
    """Tell whether a datum is an image (C, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def read_data(settings: Settings) -> RunData:
    """Read all parts of the data of a run, the same each time."""
    train, test = _train_and_test(settings)
    if train.x.shape[1:] != test.x.shape[1:]:
        refuse(
            "--test",
            f"data of shape {tuple(train.x.shape[1:])}",
            str(tuple(test.x.shape[1:])),
            "pass data of the same form",
        )
    names = None if str(settings.data) in data.NAMES else data.names_of_columns(str(settings.data))
    num_labels = _num_labels(train, test) if settings.conditional else None
    if settings.num_train is not None:
        train = train.first(settings.num_train)
    train, validation = _held_out(train, settings.num_validation, settings.seed)
    scaling = Scaling.of(train.x) if _is_to_be_standardized(settings, train) else None
    if scaling is not None:
        train, test = _standardized(train, scaling), _standardized(test, scaling)
        validation = None if validation is None else _standardized(validation, scaling)
    return RunData(train, validation, test, tuple(train.x.shape[1:]), names, num_labels, scaling)


def read_incomplete(settings: Settings, source: str) -> Dataset:
    """Read data with missing entries, in the order of the file."""
    if source in data.NAMES:
        refuse("--data", "a file with entries that are missing", f"{source}, which is complete", "pass such a file")
    return _loader(settings)(source, split="all", missing="keep")


def _loader(settings: Settings) -> Callable[..., Dataset]:
    """Return the reader of data, with the options that all parts of a run share."""
    fit: Any = settings.image_fit or "resize"

    def load(source: Any, **options: Any) -> Dataset:
        return data.load(
            source, binarization=_binarization(settings), data_dir=settings.data_dir, seed=settings.seed,
            image_size=settings.image_size, image_fit=fit, channels=settings.channels,
            key=settings.key, **{"missing": settings.missing, **options},
        )  # fmt: skip

    return load


def _binarization(settings: Settings) -> Any:
    if settings.binarization is not None:
        return None if settings.binarization == "none" else settings.binarization
    return "auto" if settings.likelihood in (None, "bernoulli") else None


def _train_and_test(settings: Settings) -> tuple[Dataset, Dataset]:
    load = _loader(settings)
    by_name = settings.data in data.NAMES
    if by_name and settings.num_test is not None:
        refuse(
            "--num-test",
            f"none, as {settings.data} has a test part of its own",
            str(settings.num_test),
            "leave it out; evaluate has --num-test, too",
        )
    if settings.test is not None and settings.num_test is not None:
        refuse(
            "--num-test",
            "none beside --test, all of which is held out",
            str(settings.num_test),
            "leave one of them out",
        )
    if settings.test is not None:
        return load(settings.data, split="train" if by_name else "all"), load(settings.test, split="all")
    if by_name:
        return load(settings.data, split="train"), load(settings.data, split="test")
    return data.train_and_test(load(settings.data, split="all"), settings.num_test, settings.seed)


def _num_labels(*parts: Dataset) -> int:
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts):
        refuse("--conditional", "data with labels", "none", "leave it out, or add a column or an array called labels")
    largest = max(int(each.max()) for each in labels)
    if largest >= MOST_LABELS:
        refuse(
            "--conditional",
            f"classes numbered from 0, at most {MOST_LABELS:,}",
            f"a label {largest}",
            "number them anew",
        )
    return largest + 1


def _held_out(train: Dataset, number: int | None, seed: int) -> tuple[Dataset, Dataset | None]:
    number = min(MOST_VALIDATED, len(train) // 10) if number is None else number
    if number >= len(train):
        refuse("--num-validation", f"fewer than the {len(train)} training data", str(number), "pass a smaller one")
    return train.hold_out(number, seed) if number else (train, None)


def _is_to_be_standardized(settings: Settings, train: Dataset) -> bool:
    is_table = train.x.ndim == 2 and not is_binary(train.x)
    if settings.standardize and not is_table:
        refuse("--standardize", "a table of real numbers", f"data of shape {tuple(train.x.shape[1:])}", "leave it out")
    by_default = settings.vae is None and is_table and settings.likelihood in (None, *REAL)
    return by_default if settings.standardize is None else settings.standardize


def _standardized(part: Dataset, scaling: Scaling) -> Dataset:
    was = part.provenance
    return data.from_tensor(
        scaling.applied_to(part.x), part.labels, name=was.name, split=f"{was.split}, standardized", source=was.source,
        missing="keep",
    )  # fmt: skip
