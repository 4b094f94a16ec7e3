"""Private names of torch and Pyro: they are there, they are in one file, and an error says which one is gone."""

import ast
import re
from pathlib import Path

import pytest

from pyro_vae import _private

PACKAGE = Path(__file__).parents[1] / "pyro_vae"


@pytest.mark.parametrize("name", _private.NAMES)
def test_each_is_there(name):
    assert _private.found(name) is not None and getattr(_private, name) is _private.found(name)


def test_one_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(_private.NAMES, "gone", "torch._inductor.gone")
    with pytest.raises(ImportError, match=r"expected torch\._inductor\.gone.*torch 2\.14 and 2\.15.*got none in torch"):
        _private.found("gone")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nowhere_else(path):
    """Neither imports of a private module or name of theirs, nor their private attributes by way of the module."""
    if path.name == "_private.py":
        return
    used = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("torch", "pyro"):
            used += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            used.append(ast.unparse(node))
    private = [each for each in used if re.match(r"(torch|pyro|nn|fx|Distribution)(\.\w+)*\._[a-zA-Z]", each)]
    assert private == []
