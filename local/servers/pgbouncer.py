"""PgBouncer under the project's own supervisor, as the deployed task runs it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.paths import shareable

START_SECONDS = 60.0


class PoolerError(RuntimeError):
    """The pooler did not start, or ended unexpectedly; has the end of its log."""


class Pooler:
    """A process of the supervisor, with the environment of a task definition.

    `environment` is the deployed task's, with the endpoint and the keys of the local control plane
    for the AWS SDK. Settings of this machine are added here: the address, the program, its folder
    and its account.
    """

    def __init__(
        self,
        binary: PgBouncerBinary,
        folder: Path,
        environment: Mapping[str, str],
        address: str = "127.0.0.1",
    ) -> None:
        """Take the settings; nothing is started yet. `folder` must be short: it holds a socket."""
        self.folder = folder
        self.address = address
        self.log = folder / "pgbouncer.log"
        self.run_dir = folder / "run"
        self._account = processes.service_account()
        self._environment = processes.base_environment() | dict(environment)
        self._environment |= {
            "LISTEN_ADDR": address,
            "PGBOUNCER": shlex.join(
                [*processes.launcher(self._account, signal.SIGKILL), *binary.command]
            ),
            "RUN_DIR": str(self.run_dir),
            "PGBOUNCER_USER": self._account.name if self._account else "",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port that clients connect to, on `address`."""
        return int(self._environment["LISTEN_PORT"])

    @property
    def admin_dsn(self) -> str:
        """The URL of PgBouncer's console, for statistics; new with each start."""
        return (self.run_dir / "admin_dsn").read_text()

    @property
    def alive(self) -> Path:
        """The file whose age the container's health check reads."""
        return self.run_dir / "alive"

    @property
    def pid(self) -> int | None:
        """The supervisor's process id."""
        process = self._process  # another thread may end it
        return process.pid if process is not None and process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the supervisor's process runs."""
        return self.pid is not None

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start the supervisor and wait until PgBouncer answers on its console."""
        self.launch()
        processes.wait_until(self.answers, seconds, f"PgBouncer on port {self.port}")

    def launch(self) -> None:
        """Start the supervisor and return at once."""
        shareable(self.folder)
        processes.make_private_folder(self.run_dir, self._account)
        (self.run_dir / "admin_dsn").unlink(missing_ok=True)
        self._process = processes.start(
            [sys.executable, "-m", "pgbouncer"],
            log=self.log,
            environment=self._environment,
            folder=PACKAGE,
        )

    def answers(self) -> bool:
        """Tell whether the task is healthy and PgBouncer answers.

        Raise PoolerError when the supervisor has ended.
        """
        if not self.running:
            raise PoolerError(
                f"the pooler's supervisor ended; the end of {self.log}:\n"
                f"{processes.last_lines(self.log)}"
            )
        try:
            self.alive.stat()  # first: it costs nothing, and comes last at a start
            psycopg.connect(self.admin_dsn, connect_timeout=5, autocommit=True).close()
        except (FileNotFoundError, psycopg.OperationalError):
            return False
        return True

    def reload(self) -> None:
        """Have the supervisor read its secrets now, not at the next interval."""
        self._signal(signal.SIGHUP)

    def terminate(self) -> None:
        """Begin the drain, as ECS does, and return at once."""
        self._signal(signal.SIGTERM)

    def stop(self, seconds: float = 30.0) -> int:
        """Drain and wait; return the supervisor's exit code. 0 when it was not running."""
        if self._process is None:
            return 0
        code = processes.stop(self._process, signal.SIGTERM, seconds)
        self._process = None
        return code

    def wait(self, seconds: float) -> int:
        """Wait until the supervisor ends; return its exit code."""
        if self._process is None:
            raise PoolerError("the pooler was not started")
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kill the supervisor; the kernel ends PgBouncer with it (Linux)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise PoolerError("the pooler was not started")
        os.kill(self._process.pid, number)
