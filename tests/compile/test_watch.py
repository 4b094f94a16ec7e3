"""What a program reads besides its arguments."""

import functools
import logging

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_vae.compile.watch import Watch

SETTINGS = {"scale": 1.0}


class Drawing:
    """A program whose class draws figures, too."""

    def __init__(self):
        self.loc = 0.0

    def __call__(self, x):
        return (x - self.loc) / SETTINGS["scale"]

    def draw(self):
        return plt.figure(), plt.Line2D([0], [0])


def test_classes_of_libraries_are_not_looked_into():
    program = Drawing()
    watch = Watch(("model", program))
    assert watch.change() is None
    program.loc = 1.0
    assert "loc" in watch.change()


def test_a_change_of_what_a_function_names(monkeypatch):
    watch = Watch(("model", Drawing()))
    monkeypatch.setitem(SETTINGS, "scale", 2.0)
    assert "scale" in watch.change()


def test_what_has_a_state_that_cannot_be_seen():
    with pytest.raises(ValueError, match="whose state cannot be seen"):
        Watch(("model", [torch.Generator()]))


class Noting:
    """Keeps what is no reason to compile anew: a logger, a lock, and an array with a gap."""

    def __init__(self):
        self.logger = logging.getLogger(__name__)
        self.known = np.array([1.0, np.nan])

    @functools.cached_property
    def size(self):
        return len(self.known)


def test_loggers_locks_and_gaps_do_not_count():
    program = Noting()
    watch = Watch(("model", program))
    logging.getLogger(f"{__name__}.other").addHandler(logging.NullHandler())
    assert watch.change() is None
    program.known[1] = 2.0
    assert "known" in watch.change()


def test_a_new_attribute_of_a_function():
    def model(x):
        return x * getattr(model, "scale", 1.0)

    watch = Watch(("model", model))
    model.scale = 2.0
    assert "new item" in watch.change()
    watch.undo()
    assert watch.change() is None and not hasattr(model, "scale")
