"""A PostgreSQL server for one test run, for the fixtures of `lambda_pg.testing`."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from lambda_pg._clock import monotonic

START_TIMEOUT: Final = 60.0
"""Seconds that a server may take to start, on a machine that is busy with other tests."""

STOP_TIMEOUT: Final = 20.0

ACCOUNTS: Final = ("postgres", "nobody")
"""The accounts for the server where the tests run as root, which PostgreSQL refuses."""

PACKAGED: Final = Path("/usr/lib/postgresql")

NOT_FOUND: Final = (
    "no PostgreSQL server was found: no initdb in PATH, in `pg_config --bindir` or in "
    "/usr/lib/postgresql/*/bin. Install one (Debian: apt install postgresql; macOS: brew install "
    "postgresql@17), or set LAMBDA_PG_TEST_URL to a database that tests may write to"
)


class ServerError(RuntimeError):
    """Report why there is no server for the tests, and what to do."""


@contextmanager
def running() -> Iterator[str]:
    """Run a server on 127.0.0.1, yield its superuser's URL, and remove it afterwards.

    Its data would not survive a crash of the machine. Raises ServerError.
    """
    binaries = _binaries()
    identity = _identity()
    # Another account may have no access to our TMPDIR.
    parent = "/tmp" if identity else None  # noqa: S108 - mkdtemp makes a folder with a random name
    folder = Path(tempfile.mkdtemp(prefix="lambda-pg-", dir=parent))
    try:
        password, port = secrets.token_hex(16), _free_port()
        _initialise(binaries, folder, password, identity)
        _configure(folder / "data", port)
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres?sslmode=disable"
        with _process(binaries, folder, identity) as process:
            _wait(process, url, folder / "log")
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """Find the folder with `initdb` and `postgres`."""
    for folder in _folders():
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    raise ServerError(NOT_FOUND)


def _folders() -> Iterator[Path]:
    if (initdb := shutil.which("initdb")) is not None:
        yield Path(initdb).resolve().parent
    if (pg_config := shutil.which("pg_config")) is not None:
        command = [pg_config, "--bindir"]
        yield Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout[:-1])
    versions = PACKAGED.glob("[0-9]*")
    yield from (path / "bin" for path in sorted(versions, key=lambda path: -int(path.name)))


def _identity() -> dict[str, Any]:
    """Return the options that run a child process in another account than root's, if it is root."""
    if os.geteuid() != 0:
        return {}
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServerError(
        f"PostgreSQL refuses to run as root, and there is no account {' or '.join(ACCOUNTS)}: run "
        "the tests as another user, or set LAMBDA_PG_TEST_URL"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _initialise(binaries: Path, folder: Path, password: str, identity: dict[str, Any]) -> None:
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if identity:
        for path in (folder, secret):
            os.chown(path, identity["user"], identity["group"])
    command = [str(binaries / "initdb"), f"--pgdata={folder / 'data'}", f"--pwfile={secret}"]
    command += ["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    made = subprocess.run(
        [*command, "--no-sync"], cwd=folder, capture_output=True, text=True, check=False, **identity
    )
    secret.unlink()
    if made.returncode:
        raise ServerError(f"{command[0]} failed: {made.stderr.strip()}")


def _configure(data: Path, port: int) -> None:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "timezone": "UTC",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


@contextmanager
def _process(
    binaries: Path, folder: Path, identity: dict[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server; with setpriv, the kernel ends it when the test run is killed."""
    setpriv = shutil.which("setpriv")
    launcher = [setpriv, "--pdeathsig=INT", "--"] if setpriv else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*launcher, str(binaries / "postgres"), "-D", str(folder / "data")],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the tests only, which end it then
            **identity,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # "fast": it waits for no client
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server answers."""
    deadline = monotonic() + START_TIMEOUT
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or monotonic() > deadline:
                end = log.read_text(errors="replace")[-2000:]
                raise ServerError(
                    f"PostgreSQL does not start; the end of its log:\n{end}"
                ) from error
            time.sleep(0.02)
        else:
            return
