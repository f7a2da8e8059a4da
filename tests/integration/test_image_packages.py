"""The packages of the pooler's image: from the mirror, from the snapshots, or newer and signed."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "pgbouncer" / "packages.sh"
TIME = "20261030T090000Z"
PGBOUNCER = "pool/main/p/pgbouncer/pgbouncer_1.26.1-1_amd64.deb"
LIBRARY = "pool/updates/main/o/openssl/libssl3t64_3.5.9-1~deb13u1+b1_amd64.deb"
WANTED = ("base-files", "ca-certificates", "dash", "findutils", "grep", "python3", "python3-boto3")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not Path("/usr/lib/apt/apt-helper").exists(), reason="needs Debian's apt"),
]


class Archive(ThreadingHTTPServer):
    """A mirror and the snapshots at one address."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen; entering it answers."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Archive

    def do_GET(self) -> None:
        path = self.path.replace("%2b", "+").replace("%7e", "~").lstrip("/")
        self.server.asked.append(path)
        content = self.server.files.get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def archive() -> Iterator[Archive]:
    """An archive with nothing in it yet."""
    with Archive() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class Build:
    """The build stage's part that fetches, with its own locks."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        """Lock two packages."""
        self.packages = folder / "packages"
        self._archive = archive
        self._script = folder / SCRIPT.name
        self.keyring = folder / "keyring.gpg"
        shutil.copy(SCRIPT, self._script)
        head = f"version 1.26.1-1\nsnapshot {TIME}\n"
        (folder / "pgbouncer.lock").write_text(head + locked(PGBOUNCER))
        (folder / "image.lock").write_text(f"snapshot {TIME}\n" + locked(LIBRARY))

    def fetch(self, architecture: str = "amd64") -> subprocess.CompletedProcess[str]:
        """Fetch what is locked."""
        address = f"http://127.0.0.1:{self._archive.server_port}"
        places = {
            "MIRROR": address,
            "SNAPSHOT": f"{address}/snapshot",
            "KEYRING": str(self.keyring),
        }
        return subprocess.run(
            ["sh", self._script, "fetch", architecture, self.packages],
            env={**os.environ, "no_proxy": "127.0.0.1", **places},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def names(self) -> set[str]:
        """The files that have been fetched."""
        return {path.name for path in self.packages.glob("*")}


def content_of(path: str) -> bytes:
    """Invent a package."""
    return f"package {path}\n".encode()


def locked(path: str) -> str:
    """Write a lock's line."""
    return f"amd64 {hashlib.sha256(content_of(path)).hexdigest()} {path}\n"


@pytest.fixture
def build(tmp_path: Path, archive: Archive) -> Build:
    """A build."""
    return Build(tmp_path, archive)


LOCKED = {Path(PGBOUNCER).name, Path(LIBRARY).name}


def test_the_mirror_s_packages_are_taken(build: Build, archive: Archive) -> None:
    """Security fixes come from their own archive; the snapshots are not asked."""
    archive.files = {
        f"debian/{PGBOUNCER}": content_of(PGBOUNCER),
        f"debian-security/{LIBRARY}": content_of(LIBRARY),
    }
    done = build.fetch()
    assert done.returncode == 0, done.stderr
    assert build.names == LOCKED
    assert len(archive.asked) == 2


def test_what_the_mirror_has_dropped_comes_from_the_snapshots(
    build: Build, archive: Archive
) -> None:
    """At the time of the lock, with the same checksum."""
    archive.files = {
        f"debian/{PGBOUNCER}": content_of(PGBOUNCER),
        f"snapshot/debian-security/{TIME}/{LIBRARY}": content_of(LIBRARY),
    }
    done = build.fetch()
    assert done.returncode == 0, done.stderr
    assert build.names == LOCKED


def test_another_file_under_a_locked_name_is_not_taken(build: Build, archive: Archive) -> None:
    """A wrong checksum counts as missing, at the mirror and at the snapshots."""
    archive.files = {
        f"debian/{PGBOUNCER}": b"something else",
        f"debian-security/{LIBRARY}": content_of(LIBRARY),
        f"snapshot/debian/{TIME}/{PGBOUNCER}": content_of(PGBOUNCER),
    }
    assert build.fetch().returncode == 0
    assert (build.packages / Path(PGBOUNCER).name).read_bytes() == content_of(PGBOUNCER)
    shutil.rmtree(build.packages)
    archive.files[f"snapshot/debian/{TIME}/{PGBOUNCER}"] = b"something else"
    assert build.fetch().returncode != 0
    assert Path(PGBOUNCER).name not in build.names


