"""The folders of a local cloud."""

import subprocess
import sys
from pathlib import Path

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.local.paths import import_root


def test_another_interpreter_finds_this_package_and_nothing_else(tmp_path: Path) -> None:
    """In an installation, the folder of the package has all other packages, too."""
    root = import_root(tmp_path)
    assert import_root(tmp_path) == root
    assert [path.name for path in root.iterdir()] == ["lambda_pg_cdk"]
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r});"
        "import lambda_pg_cdk.local.paths as found; print(found.PACKAGE)"
    )
    shown = subprocess.check_output([sys.executable, "-I", "-c", program], text=True)
    assert shown.strip() == str(PACKAGE)
