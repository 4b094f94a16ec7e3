"""What a program reads besides its arguments."""

import functools
import logging

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
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


class Named:
    """Reads one of its numbers, whichever is there."""

    kind = 1.0

    def __init__(self):
        self.table = {"loc": 0.5}
        self.loc = 0.5

    def __call__(self, x):
        return x - self.loc if hasattr(self, "loc") else x - 2 * self.other


def rename_an_attribute(program):
    program.other = program.__dict__.pop("loc")


def rename_an_item(program):
    program.table["other"] = program.table.pop("loc")


def rename_in_a_class(program):
    cls = type(program)
    cls.other = cls.loc
    del cls.loc


@pytest.mark.parametrize("rename", [rename_an_attribute, rename_an_item, rename_in_a_class])
def test_the_same_object_by_another_name(rename):
    """The values of a table are what they were, in their order, and a program finds them elsewhere."""

    class Program(Named):
        pass

    Program.loc = 2.0
    program = Program()
    watch = Watch(("model", program))
    assert watch.change() is None
    rename(program)
    assert watch.change() is not None
    if rename is not rename_in_a_class:  # whose attributes cannot be restored
        watch.undo()
        assert watch.change() is None and program.loc == 0.5 and program.table == {"loc": 0.5}


def test_a_graph_is_of_the_names_that_a_program_reads():
    """Compiled and eager losses of a program that finds its number under another name."""
    program = Named()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(program(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x, elbo = torch.linspace(-1.0, 1.0, 5), pv.objectives.CompiledTrace_ELBO()

    def loss(objective):
        torch.manual_seed(0)
        return objective.loss(model, guide, x)

    for rename in (lambda: None, lambda: rename_an_attribute(program)):
        rename()
        losses = [loss(elbo) for _ in range(4)]  # the third is compiled
        assert losses == pytest.approx([loss(Trace_ELBO())] * 4, rel=1e-5)
    assert elbo.execution(model, guide).startswith("compiled")
