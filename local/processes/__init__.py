"""Child processes: their account, their limits, their end, and the ports they listen on."""

import os
import pwd
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE

# Accounts for PostgreSQL and PgBouncer, which refuse to run as root.
SERVICE_ACCOUNTS = ("postgres", "nobody")

PORTS: Final = range(10_000, 32_768)
"""Below the ports that the kernel gives to connections (ip_local_port_range, by default from 32768
on Linux): while a server is stopped, no client's connection can take its port."""

SOME_PORTS: Final = 100


@dataclass(frozen=True)
class Account:
    """An account of this machine."""

    name: str
    uid: int
    gid: int


def service_account() -> Account | None:
    """Return the account for servers that root starts; None if no change is needed."""
    if os.geteuid() != 0:
        return None
    for name in SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LookupError(
        f"PostgreSQL and PgBouncer refuse to run as root, and this machine has none of the "
        f"accounts {', '.join(SERVICE_ACCOUNTS)}: add one, or run as another user."
    )


def own(path: Path, account: Account | None) -> None:
    """Give a file or a folder to an account."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def make_private_folder(path: Path, account: Account | None) -> Path:
    """Create a folder that belongs to an account, which alone may enter it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    own(path, account)
    path.chmod(0o700)
    return path


def open_log(path: Path, mode: Literal["ab", "wb"] = "ab") -> IO[bytes]:
    """Open a log that only its owner can read, whatever the umask is."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))


def raise_open_files_limit() -> int:
    """Raise this process's limit of open files to the hard limit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY and sys.platform == "darwin":
        hard = 10_240  # OPEN_MAX of macOS: setrlimit refuses more
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def launcher(account: Account | None, death_signal: signal.Signals) -> list[str]:
    """Build the prefix of a command that runs as an account and ends with its parent.

    The kernel sends the signal when the *thread* that started the child ends: start children from
    a thread that stays. Without setpriv (macOS), nothing ends an orphan.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if account is not None:
            raise FileNotFoundError(
                "setpriv is missing, and PostgreSQL and PgBouncer refuse to run as root: install "
                "util-linux, or run as another user."
            )
        return []
    command = [setpriv, f"--pdeathsig={death_signal.name}"]
    if account is not None:
        command += [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    return [*command, "--"]


def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child in a new session, so that Ctrl-C reaches only its parent."""
    with open_log(log) as output:
        return subprocess.Popen(
            [*launcher(account, death_signal), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            umask=0o022,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], how: signal.Signals, seconds: float) -> int:
    """Send a signal, wait, and kill the process if it takes longer; return its exit code."""
    process.send_signal(how)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def base_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that a child inherits: paths, language, home folder, cloud id."""
    names = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", CLOUD_ID_VARIABLE)
    return {name: environment[name] for name in names if name in environment}


def free_ports(count: int) -> list[int]:
    """Choose different TCP ports that are free at every address of this machine."""
    found: list[int] = []
    for port in _candidates():
        if len(found) == count:
            break
        if port in found:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
    if len(found) < count:
        raise OSError(f"only {len(found)} of {count} ports are free in {PORTS.start}-{PORTS.stop}")
    return found


def _candidates() -> Iterator[int]:
    """Yield some ports, and then all, in random order: all of them take 20 ms of processor."""
    yield from random.sample(PORTS, min(SOME_PORTS, len(PORTS)))
    yield from random.sample(PORTS, len(PORTS))


def free_port() -> int:
    """Choose one such port."""
    (port,) = free_ports(1)
    return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll a condition until it holds; raise TimeoutError, naming it, when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log, for an error message."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
