"""Starts and stops the servers of a measurement: PostgreSQL, PgBouncer and Secrets Manager."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlencode

import psycopg

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import find_pgbouncer
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.local.servers.postgres import Postgres

ROOT: Final = Path(__file__).resolve().parent.parent
MAJOR: Final = 17
DATABASE: Final = "app"
USER: Final = "bench"
REGION: Final = "us-east-1"
ROWS: Final = 10_000
START_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Endpoint:
    """The database or the pooler, as clients connect to it."""

    path: Literal["direct", "pgbouncer"]
    port: int
    ca_file: Path
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The URL with user and password, with TLS verified in full."""
        query = urlencode({"sslmode": "verify-full"})
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{DATABASE}?{query}"


@dataclass(frozen=True)
class Servers:
    """Running servers, the endpoints of both paths, and the secret with the login."""

    direct: Endpoint
    pgbouncer: Endpoint
    secrets_url: str
    secret_arn: str
    versions: dict[str, str]
    postgres: Postgres
    pooler: Pooler

    @property
    def endpoints(self) -> tuple[Endpoint, Endpoint]:
        """Both paths, the database first."""
        return self.direct, self.pgbouncer

    def function_environment(self, endpoint: Endpoint, path: Sequence[Path]) -> dict[str, str]:
        """Return a function's environment variables, as the stacks and Lambda would set them."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "AWS_LAMBDA_FUNCTION_NAME": "benchmark",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_SESSION_TOKEN": "bench",
            "AWS_ENDPOINT_URL": self.secrets_url,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(endpoint.port),
            "PGDATABASE": DATABASE,
            "PGSSLROOTCERT": str(endpoint.ca_file),
            "LAMBDA_PG_PROFILE": endpoint.path,
            "LAMBDA_PG_SECRET_ARN": self.secret_arn,
        }


@contextmanager
def running(
    core: int | None = None,
    *,
    parameters: Mapping[str, str] | None = None,
    secrets: Mapping[str, Any] | None = None,
    **task: str,
) -> Iterator[Servers]:
    """Start the servers, with a table of ROWS users, and stop them at the end.

    `core` keeps them on one core; `parameters` go into PostgreSQL's settings, `secrets` into the
    secrets service by their ARNs, `task` changes the environment of the pooler's task.
    """
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    password = machine_made_password()
    postgres = Postgres(
        find_postgres(MAJOR), folder / "pg", port=processes.free_port(), parameters=parameters
    )
    service: subprocess.Popen[bytes] | None = None
    pooler: Pooler | None = None
    try:
        with nullcontext() if core is None else on_core(core):
            postgres.start()
            postgres.create_master(USER, password, DATABASE)
            _fill(postgres.dsn)
            authority = Authority.create("benchmark CA")
            known = {**_secrets(password, authority), **(secrets or {})}
            service_port = processes.free_port()
            service = _start_service(service_port, known, folder)
            pooler = _pooler(folder, postgres, service_port, task)
            pooler.start()
        (folder / "ca.pem").write_text(authority.pem)
        yield Servers(
            direct=Endpoint("direct", postgres.port, postgres.ca_file, password),
            pgbouncer=Endpoint("pgbouncer", pooler.port, folder / "ca.pem", password),
            secrets_url=f"http://127.0.0.1:{service_port}",
            secret_arn=LOGIN_ARN,
            versions=versions(postgres.dsn, pooler.admin_dsn),
            postgres=postgres,
            pooler=pooler,
        )
    finally:
        if pooler is not None:
            pooler.kill()
        if service is not None:
            processes.stop(service, signal.SIGTERM, 5)
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep this process, and processes that it starts, on one core until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores() -> tuple[int, int]:
    """Return the core of the client and that of the servers; they are the same if there is one.

    These are the last ones, as interrupts usually go to the first.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[-2] if len(allowed) > 1 else allowed[-1]


LOGIN_ARN: Final = f"arn:aws:secretsmanager:{REGION}:000000000000:secret:login-abcdef"
CERTIFICATE_ARN: Final = f"arn:aws:secretsmanager:{REGION}:000000000000:secret:certificate-abcdef"


def _fill(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL)")
        connection.execute(
            "INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, %s) AS n", [ROWS]
        )
        connection.execute("VACUUM ANALYZE users")


def _secrets(password: str, authority: Authority) -> dict[str, Any]:
    issued = authority.issue(("127.0.0.1",))
    return {
        LOGIN_ARN: {"username": USER, "password": password},
        CERTIFICATE_ARN: {"private_key": issued.private_key, "certificate_chain": issued.chain},
    }


def _start_service(port: int, secrets: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cost.secrets_service", str(port)],
        stdin=subprocess.PIPE,
        stderr=(folder / "secrets.log").open("wb"),
        cwd=ROOT,
    )
    if process.stdin is not None:
        process.stdin.write(json.dumps(secrets).encode())
        process.stdin.close()
    processes.wait_until(lambda: _listens(port), START_SECONDS, "the secrets service")
    return process


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _pooler(folder: Path, postgres: Postgres, service_port: int, task: Mapping[str, str]) -> Pooler:
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{service_port}",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "LISTEN_PORT": str(processes.free_port()),
        "DATABASE_HOST": "127.0.0.1",
        "DATABASE_PORT": str(postgres.port),
        "DATABASE_NAME": DATABASE,
        "USER_SECRET_ARNS": LOGIN_ARN,
        "CERTIFICATE_SECRET_ARN": CERTIFICATE_ARN,
        "SERVER_TLS_CA_FILE": str(postgres.ca_file),
        "MAX_CLIENT_CONN": "200",
        "DEFAULT_POOL_SIZE": "10",
        "MAX_DB_CONNECTIONS": "20",
        "REFRESH_INTERVAL": "3600",
    }
    return Pooler(find_pgbouncer(), folder / "pooler", environment | dict(task))


def versions(dsn: str, admin_dsn: str) -> dict[str, str]:
    """Ask PostgreSQL and PgBouncer for their versions."""
    with psycopg.connect(dsn) as connection:
        postgresql = connection.info.parameter_status("server_version") or "unknown"
    with psycopg.connect(admin_dsn, autocommit=True) as console:
        row = console.execute("SHOW VERSION").fetchone()
    return {
        "postgresql": postgresql.split(" ")[0],
        "pgbouncer": (row[0] if row else "unknown").removeprefix("PgBouncer ").split(" ")[0],
        "libpq": ".".join(map(str, divmod(psycopg.pq.version(), 10_000))),
    }
