"""Data sets: tensors with their provenance."""

from pyro_vae.data.dataset import Dataset, Provenance, from_tensor
from pyro_vae.data.fashion_mnist import fashion_mnist
from pyro_vae.data.load import NAMES, load, names_of_columns, train_and_test
from pyro_vae.data.mnist import mnist

__all__ = [
    "NAMES",
    "Dataset",
    "Provenance",
    "fashion_mnist",
    "from_tensor",
    "load",
    "mnist",
    "names_of_columns",
    "train_and_test",
]
