"""Every test starts with an empty parameter store, a fixed seed, and Pyro's validation on."""

import collections
import json
import os
import sys
from pathlib import Path

import pyro
import pytest
import torch
from small_files import SMALL, command, write_table

from pyro_vae.compile.graph import Graph

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: threads of their own would fight for them
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test with the marker `one_in(n)` every n-th case runs on a push; the others are slow."""
    seen = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("one_in")
        if marker is not None:
            seen[item.function] += 1
            if seen[item.function] % marker.args[0] != 1:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def clean_process():
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def mnist_folder():
    """The folder that holds MNIST's files, where there is one."""
    root = Path(__file__).parents[1]
    for folder in (root / "data", root.parent / "shared" / "data"):
        if (folder / "MNIST" / "raw").is_dir():
            return folder
    return pytest.skip("the files of MNIST are not on this machine")


@pytest.fixture
def float64():
    """Networks in float64, for what must hold to rounding."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs that are recorded as ever, but run operation by operation: the compiler takes seconds for each.

    Gives the list of those that were made.
    """
    graphs = []

    def run(graph, *_):
        graphs.append(graph)

        def call(*args):
            with torch.no_grad():
                return tuple(graph.module(*graph.tensors, *args))

        return call

    monkeypatch.setattr(Graph, "compiled", run)
    return graphs


@pytest.fixture
def run(capsys):
    """Run a command that is done, and return what it printed, or with --json what it says."""

    def call(line, *paths):
        capsys.readouterr()
        code = command(line, *paths)
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in line else out

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on a table, which tests do not change."""
    folder = tmp_path_factory.mktemp("trained")
    csv = write_table(folder / "table.csv", missing={(4, 1), (9, 0), (9, 2)})
    assert command(f"train @0 --data @1 --missing drop {SMALL}", folder / "run", csv) == 0
    return folder / "run"
