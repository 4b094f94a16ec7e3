"""The page of refusals says what a user reads."""

from pathlib import Path

import pytest
from refused import CASES, PAGE, row

LINES = (Path(__file__).parents[2] / "docs" / "refusals.md").read_text().splitlines()


@pytest.mark.parametrize("what", CASES)
def test_each_is_refused_in_the_words_of_the_page(what):
    assert row(what) in LINES


def test_the_page_has_no_others():
    assert len(LINES) == len(PAGE.splitlines()) + len(CASES)
