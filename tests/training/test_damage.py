"""Damaged files of a run are refused by name, and nothing is lost by the attempt to read them."""

import pytest
from damage import CASES, make_runs, refusals

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder)
    return folder


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("file", "damage"), CASES)
def test_damaged_files(runs, file, damage):
    refusals(file, damage, runs)
