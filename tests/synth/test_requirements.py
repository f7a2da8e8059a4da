"""Locked requirements hold what their users need, and nothing is missing from them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT

DEPLOY = PROJECT / "requirements.txt"
LOCAL = PROJECT / "requirements" / "local.txt"
DEV = PROJECT / "requirements" / "dev.txt"
IMPORT = """
import importlib, pkgutil
from lambda_pg_cdk import PACKAGE, console, local, tools

SEPARATE = ("lambda_pg_cdk.local.environments.", "lambda_pg_cdk.local.control_plane.")
for room in (console, local, tools):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        if not module.name.startswith(SEPARATE) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for name in ("benchmarks.demo", "lambda_pg_cdk.layer.build"):
    importlib.import_module(name)
importlib.import_module("benchmarks.machine").packages_in_a_function()
"""
"""What `make demo`, `make deploy` and the command-line tools run. Some processes of the local cloud
have separate environments."""


def pins(lock: Path) -> set[str]:
    """Read the packages of a lock, each with its version and the machines that it is for."""
    return set(re.findall(r"(?m)^[a-z][^\\\n]*==[^\\\n]+", lock.read_text()))


def install(requirements: Path, folder: Path) -> Path:
    """Make a virtual environment with these requirements only; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(python)]
    subprocess.run([*command, "-r", str(requirements)], check=True)
    bytecode = [str(python), "-m", "lambda_pg_cdk.local.install.bytecode"]
    subprocess.run(bytecode, check=True, cwd=PROJECT)
    return python


@pytest.mark.parametrize(("lock", "larger"), [(DEPLOY, LOCAL), (LOCAL, DEV)])
def test_a_larger_lock_has_the_same_versions(lock: Path, larger: Path) -> None:
    """What is tested is what is deployed, and tests install on top of the local cloud's."""
    assert pins(lock)
    assert pins(lock) <= pins(larger)


def test_requirements_txt_is_enough_to_synthesise(tmp_path: Path) -> None:
    """`cdk deploy` runs app.py with these packages only."""
    python = install(DEPLOY, tmp_path / "venv")
    context = json.loads((PROJECT / "cdk.json").read_text())["context"] | {"stage": "dev"}
    environment = {
        "CDK_CONTEXT_JSON": json.dumps(context),
        "CDK_OUTDIR": str(tmp_path / "cdk.out"),
        "CDK_VALIDATION": "false",  # test_rules.py looks at what its rules find: they load slowly
    }
    done = subprocess.run(
        [python, "app.py"],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "cdk.out" / "manifest.json").read_text())
    assert "LambdaPg-dev-Api" in manifest["artifacts"]


def test_a_local_cloud_needs_no_package_of_tests(tmp_path: Path) -> None:
    """`make demo`, `make deploy` and the command-line tools find all that they import."""
    python = install(LOCAL, tmp_path / "venv")
    done = subprocess.run(
        [python, "-c", IMPORT], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    absent = "import importlib.util as found; print(found.find_spec('matplotlib'))"
    assert subprocess.check_output([python, "-c", absent], text=True) == "None\n"
