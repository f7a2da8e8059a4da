"""The files of a project that a deployment may read, and which of them have changed. By polling.

Polling sees what editors do in any order, on any file system: a save by rename, several files at
once, a new file, a removed one. One look at a thousand files takes a few milliseconds.
docs/decisions/0046
"""

import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

INTERVAL_SECONDS = 0.2
SETTLED_SECONDS = 0.05
"""A change is complete when nothing else has changed for so long."""

NOT_DEPLOYED = frozenset(
    {"__pycache__", "build", "cdk.out", "dist", "docs", "node_modules", "test", "tests", "venv"}
)
"""Folders that no deployment reads; hidden ones are not read either."""

NOT_DEPLOYED_ROOMS = frozenset(
    {"benchmarks", "console", "examples", "local", "requirements", "tools"}
)
"""Such folders of this repository; in another project they may be anything."""

NOT_READ = frozenset({"LICENSE", "Makefile", "package-lock.json", "package.json", "pyproject.toml"})
"""Files that no deployment reads."""

LONGEST_LOOKS = 40
"""A file that is written all the time does not keep the others waiting for longer."""

Stamp = tuple[int, int, int]
Files = Mapping[Path, Stamp]


def scan(root: Path) -> dict[Path, Stamp]:
    """Return each file with its time of change, size and inode; links to folders are not read."""
    rooms = NOT_DEPLOYED_ROOMS if (root / "lambda_pg_cdk").is_dir() else frozenset()
    return dict(_scan(str(root), NOT_DEPLOYED | rooms))


def _scan(folder: str, skipped: frozenset[str]) -> Iterator[tuple[Path, Stamp]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # removed, or closed to this account
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in skipped:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _scan(entry.path, skipped)
            elif entry.is_file() and _is_read(entry.name):
                found = entry.stat()
                yield Path(entry.path), (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:  # removed since
            continue


def _is_read(name: str) -> bool:
    if name in NOT_READ or name.endswith(("~", ".md", ".pyc")):
        return False
    return not (name == "conftest.py" or name.startswith("test_") or name.endswith("_test.py"))


def differences(before: Files, now: Files) -> set[Path]:
    """Return the files that are new, changed or gone."""
    return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}


def changes(
    root: Path, known: Files, sleep: Callable[[float], None] = time.sleep
) -> Iterator[set[Path]]:
    """Yield the changed files of each save, for ever; several saved at once come together."""
    while True:
        sleep(INTERVAL_SECONDS)
        now: Files = scan(root)
        if now == known:
            continue
        for _ in range(LONGEST_LOOKS):
            sleep(SETTLED_SECONDS)
            before, now = now, scan(root)
            if now == before:
                break
        if changed := differences(known, now):
            yield changed
        known = now


def changed_since(files: Files, moment: int) -> set[Path]:
    """Return the files that were changed after a moment, in nanoseconds since the epoch."""
    return {path for path, (changed, _, _) in files.items() if changed > moment}


def syntax_errors(paths: Iterable[Path]) -> list[str]:
    """Compile Python files; return what Python says about each that cannot be compiled."""
    python = sorted(path for path in paths if path.suffix == ".py")
    return [problem for path in python if (problem := _syntax_error(path))]


def _syntax_error(path: Path) -> str | None:
    try:
        source = path.read_bytes()
    except OSError:  # removed since
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte, until Python 3.11.3
        return "".join(traceback.format_exception_only(error)).rstrip()
    return None


def python_files(folder: Path) -> list[Path]:
    """List the Python files of a folder that a deployment reads."""
    return [path for path in scan(folder) if path.suffix == ".py"]
