"""Set up a checkout from the project's cache; `make setup` runs this.

    python -m lambda_pg_cdk.local.install.checkout uv    print the path of uv
    python -m lambda_pg_cdk.local.install.checkout node_modules [--omit=dev]
    python -m lambda_pg_cdk.local.install.checkout node_modules_of examples/typescript

It imports the standard library only: nothing is installed yet.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local.install.installed import InstallError, complete, made

_NPM_FILES = ("package.json", "package-lock.json", ".npmrc")


def uv() -> Path:
    """Return the program that installs Python packages; pip installs it on first use."""
    return made("uv", PROJECT / "requirements" / "uv.txt", _make_uv) / "bin" / "uv"


def _make_uv(folder: Path, requirements: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    python = str(folder / "bin" / "python")
    _run([python, "-m", "pip", "install", *options, "-r", str(requirements)])


def set_up_node_modules(
    root: Path = PROJECT, *options: str, lock: Path = Path("requirements")
) -> None:
    """Fill node_modules with links into the cache, or with copies if links are not possible.

    `options` are npm's: `--omit=dev` leaves out what only tests and linters need. `lock` is the
    folder in `root` with the lock file.
    """
    kept = _node_modules(root / lock, options)
    build = root / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix="node_modules-") as scratch:
        filled = Path(scratch) / "node_modules"
        shutil.copytree(kept, filled, symlinks=True, copy_function=_link)
        if (root / "node_modules").exists():
            (root / "node_modules").rename(Path(scratch) / "old")
        filled.rename(root / "node_modules")


def _node_modules(lock: Path, options: tuple[str, ...]) -> Path:
    """Return the folder in the cache; npm fills it on first use."""
    files = [lock / name for name in _NPM_FILES]
    content = b"\0".join([*(file.read_bytes() for file in files), *map(str.encode, options)])
    machine = f"{sys.platform}-{platform.machine()}"
    name = f"node_modules-{machine}-{hashlib.sha256(content).hexdigest()[:16]}"

    def make(folder: Path) -> None:
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        _run(["npm", "ci", "--loglevel=error", *options], folder)

    return complete(cache_dir() / name, make) / "node_modules"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _run(command: list[str], folder: Path | None = None) -> None:
    """Run a command; its output goes to standard error, as standard output has the result."""
    done = subprocess.run(command, cwd=folder, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)} failed with exit code {done.returncode}")


if __name__ == "__main__":
    try:
        if sys.argv[1] == "uv":
            print(uv())
        elif sys.argv[1] == "node_modules_of":
            set_up_node_modules(PROJECT / sys.argv[2], lock=Path())
        else:
            set_up_node_modules(PROJECT, *sys.argv[2:])
    except (InstallError, OSError) as error:
        sys.exit(f"lambda-pg could not be set up: {error}")
