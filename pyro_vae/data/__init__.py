"""Data sets: tensors with their provenance."""

from pyro_vae.data.celeba import celeba
from pyro_vae.data.cifar10 import cifar10
from pyro_vae.data.dataset import Dataset, Provenance, from_tensor
from pyro_vae.data.emnist import emnist
from pyro_vae.data.fashion_mnist import fashion_mnist
from pyro_vae.data.frey_faces import frey_faces
from pyro_vae.data.kmnist import kmnist
from pyro_vae.data.load import NAMES, load, names_of_columns, train_and_test
from pyro_vae.data.memory_mapped import MemoryMapped
from pyro_vae.data.mnist import mnist
from pyro_vae.data.omniglot import omniglot
from pyro_vae.data.pbmc68k import pbmc68k
from pyro_vae.data.photographs import photographs
from pyro_vae.data.scikit_learn import breast_cancer, digits, wine
from pyro_vae.data.static_mnist import static_mnist
from pyro_vae.data.svhn import svhn

__all__ = [
    "NAMES",
    "Dataset",
    "MemoryMapped",
    "Provenance",
    "breast_cancer",
    "celeba",
    "cifar10",
    "digits",
    "emnist",
    "fashion_mnist",
    "frey_faces",
    "from_tensor",
    "kmnist",
    "load",
    "mnist",
    "names_of_columns",
    "omniglot",
    "pbmc68k",
    "photographs",
    "static_mnist",
    "svhn",
    "train_and_test",
    "wine",
]
