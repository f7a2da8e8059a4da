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

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.layer.cache import cache_dir, one_at_a_time
from lambda_pg_cdk.local.install import debian_packages
from lambda_pg_cdk.local.install.debian_packages import DebianPackagesError, Pin, read_pin
from lambda_pg_cdk.local.paths import shareable

# An unauthenticated client can crash older ones (CVE-2026-19888) or keep them busy for ever
# (CVE-2026-107349), and they hash the password 4,096 times in each login.
OLDEST = (1, 26, 1)
# PgBouncer comes from Debian's testing release, where that version is; the libraries that it needs
# come from the stable one, which gets security fixes.
TESTING = "testing"
STABLE = "trixie"
LOCK = PACKAGE / "pgbouncer" / "pgbouncer.lock"
CHOICES = ("any", "installed", "debian")
# Each library that PgBouncer and they need. Their loader must be their own C library's.
LIBRARIES = (
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libevent-2.1-7t64",
    "libldap2",
    "libpam0g",
    "libsasl2-2",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
)
PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
ADVICE = (
    f"Install PgBouncer {'.'.join(map(str, OLDEST))} or newer: on macOS `brew install pgbouncer`, "
    "on Debian from its testing release."
)


class PgBouncerNotFoundError(LookupError):
    """There is no PgBouncer that can be used; says how to get one."""


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
    """Tell whether a version has the fixes that matter; no Debian revision of an older one has."""
    upstream = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return upstream is not None and tuple(map(int, upstream.groups())) >= OLDEST


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
    pin = read_pin(LOCK.read_text())
    root = cache_dir() / f"pgbouncer-{pin.version}-or-newer-{os.uname().machine}"
    return PgBouncerBinary(*unpacked(root, lambda tree: _fetch(pin, tree), report), "debian")


def unpacked(
    root: Path, fetch: Callable[[Path], str], report: Callable[[str], None]
) -> tuple[tuple[str, ...], str]:
    """Return the command and the version of the PgBouncer in a folder, which is filled once.

    `fetch` fills a folder beside it and returns the version; once that has run PgBouncer, it is
    moved to its place in one step.
    """
    marker = root / "version"
    if not marker.exists():
        with one_at_a_time(root):
            if not marker.exists():
                report(f"fetching PgBouncer from Debian with apt into {root}")
                _install(root, fetch)
    return _command(root), marker.read_text()


def _install(root: Path, fetch: Callable[[Path], str]) -> None:
    with tempfile.TemporaryDirectory(dir=shareable(root.parent), prefix="pgbouncer-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir(mode=0o755)
        version = fetch(tree)
        _version(_command(tree))  # runs it: a missing library shows here
        (tree / "version").write_text(version)
        try:
            tree.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster
                raise


def _fetch(pin: Pin, tree: Path) -> str:
    """Fetch the pinned package, wherever it is, with stable libraries; else testing's newest.

    Testing drops a package when a newer one comes, and mirrors follow.
    """
    try:
        debian_packages.fetch(STABLE, LIBRARIES, tree)
        debian_packages.fetch_pinned(pin, tree)
    except DebianPackagesError as missing:
        version = debian_packages.fetch(TESTING, ("pgbouncer", *LIBRARIES), tree)["pgbouncer"]
        if not has_fixes(version):
            raise PgBouncerNotFoundError(
                f"{missing}; the one of Debian testing is {version}, which is too old"
            ) from missing
        return version
    return pin.version


def _command(root: Path) -> tuple[str, ...]:
    """Build the command: through the folder's own loader, with its libraries and no others."""
    libraries = next(root.glob("usr/lib/*-linux-gnu*"), None)
    loader = next(root.glob("usr/lib/**/ld-linux-*.so.*"), None)
    if libraries is None or loader is None:
        raise PgBouncerNotFoundError(f"{root} has no C library for {os.uname().machine}")
    program = root / "usr" / "sbin" / "pgbouncer"
    return (str(loader), "--library-path", str(libraries), str(program))
