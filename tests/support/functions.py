"""The functions as Lambda loads them: from their file, with the environment that there is."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lambda_pg_cdk import PACKAGE


def load_function(folder: str) -> ModuleType:
    """Import the module of a function once more; `folder` is as in `functions/users`.

    What is beside the handler is imported once more, too.
    """
    path = PACKAGE / folder / "handler.py"
    for name in _beside(path.parent) & sys.modules.keys():
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(f"function_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module


def _beside(folder: Path) -> set[str]:
    """Name the modules of the packages in a function's folder."""
    files = [path.relative_to(folder).with_suffix("") for path in folder.glob("*/*.py")]
    names = {".".join(file.parts) for file in files}
    return names | {name.removesuffix(".__init__") for name in names}
