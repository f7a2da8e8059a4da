"""Cached folders, made once from pinned requirements with hashes."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.layer.cache import cache_dir, one_at_a_time

_TAG = f"{sys.implementation.cache_tag}-{sys.platform}"
COMPLETE = ".complete"


class InstallError(RuntimeError):
    """pip could not install the requirements; has the end of its output."""


def control_plane_python() -> Path:
    """Return the interpreter of MiniStack's virtual environment, made on first use."""
    return environment_python(
        "control-plane", PACKAGE / "local" / "control_plane" / "requirements.txt"
    )


def environment_python(name: str, requirements: Path) -> Path:
    """Return the interpreter of a virtual environment of these requirements, made on first use."""
    return made(name, requirements, _make_environment) / "bin" / "python"


def runtime_folder() -> Path:
    """Return the folder with the packages of AWS's Python runtime, made on first use."""
    return made("runtime", PACKAGE / "local" / "environments" / "requirements.txt", _make_folder)


def cached_folder(name: str, requirements: Path) -> Path:
    """Return the folder of these requirements for this interpreter; COMPLETE is in it when done.

    The virtual environments of all checkouts lead to the same interpreter.
    """
    interpreter = f"{Path(sys.executable).resolve()} {sys.version}"
    content = requirements.read_bytes() + interpreter.encode()
    return cache_dir() / f"{name}-{_TAG}-{hashlib.sha256(content).hexdigest()[:16]}"


def made(name: str, requirements: Path, make: Callable[[Path, Path], None]) -> Path:
    """Return the cached folder of these requirements for this interpreter; make it if needed."""
    return complete(cached_folder(name, requirements), lambda folder: make(folder, requirements))


def complete(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills once; an interrupted one is made again."""
    done = folder / COMPLETE
    if not done.exists():
        with one_at_a_time(folder):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
    return folder


def _make_environment(folder: Path, requirements: Path) -> None:
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = str(folder / "bin" / "python")
    _pip("--python", python, "install", "--compile", "-r", str(requirements))


def _make_folder(folder: Path, requirements: Path) -> None:
    _pip("install", "--compile", "--target", str(folder), "-r", str(requirements))


def _pip(*arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", *quiet, *arguments]
    _run([*command, "--require-hashes", "--no-deps", "--only-binary", ":all:"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
