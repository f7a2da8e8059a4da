"""Bytecode of the installed packages, shared by the virtual environments of all checkouts.

Python compiles the CDK's modules in 20 s, once in each fresh checkout. So the bytecode of the first
synthesis is kept in the project's cache, and `make setup` copies it to the next virtual environment
of the same packages and the same interpreter.

Python checks each file: it has the hash of its source (PEP 552). Timestamps would not do, as they
differ between installations.
"""

import importlib.util
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.install.installed import COMPLETE, cached_folder, made

_REQUIREMENTS = [PROJECT / name for name in ("requirements/local.txt", "requirements.txt")]
REQUIREMENTS = next(filter(Path.is_file, _REQUIREMENTS), _REQUIREMENTS[-1])
"""The lock of the checkout, or the pins of a project that has installed this package."""
NAME = "bytecode"
_PATTERN = f"*.{sys.implementation.cache_tag}.pyc"
_HEADER = 16  # bytes: magic number, flags, then time and size, or the hash of the source
_CHECKED_HASH = (0b11).to_bytes(4, "little")


def keep(packages: Path | None = None, requirements: Path = REQUIREMENTS) -> None:
    """Keep the bytecode of a folder of packages, unless some is kept already."""
    found = packages or _site_packages()
    made(NAME, requirements, lambda folder, _: _copy(found, folder))


def restore(packages: Path | None = None, requirements: Path = REQUIREMENTS) -> None:
    """Add the kept bytecode where it is missing; do nothing if none is kept."""
    kept = cached_folder(NAME, requirements)
    if (kept / COMPLETE).exists():
        for path in kept.rglob(_PATTERN):
            _put(path, (packages or _site_packages()) / path.relative_to(kept))


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _copy(packages: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for compiled, content in _compiled(packages):
        copy = folder / compiled.relative_to(packages)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


def _compiled(packages: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the bytecode that matches its source, with the source's hash added."""
    for path in packages.rglob(_PATTERN):
        source = Path(importlib.util.source_from_cache(str(path)))
        with suppress(FileNotFoundError):  # the source was removed
            text, status, content = source.read_bytes(), source.stat(), path.read_bytes()
            stamp = int(status.st_mtime).to_bytes(4, "little") + len(text).to_bytes(4, "little")
            if content[4:_HEADER] == bytes(4) + stamp:
                header = content[:4] + _CHECKED_HASH + importlib.util.source_hash(text)
                yield path, header + content[_HEADER:]


def _put(path: Path, target: Path) -> None:
    if target.exists() or not target.parents[1].is_dir():
        return
    target.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        try:
            os.link(path, target)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without links
            _copy_whole(path, target)


def _copy_whole(path: Path, target: Path) -> None:
    """Copy a file, then move it to its place: Python fails on an incomplete file."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy:
        copy.write(path.read_bytes())
    Path(copy.name).rename(target)


if __name__ == "__main__":
    restore()