def test_an_architecture_without_a_lock_is_refused(build: Build, archive: Archive) -> None:
    """Nothing is fetched, and nobody is asked."""
    done = build.fetch("riscv64")
    assert done.returncode != 0
    assert "names no package for 'riscv64'" in done.stderr
    assert archive.asked == []


class Key:
    """A key that signs an archive's indexes."""

    def __init__(self, home: Path) -> None:
        """Make it, in a folder with a short path."""
        self._gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
        self._run("--quick-generate-key", "archive@example.test", "ed25519", "sign", "never")

    def public(self) -> bytes:
        """Export the part that apt checks with."""
        return self._run("--export")

    def sign(self, text: str) -> bytes:
        """Sign a text, in the text itself."""
        return self._run("--pinentry-mode", "loopback", "--clearsign", text=text)

    def _run(self, *arguments: str, text: str = "") -> bytes:
        command = [*self._gpg, *arguments]
        return subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout


@pytest.fixture
def new_key() -> Iterator[Any]:
    """Make keys; the agents that gpg starts for them end with the test."""
    if shutil.which("gpg") is None:
        pytest.skip("needs gpg, to sign a test's archive")
    homes: list[str] = []

    def make() -> Key:
        homes.append(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
        return Key(Path(homes[-1]))

    yield make
    for home in homes:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
        shutil.rmtree(home, ignore_errors=True)


def publish(archive: Archive, key: Key, pgbouncer: str) -> None:
    """Fill the archive with newer packages than the locked ones, and signed indexes."""
    stable = [publish_package(archive, name, "99") for name in (*WANTED, "libssl3t64")]
    needs = "postgresql-common (>= 26), libssl3t64 (>= 3.0.0)"
    testing = [publish_package(archive, "pgbouncer", pgbouncer, f"Depends: {needs}\n")]
    testing.append(publish_package(archive, "dash", "100"))
    suites = {"trixie": stable, "testing": testing}
    for suite, stanzas in suites.items():
        publish_suite(archive, key, "debian", suite, "".join(stanzas))
    publish_suite(archive, key, "debian-security", "trixie-security", "")


def publish_package(archive: Archive, name: str, version: str, more: str = "") -> str:
    """Publish an invented package; return its entry in an index."""
    path = f"pool/main/x/{name}_{version}_amd64.deb"
    content = archive.files[f"debian/{path}"] = content_of(path)
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n{more}Filename: {path}\n"
        f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    )


def publish_suite(archive: Archive, key: Key, part: str, suite: str, packages: str) -> None:
    """Publish a release's signed index."""
    content = packages.encode()
    name = "main/binary-amd64/Packages"
    archive.files[f"{part}/dists/{suite}/{name}"] = content
    archive.files[f"{part}/dists/{suite}/InRelease"] = key.sign(
        f"Suite: {suite}\nCodename: {suite}\nDate: {formatdate(usegmt=True)}\n"
        "Architectures: amd64\nComponents: main\n"
        f"SHA256:\n {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
    )


def test_newer_signed_packages_are_taken_when_the_locked_ones_are_gone(
    build: Build, archive: Archive, new_key: Any
) -> None:
    """PgBouncer of testing, everything else of stable; the result names what is not the locked."""
    key = new_key()
    build.keyring.write_bytes(key.public())
    publish(archive, key, "1.26.2-1")
    done = build.fetch()
    assert done.returncode == 0, done.stderr
    names = {f"{name}_99_amd64.deb" for name in (*WANTED, "libssl3t64")}
    assert build.names == names | {"pgbouncer_1.26.2-1_amd64.deb"}
    assert "not the locked one: pgbouncer_1.26.2-1_amd64.deb" in done.stderr


def test_indexes_of_another_s_key_are_refused(build: Build, archive: Archive, new_key: Any) -> None:
    """Then there is no image: better none than somebody's."""
    build.keyring.write_bytes(new_key().public())
    publish(archive, new_key(), "1.26.2-1")
    assert build.fetch().returncode != 0
    assert build.names == set()


def test_an_older_pgbouncer_is_refused(build: Build, archive: Archive, new_key: Any) -> None:
    """Even where it is signed: the versions before have holes."""
    key = new_key()
    build.keyring.write_bytes(key.public())
    publish(archive, key, "1.26.0-9")
    done = build.fetch()
    assert done.returncode != 0
    assert "must be at least 1.26.1" in done.stderr
    assert build.names == set()
