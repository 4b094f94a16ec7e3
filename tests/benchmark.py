"""The benchmarks, which are scripts and no package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def benchmark(name: str) -> ModuleType:
    """Load `benchmarks/NAME.py` under another name: a module of the tests may have its own."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location(f"benchmark_of_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(folder))  # for a moment: benchmarks import each other, and have names of folders of the tests
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module
