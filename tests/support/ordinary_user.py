"""An ordinary user of this machine, with an empty home, whose packages are cached elsewhere."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local.paths import shareable
from tests.support.waiting import wait_until

AS_ROOT = os.geteuid() == 0
ACCOUNT = pwd.getpwnam("nobody") if AS_ROOT else pwd.getpwuid(os.geteuid())
"""Who the user is: where root runs the tests, an account that every machine has."""

CACHES = cache_dir() / "ordinary-user"
"""What the user has downloaded. It stays, so only the first run is cold."""

_SETTINGS = ("PIP_", "npm_config_", "SSL_CERT_", "NODE_EXTRA_CA_CERTS", "LANG", "LC_")
"""Beginnings of variables that say where packages come from and how they are verified."""


@dataclass
class User:
    """Someone with a home folder, and with wheels that pip finds besides those of the index."""

    base: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the folders; the caches are kept for the next user."""
        self.home, self.wheels = self.base / "home", self.base / "wheels"
        self.temporary = self.base / "tmp"
        for folder in (self.home, self.temporary, self.wheels, CACHES):
            shareable(folder)
            os.chown(folder, ACCOUNT.pw_uid, ACCOUNT.pw_gid)

    @property
    def variables(self) -> dict[str, str]:
        """The environment: nothing of the tester's but where packages come from."""
        proxies = {n: value for n, value in os.environ.items() if n.lower().endswith("_proxy")}
        kept = {n: value for n, value in os.environ.items() if n.startswith(_SETTINGS)}
        return {
            **proxies,
            **kept,
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PATH": os.pathsep.join(filter(_is_open, os.environ["PATH"].split(os.pathsep))),
            "PIP_FIND_LINKS": f"{kept.get('PIP_FIND_LINKS', '')} {self.wheels}".strip(),
            "PIP_CACHE_DIR": str(CACHES / "pip"),
            "npm_config_cache": str(CACHES / "npm"),
            "LAMBDA_PG_CACHE_DIR": str(CACHES / "lambda-pg"),
        }

    def start(self, command: list[str], folder: Path) -> subprocess.Popen[str]:
        """Start a command; it hears Ctrl-C even where the tests run in the background."""
        account: dict[str, Any] = {}
        if AS_ROOT:
            account = {"user": ACCOUNT.pw_uid, "group": ACCOUNT.pw_gid, "extra_groups": []}
        process = subprocess.Popen(
            ["env", "--default-signal=INT", *command],
            cwd=folder,
            env=self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            umask=0o022,
            **account,
        )
        self.started.append(process)
        return process

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Press Ctrl-C, which a terminal sends to all processes of a command."""
        os.killpg(process.pid, signal.SIGINT)

    def processes(self) -> list[psutil.Process]:
        """Find what runs for this user: by its home, or by a folder in which it works."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(self.home):
                return True
        with suppress(psutil.Error):
            return Path(process.cwd()).is_relative_to(self.base)
        return False

    def close(self) -> None:
        """End by force what a failing test has left, and remove the folders but the caches."""
        wait_until(lambda: not self._kill(), what="the end of processes that were killed")
        for process in self.started:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        shutil.rmtree(self.base)

    def _kill(self) -> list[psutil.Process]:
        found = self.processes()
        for each in found:
            with suppress(psutil.Error):
                each.kill()
        return found


def _is_open(folder: str) -> bool:
    """Tell whether the account may enter a folder of PATH; root may enter all."""
    path = Path(folder).resolve()
    if not path.is_dir():
        return False
    if not AS_ROOT:
        return os.access(path, os.X_OK)
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


@contextmanager
def ordinary_user() -> Iterator[User]:
    """Give a user in a new folder, whose path is short enough for sockets."""
    user = User(Path("/tmp") / f"lpg-{secrets.token_hex(4)}")  # noqa: S108 - a random name
    try:
        yield user
    finally:
        user.close()


class Shell:
    """A shell of a user: what is typed shares variables and the current folder."""

    def __init__(self, user: User) -> None:
        """Start it in the home folder."""
        process = user.start(["bash", "--noprofile", "--norc"], user.home)
        assert process.stdin is not None
        assert process.stdout is not None
        self._typed, self._said = process.stdin, process.stdout
        self._done, self._failed = (f"{word}-{secrets.token_hex(8)}" for word in ("done", "failed"))
        # Not the end of its output: what it has started in the background may keep that open.
        self._typed.write(f"trap \"printf '\\n%s\\n' {self._failed}\" EXIT\n")

    def run(self, typed: str) -> str:
        """Run commands; return what they say. Raise AssertionError where one fails."""
        self._typed.write(
            f"set -e\n{{\n{typed}\n}} </dev/null\nset +e; printf '\\n%s\\n' {self._done}\n"
        )
        self._typed.flush()
        said: list[str] = []
        for line in self._said:
            if line == f"{self._done}\n":
                return "".join(said).removesuffix("\n")
            if line == f"{self._failed}\n":
                break
            said.append(line)
        raise AssertionError(f"this failed:\n{typed}\n{''.join(said)}")
