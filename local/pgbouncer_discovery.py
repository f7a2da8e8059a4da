"""Find a PgBouncer that is safe to use: an installed one, or Debian's in a folder of our own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from local import debian_packages
from local.paths import cache_dir, one_at_a_time, shareable

# An unauthenticated client can crash older ones (CVE-2026-6664).
FIXED_UPSTREAM = (1, 25, 2)
FIXED_IN_DEBIAN = "1.24.1-1+deb13u2"
RELEASE = "trixie"
CHOICES = ("any", "installed", "debian")
# PgBouncer and each library that it and they need. Their loader must be their own C library's.
PACKAGES = (
    "pgbouncer",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libevent-2.1-7t64",
    "libpam0g",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
)
PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
ADVICE = (
    "Install one that has the fix of CVE-2026-6664: on macOS `brew install pgbouncer`, on Debian "
    f"13 `apt-get install pgbouncer` ({FIXED_IN_DEBIAN} or newer), elsewhere PgBouncer 1.25.2 or "
    "newer."
)


class PgBouncerNotFoundError(LookupError):
    """No PgBouncer that would do is to be had; says how to get one."""


@dataclass(frozen=True)
class PgBouncerBinary:
    """The command that starts PgBouncer, its version, and where it came from."""

    command: tuple[str, ...]
    version: str
    origin: str  # "installed" or "debian"


def find_pgbouncer(
    *, environment: Mapping[str, str] = os.environ, report: Callable[[str], None] = print
) -> PgBouncerBinary:
    """Find a PgBouncer with the fixes that matter.

    `LAMBDA_PG_PGBOUNCER` forces a way: `installed`, `debian`, or `any` (the default), which
    tries them in this order.
    """
    choice = environment.get("LAMBDA_PG_PGBOUNCER") or "any"
    if choice not in CHOICES:
        raise ValueError(f"LAMBDA_PG_PGBOUNCER is {choice!r}; it can be {', '.join(CHOICES)}.")
    refusals = []
    ways: dict[str, Callable[[], PgBouncerBinary]] = {
        "installed": lambda: _installed(environment),
        "debian": lambda: _from_debian(report),
    }
    for way, find in ways.items():
        if choice in {way, "any"}:
            try:
                return find()
            except LookupError as error:
                refusals.append(str(error))
    raise PgBouncerNotFoundError(f"No PgBouncer: {'; '.join(refusals)}. {ADVICE}")


def has_fixes(version: str) -> bool:
    """Tell whether a version, Debian's full one where there is one, has the fixes that matter."""
    debian = re.match(r"1\.24\.1-1\+deb13u(\d+)", version)
    if debian is not None:
        return int(debian[1]) >= 2
    upstream = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return upstream is not None and tuple(map(int, upstream.groups())) >= FIXED_UPSTREAM


def _installed(environment: Mapping[str, str]) -> PgBouncerBinary:
    places = [*environment.get("PATH", "").split(os.pathsep), *PLACES]
    program = shutil.which("pgbouncer", path=os.pathsep.join(filter(None, places)))
    if program is None:
        raise PgBouncerNotFoundError("none is installed")
    version = _debian_version(program) or _version((program,))
    if not has_fixes(version):
        raise PgBouncerNotFoundError(f"{program} is {version}, which is too old")
    return PgBouncerBinary((program,), version, "installed")


def _debian_version(program: str) -> str | None:
    """Ask dpkg for the full version of the package that a program belongs to."""
    query = shutil.which("dpkg-query")
    if query is None or Path(program).resolve() != Path("/usr/sbin/pgbouncer"):
        return None
    command = [query, "--show", "--showformat=${Version}", "pgbouncer"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _version(command: tuple[str, ...]) -> str:
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PgBouncerNotFoundError(f"{' '.join(command)} does not run: {error}") from error
    found = re.search(r"PgBouncer (\d+\.\d+\.\d+)", answer.stdout)
    return found[1] if found else "of an unknown version"


def _from_debian(report: Callable[[str], None]) -> PgBouncerBinary:
    root = cache_dir() / f"pgbouncer-{FIXED_IN_DEBIAN}-or-newer-{os.uname().machine}"
    marker = root / "version"
    if not marker.exists():
        with one_at_a_time(root):
            if not marker.exists():
                report(f"fetching PgBouncer of Debian 13 with apt into {root}")
                _install(root)
    return PgBouncerBinary(_command(root), marker.read_text(), "debian")


def _install(root: Path) -> None:
    """Fetch into a folder beside the place, check what came, then move it there in one step."""
    with tempfile.TemporaryDirectory(dir=shareable(root.parent), prefix="pgbouncer-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir(mode=0o755)
        version = debian_packages.fetch(RELEASE, PACKAGES, tree)["pgbouncer"]
        if not has_fixes(version):
            raise PgBouncerNotFoundError(f"Debian 13's is {version}, which is too old")
        _version(_command(tree))  # runs it: a missing library shows here
        (tree / "version").write_text(version)
        try:
            tree.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster
                raise


def _command(root: Path) -> tuple[str, ...]:
    """Build the command: through the folder's own loader, with its libraries and no others."""
    libraries = next(root.glob("usr/lib/*-linux-gnu*"), None)
    loader = next(root.glob("usr/lib/**/ld-linux-*.so.*"), None)
    if libraries is None or loader is None:
        raise PgBouncerNotFoundError(f"{root} has no C library for {os.uname().machine}")
    program = root / "usr" / "sbin" / "pgbouncer"
    return (str(loader), "--library-path", str(libraries), str(program))
