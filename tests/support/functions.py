"""The functions as Lambda loads them: from their file, with the environment that there is."""

import importlib.util
from types import ModuleType

from lambda_pg_cdk import PACKAGE


def load_function(folder: str) -> ModuleType:
    """Import the module of a function once more; `folder` is as in `functions/users`."""
    path = PACKAGE / folder / "handler.py"
    spec = importlib.util.spec_from_file_location(f"function_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
