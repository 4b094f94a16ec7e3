"""The layers of docs/design.md: an import only ever points down, and heavy libraries are each imported in one file."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_vae"

DESIGN = Path(__file__).parents[1] / "docs" / "design.md"

ONLY_IN = {
    "torchvision": "data._torchvision",
    "matplotlib": "plots",
    "mlxtend": None,
    "arviz": "evidence.storage",
    "huggingface_hub": "hub",
    "onnx": None,
    "PIL": "data._images",
    "h5py": "data.pbmc68k",
    "scipy": "data._matlab",
    "sklearn": "data.scikit_learn",
    "pyarrow": "data._table",
    "zuko": "_flows",
}


def layers():
    """The modules in the order of the table of docs/design.md, the lowest first."""
    table = DESIGN.read_text().split("## Layers")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name.removesuffix(".py").replace("/", ".") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def modules():
    """Each file of the package by its dotted name; a folder stands for its `__init__.py`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


@cache
def imports(path):
    """Dotted names that a file imports, but for those that only a type checker sees."""
    return list(_imports(path))


def _imports(path):
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
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (_submodule(node.module, alias.name) for alias in node.names)


def _submodule(module, name):
    """What `from module import name` imports: a module of that name, or something of the module's."""
    inside = PACKAGE / Path(*module.split(".")[1:], name) if module.split(".")[0] == "pyro_vae" else None
    is_module = inside is not None and (inside.with_suffix(".py").exists() or (inside / "__init__.py").exists())
    return f"{module}.{name}" if is_module else module


MODULES = dict(modules())
FILES = {name: path for name, path in MODULES.items() if name != "__init__"}
ORDER = layers()


def rank(name):
    """The place of a module in the table; that of a folder is the place of its last file."""
    return max(place for place, other in enumerate(ORDER) if other == name or other.startswith(f"{name}."))


def test_the_table_names_every_file():
    folders = {name for name, path in FILES.items() if path.name == "__init__.py"}
    files = FILES.keys() - folders
    assert not files - set(ORDER), "add these to the table of docs/design.md"
    assert not set(ORDER) - files, "the table of docs/design.md names files that are not there"
    assert len(ORDER) == len(set(ORDER)), "the table of docs/design.md names a file twice"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    own = {module.removeprefix("pyro_vae.") for module in imports(FILES[name]) if module.startswith("pyro_vae.")}
    within = {each for each in own if each.startswith(f"{name}.")}  # what a folder hands on
    assert [each for each in own - within if rank(each) >= rank(name)] == []


@pytest.mark.parametrize(("library", "home"), ONLY_IN.items())
def test_heavy_libraries_have_one_home(library, home):
    importers = {
        name for name, path in MODULES.items() if library in {module.split(".")[0] for module in imports(path)}
    }
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
        "assert not {'torchvision', 'matplotlib', 'arviz', 'mlxtend', 'onnx', 'onnxscript', 'huggingface_hub', 'PIL', 'pyarrow', 'sklearn', 'zuko'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
