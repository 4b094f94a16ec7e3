"""Every test starts with an empty parameter store, a fixed seed, and Pyro's validation on."""

import os
import sys

import pyro
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: threads of their own would fight for them
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    torch.set_num_threads(1)


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


@pytest.fixture
def float64():
    """Networks in float64, for what must hold to rounding."""
    torch.set_default_dtype(torch.float64)
