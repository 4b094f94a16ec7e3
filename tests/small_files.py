"""Small data as files, and commands in process."""

import shlex

import numpy as np
from PIL import Image

from pyro_vae.cli import main

SMALL = "--num-epochs 2 --hidden-dims 8 --latent-dim 2 --batch-size 20"
CHEAP = "--estimator importance_sampling --num-samples 30 --num-test 3"


def command(line, *paths):
    """Run a command in this process, and return its exit code."""
    return main([str(paths[int(word[1:])]) if word.startswith("@") else word for word in shlex.split(line)])


def write_photos(folder, num=60, size=(48, 36), mode="RGB"):
    """A folder of colour images, dark ones and light ones in two subfolders."""
    generator = np.random.default_rng(0)
    for place in range(num):
        kind = ("dark", "light")[place % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 100, (*size, 3)) + 150 * (place % 2)
        Image.fromarray(pixels.astype("uint8")).convert(mode).save(folder / kind / f"{place:03}.png")
    return folder


def write_arrays(path, num=60):
    """Grey images of 6 x 5 pixels, with labels."""
    generator = np.random.default_rng(1)
    np.savez(path, x=generator.random((num, 6, 5)).astype("float32"), labels=generator.integers(0, 3, num))
    return path


def table(num=60):
    """Rows of three numbers of one factor, in units that are far apart."""
    generator = np.random.default_rng(2)
    factor = generator.normal(size=(num, 1))
    return (factor * [1, 1, 1] + 0.3 * generator.normal(size=(num, 3))) * [1, 1000, 0.01] + [0, 5, 0]


def write_table(path, rows=None, missing=()):
    """A table with a line of names, and nothing where entries are missing."""
    lines = ["height,weight,age"]
    for place, row in enumerate(table() if rows is None else rows):
        lines.append(",".join("" if (place, column) in missing else f"{x:.9g}" for column, x in enumerate(row)))
    path.write_text("\n".join(lines) + "\n")
    return path
