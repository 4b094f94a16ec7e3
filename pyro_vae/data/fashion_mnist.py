"""Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pyro_vae.data._idx import idx_dataset
from pyro_vae.data.dataset import Binarization, Dataset

__all__ = ["fashion_mnist"]


def fashion_mnist(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load Fashion-MNIST: 60,000 and 10,000 articles of clothing, `(N, 1, 28, 28)`.

    They are read from files in `data_dir` (torchvision's layout, `FashionMNIST/raw/`), or else downloaded there by
    torchvision. Arguments and errors are those of `mnist`.

    References:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms.
    """
    return idx_dataset(
        "Fashion-MNIST", "FashionMNIST", data_dir, split, binarization, seed, download, _FASHION_MNIST_SHA256
    )


_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
