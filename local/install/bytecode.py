"""Bytecode of the installed packages, which the virtual environments of all checkouts share.

The CDK's modules take Python 20 s to compile, and a fresh checkout would begin with that. So after
the first synthesis what has been compiled is kept in the project's cache, and `make setup` gives it
to the next virtual environment of the same packages and the same interpreter.

Python itself decides whether a file is good: each holds the hash of its source (PEP 552), as the
time of an installed file says nothing about another installation.
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

REQUIREMENTS = PROJECT / "requirements" / "local.txt"
NAME = "bytecode"
_PATTERN = f"*.{sys.implementation.cache_tag}.pyc"
_HEADER = 16  # bytes: magic number, flags, then time and size, or the hash of the source
_CHECKED_HASH = (0b11).to_bytes(4, "little")


def keep(packages: Path | None = None, requirements: Path = REQUIREMENTS) -> None:
    """Keep what has been compiled of a folder of packages, unless something is kept already."""
    found = packages or _site_packages()
    made(NAME, requirements, lambda folder, _: _copy(found, folder))


def restore(packages: Path | None = None, requirements: Path = REQUIREMENTS) -> None:
    """Put what is kept where it is missing; does nothing where nothing is kept."""
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
    """Yield each file of bytecode that is its source's, marked with the source's hash."""
    for path in packages.rglob(_PATTERN):
        source = Path(importlib.util.source_from_cache(str(path)))
        with suppress(FileNotFoundError):  # bytecode of what is not there any more
            text, told, content = source.read_bytes(), source.stat(), path.read_bytes()
            stamp = int(told.st_mtime).to_bytes(4, "little") + len(text).to_bytes(4, "little")
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
    """Copy a file beside its place, then move it there: Python fails at half a file."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy:
        copy.write(path.read_bytes())
    Path(copy.name).rename(target)


if __name__ == "__main__":
    restore()
