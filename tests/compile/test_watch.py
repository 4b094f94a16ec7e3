"""What a program reads besides its arguments."""

import matplotlib.pyplot as plt
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
