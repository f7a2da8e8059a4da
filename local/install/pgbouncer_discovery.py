"""Find a PgBouncer without known faults: an installed one, or Debian's in a cached folder."""

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

# An unauthenticated client can crash older ones (CVE-2026-19888) or block them for ever
# (CVE-2026-107349), and they hash the password 4,096 times in each login.
OLDEST = (1, 26, 1)
REQUIRED = f"must be at least {'.'.join(map(str, OLDEST))}"
# PgBouncer comes from Debian's testing release, which has that version; its libraries come from the
# stable one, which gets security fixes.
TESTING = "testing"
STABLE = "trixie"
LOCK = PACKAGE / "pgbouncer" / "pgbouncer.lock"
CHOICES = ("any", "installed", "debian")
# The libraries of PgBouncer, and theirs. Their loader must be that of their C library.
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
    """No suitable PgBouncer found; has the reasons, and how to get one."""


@dataclass(frozen=True)
class PgBouncerBinary:
    """The command that starts PgBouncer, its version, and its origin."""

    command: tuple[str, ...]
    version: str
    origin: str  # "installed" or "debian"


def find_pgbouncer(
    *, environment: Mapping[str, str] = os.environ, report: Callable[[str], None] = print
) -> PgBouncerBinary:
    """Find a PgBouncer that has the needed fixes.

    `LAMBDA_PG_PGBOUNCER` chooses the origin: `installed`, `debian`, or `any` (the default), which
    tries both in this order.
    """
    choice = environment.get("LAMBDA_PG_PGBOUNCER") or "any"
    if choice not in CHOICES:
        raise ValueError(f"LAMBDA_PG_PGBOUNCER is {choice!r}; must be one of {', '.join(CHOICES)}.")
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
    raise PgBouncerNotFoundError(f"No suitable PgBouncer found: {'; '.join(refusals)}. {ADVICE}")


def has_fixes(version: str) -> bool:
    """Tell whether a version has the needed fixes; Debian's revisions of older ones do not."""
    upstream = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return upstream is not None and tuple(map(int, upstream.groups())) >= OLDEST


def _installed(environment: Mapping[str, str]) -> PgBouncerBinary:
    places = [*environment.get("PATH", "").split(os.pathsep), *PLACES]
    program = shutil.which("pgbouncer", path=os.pathsep.join(filter(None, places)))
    if program is None:
        raise PgBouncerNotFoundError("none is installed")
    version = _debian_version(program) or _version((program,))
    if not has_fixes(version):
        raise PgBouncerNotFoundError(f"{program} is {version}; {REQUIRED}")
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

    `fetch` fills a temporary folder and returns the version. When PgBouncer runs there, the folder
    is moved to its place in one step.
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
        _version(_command(tree))  # runs it, which shows a missing library
        (tree / "version").write_text(version)
        try:
            tree.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another process was faster
                raise


def _fetch(pin: Pin, tree: Path) -> str:
    """Fetch the pinned package with stable libraries; if that fails, the newest of testing.

    Testing and its mirrors drop a package when a newer one arrives.
    """
    try:
        debian_packages.fetch(STABLE, LIBRARIES, tree)
        debian_packages.fetch_pinned(pin, tree)
    except DebianPackagesError as missing:
        version = debian_packages.fetch(TESTING, ("pgbouncer", *LIBRARIES), tree)["pgbouncer"]
        if not has_fixes(version):
            raise PgBouncerNotFoundError(
                f"{missing}; PgBouncer in Debian testing is {version}; {REQUIRED}"
            ) from missing
        return version
    return pin.version


def _command(root: Path) -> tuple[str, ...]:
    """Build the command: it uses the loader and the libraries of the folder only."""
    libraries = next(root.glob("usr/lib/*-linux-gnu*"), None)
    loader = next(root.glob("usr/lib/**/ld-linux-*.so.*"), None)
    if libraries is None or loader is None:
        raise PgBouncerNotFoundError(f"{root} has no C library for {os.uname().machine}")
    program = root / "usr" / "sbin" / "pgbouncer"
    return (str(loader), "--library-path", str(libraries), str(program))
