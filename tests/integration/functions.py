"""The functions as Lambda loads them: from their file, with the environment that there is."""

import importlib.util
from pathlib import Path
from types import ModuleType

FUNCTIONS = Path(__file__).resolve().parents[2] / "functions"


def load_function(folder: str) -> ModuleType:
    """Import a function's module anew."""
    path = FUNCTIONS / folder / "handler.py"
    spec = importlib.util.spec_from_file_location(f"function_{folder}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
