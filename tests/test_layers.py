"""The layers of docs/design.md: an import only ever points down, and heavy libraries are each imported in one file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_vae"

MAY_IMPORT = {
    "_checks": set(),
    "nn": {"_checks"},
    "data": {"_checks"},
    "plots": {"_checks", "evidence.psis"},
    "priors": {"_checks", "nn"},
    "likelihoods": {"_checks", "nn"},
    "posteriors": {"_checks", "nn"},
    "_parts": {"_checks"},
    "_around": {"_checks"},
    "vae": {"_checks", "_around", "_parts"},
    "_masks": set(),
    "_options": set(),
    "_structure": {"_masks"},
    "composition": {"_checks", "_masks", "_structure"},
    "program": {"_checks", "_masks", "_structure"},
    "graphs": {"_checks", "_structure"},
    "joint": {"_checks", "graphs", "program"},
    "tiling": {"_checks", "_options", "_structure", "joint", "program"},
    "unconstrained": {"_masks", "_structure", "program"},
    "_watch": {"graphs"},
    "optim": {"_checks"},
    "_runs": {"_watch", "graphs", "optim"},
    "compiled": {"_runs", "optim"},
    "diagnostics": {"_checks", "_options", "program", "tiling"},
    "evidence.psis": {"_checks"},
    "evidence.weights": {"evidence.psis"},
    "evidence.storage": set(),
    "evidence.result": {"_checks", "program", "plots", "evidence.storage"},
    "evidence.laplace": {"tiling", "unconstrained"},
    "evidence.local": {"_masks", "_structure", "program", "tiling"},
    "evidence.enumeration": {"_masks", "_structure", "program"},
    "evidence.survey": {
        *{"joint", "program", "tiling", "unconstrained"},
        *(f"evidence.{name}" for name in ("enumeration", "laplace", "result", "weights")),
    },
    "evidence.proposals": {
        *{"_checks", "program", "tiling"},
        *(f"evidence.{name}" for name in ("laplace", "local", "survey")),
    },
    "evidence.importance": {
        *{"_checks", "_options", "graphs", "joint", "program", "tiling", "unconstrained"},
        *(f"evidence.{name}" for name in ("proposals", "psis", "result", "survey", "weights")),
    },
    "evidence.hmc": {"tiling"},
    "evidence.ais": {
        *{"_checks", "_options", "joint", "program", "tiling", "unconstrained"},
        *(f"evidence.{name}" for name in ("hmc", "importance", "laplace", "result", "survey", "weights")),
    },
    "evidence.bdmc": {
        *{"_checks", "_masks", "_options", "_structure", "joint", "program", "tiling", "unconstrained", "plots"},
        *(f"evidence.{name}" for name in ("ais", "result", "weights")),
    },
    "evidence.auto": {
        *{"_checks", "_options", "joint", "program", "tiling", "unconstrained"},
        *(f"evidence.{name}" for name in ("ais", "importance", "laplace", "result", "survey", "weights")),
    },
    "evidence.gaps": {
        *{"_checks", "_options", "program", "tiling"},
        *(f"evidence.{name}" for name in ("ais", "auto", "importance", "local", "result")),
    },
    "evidence.posterior": {
        *{"_checks", "_options", "program", "tiling", "unconstrained", "plots"},
        *(f"evidence.{name}" for name in ("ais", "hmc", "importance", "result", "storage")),
    },
    "evidence.reciprocal": {
        *{"_checks", "_options", "program", "unconstrained"},
        *(f"evidence.{name}" for name in ("importance", "laplace", "posterior", "result", "weights")),
    },
    "evidence.comparison": {"evidence.result"},
    "evidence": {
        f"evidence.{name}"
        for name in (
            *("ais", "auto", "bdmc", "comparison", "gaps", "importance", "posterior", "proposals", "psis"),
            *("reciprocal", "result"),
        )
    },
    "training": {"_checks", "_structure", "compiled", "data", "diagnostics", "optim", "vae"},
}
ONLY_IN = {"torchvision": "data", "matplotlib": "plots", "mlxtend": None, "arviz": "evidence.storage"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imports(path):
    """Dotted names that a file imports, but for those that only a type checker sees."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in ("pyro_vae", "pyro_vae.evidence"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(name, path):
    if name == "__init__":
        return
    own = {module.removeprefix("pyro_vae.") for module in imports(path) if module.startswith("pyro_vae")}
    assert own <= MAY_IMPORT[name]


@pytest.mark.parametrize(("library", "home"), ONLY_IN.items())
def test_heavy_libraries_have_one_home(library, home):
    importers = {name for name, path in modules() if library in {module.split(".")[0] for module in imports(path)}}
    assert importers == ({home} if home else set())


def test_import_has_no_side_effect():
    """No random number, no setting, no heavy import."""
    code = (
        "import sys, torch, pyro, numpy; state = torch.get_rng_state(); numpy_state = numpy.random.get_state()[1].copy()\n"
        "dtype = torch.get_default_dtype(); valid = torch.distributions.Distribution._validate_args\n"
        "settings = pyro.settings.get(); import pyro_vae\n"
        "assert torch.equal(state, torch.get_rng_state()) and (numpy_state == numpy.random.get_state()[1]).all()\n"
        "assert dtype == torch.get_default_dtype() and valid == torch.distributions.Distribution._validate_args\n"
        "assert settings == pyro.settings.get() and not pyro.get_param_store().keys()\n"
        "assert not {'torchvision', 'matplotlib', 'arviz', 'mlxtend'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
