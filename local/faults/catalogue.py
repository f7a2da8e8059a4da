"""The faults that a local cloud can have.

All of them need a cloud that was started with `Options(wires=True)`, as `make up` does.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.faults.wires.process import LATENCY

ROTATION_SECONDS: Final = 30.0
BY_DEPLOYMENT: Final = {"certificate", "migrate", "migration_provider", "rotate"}
"""Functions that no client calls."""
FRESH: Final = 12
"""Environments that start during a fault which affects new ones, besides those that exist."""
RESETS: Final = 5
SECONDS_BETWEEN_RESETS: Final = 0.25


@dataclass(frozen=True)
class Fault:
    """One fault: it begins when `begin(cloud)` is entered and ends when it is left.

    `seconds` is how long `run` keeps it; 0 for an instant fault.
    """

    name: str
    title: str
    seconds: float
    begin: Callable[[LocalCloud], AbstractContextManager[None]]

    def run(self, cloud: LocalCloud) -> None:
        """Begin, wait, and end."""
        with self.begin(cloud):
            time.sleep(self.seconds)


# The pooler


@contextmanager
def kill_one_pooler_task(cloud: LocalCloud) -> Iterator[None]:
    """Kill PgBouncer in one task, without a drain; raise RuntimeError if no task has one."""
    for process in _poolers_of_one_task(cloud):
        process.kill()
    yield


@contextmanager
def stop_one_pooler_task(cloud: LocalCloud) -> Iterator[None]:
    """Stop PgBouncer (SIGSTOP) in one task while environments start, which have to connect.

    The kernel still accepts connections for it, and the supervisor ends it. Raise RuntimeError if
    no task has a PgBouncer.
    """
    poolers = _poolers_of_one_task(cloud)
    for process in poolers:
        process.suspend()
    try:
        _start_environments(cloud)
        yield
    finally:
        for process in poolers:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _poolers_of_one_task(cloud: LocalCloud) -> list[psutil.Process]:
    task = _running_tasks(cloud)[0]
    children = psutil.Process(task["pid"]).children(recursive=True)
    poolers = [process for process in children if _runs(process, "pgbouncer")]
    if not poolers:
        raise RuntimeError(f"the pooler's task with process {task['pid']} has no PgBouncer")
    return poolers


def _runs(process: psutil.Process, program: str) -> bool:
    """Tell whether a process runs a program, directly or through the loader of its libraries."""
    return any(Path(part).name == program for part in process.cmdline())


def _running_tasks(cloud: LocalCloud) -> list[dict[str, Any]]:
    tasks = cloud.status()["pooler"]["tasks"]
    return [task for task in tasks if task["state"] == "RUNNING"]


@contextmanager
def replace_pooler(cloud: LocalCloud) -> Iterator[None]:
    """Let ECS replace all tasks one after the other, each with its drain."""
    cloud.replace_pooler_tasks()
    yield


@contextmanager
def stop_pooler(cloud: LocalCloud) -> Iterator[None]:
    """Stop all tasks of the pooler."""
    cloud.pooler("stop")
    try:
        yield
    finally:
        cloud.pooler("start")


@contextmanager
def fill_pool(cloud: LocalCloud) -> Iterator[None]:
    """Run slow queries on all server connections of all tasks; cancel them at the end."""
    login = application_login(cloud)
    with ExitStack() as opened:
        for task in _running_tasks(cloud):
            for _ in range(_server_connections(task)):
                connection = _login_at(cloud, task["address"], login)
                opened.callback(connection.close)
                connection.pgconn.send_query(b"SELECT pg_sleep(60)")
                opened.callback(connection.cancel_safe)
        yield


def _server_connections(task: dict[str, Any]) -> int:
    """Read from a task's console how many server connections one user may have."""
    with psycopg.connect(task["admin_dsn"], autocommit=True, prepare_threshold=None) as console:
        settings = {row[0]: row[1] for row in console.execute("SHOW CONFIG")}
    return int(settings["default_pool_size"])


def _login_at(cloud: LocalCloud, address: str, login: dict[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=address,
        port=cloud.status()["pooler"]["port"],
        dbname="app",
        user=login["username"],
        password=login["password"],
        sslmode="require",
        autocommit=True,
        prepare_threshold=None,
    )


# The database


@contextmanager
def kill_backends(cloud: LocalCloud) -> Iterator[None]:
    """Terminate all backends of functions, as a failover does."""
    with psycopg.connect(cloud.status()["postgres"]["dsn"], autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename ~ '^(lambda_pg_user|sql_)'"
        )
    yield


def restart_postgres(how: str) -> Callable[[LocalCloud], AbstractContextManager[None]]:
    """Stop the database (`how` as in `Postgres.stop`), and start it at once."""

    @contextmanager
    def begin(cloud: LocalCloud) -> Iterator[None]:
        cloud.postgres("restart", how)
        yield

    return begin


@contextmanager
def stop_postgres(cloud: LocalCloud) -> Iterator[None]:
    """Stop the database."""
    cloud.postgres("stop")
    try:
        yield
    finally:
        cloud.postgres("start")


# The network


def on_wire(wire: str, kind: str) -> Callable[[LocalCloud], AbstractContextManager[None]]:
    """Make a fault of the network."""
    return lambda cloud: cloud.fault(wire, kind)


@contextmanager
def lose_answers(cloud: LocalCloud) -> Iterator[None]:
    """Reset the functions' connections several times while answers are in flight.

    Before each reset the wire is slow: statements have run whose answers are lost. After it the
    wire is fast: connections are open again before the next reset.
    """
    for _ in range(RESETS):
        with cloud.fault("pooler", "latency"):
            time.sleep(2 * LATENCY)  # statements have arrived, answers have not
            with cloud.fault("pooler", "reset"):
                pass
        time.sleep(SECONDS_BETWEEN_RESETS)
    yield


# Credentials


def secrets_fault(kind: str) -> Callable[[LocalCloud], AbstractContextManager[None]]:
    """Make Secrets Manager fail while environments start, which need credentials.

    Running environments have cached theirs, so the fault does not affect them.
    """

    @contextmanager
    def begin(cloud: LocalCloud) -> Iterator[None]:
        with cloud.fault("secrets", kind):
            _start_environments(cloud)
            yield

    return begin


def _start_environments(cloud: LocalCloud) -> None:
    """Start some for each active function; the next requests go to them."""
    for function, count in cloud.status()["functions"].items():
        if count and function not in BY_DEPLOYMENT:
            cloud.environments(function, count + FRESH)


@contextmanager
def rotate_twice(cloud: LocalCloud) -> Iterator[None]:
    """Rotate the application's password twice, and reset all connections twice.

    Rotations alternate between two users: only the second rotation changes the password of the
    current user. Open connections would not notice, so all are reset and log in again: once while
    the pooler still has the old password, which the database refuses, and once after that.
    """
    old = application_login(cloud)
    rotate(cloud)
    rotate(cloud)
    _end_connections(cloud)
    for task in _running_tasks(cloud):
        _wait_for_refusal(cloud, task["address"], old)
    _end_connections(cloud)
    yield


def _end_connections(cloud: LocalCloud) -> None:
    for wire in ("database", "pooler"):
        with cloud.fault(wire, "reset"):
            pass


def _wait_for_refusal(cloud: LocalCloud, address: str, login: dict[str, Any]) -> None:
    """Wait until a task of the pooler refuses a login; raise TimeoutError."""
    deadline = time.monotonic() + ROTATION_SECONDS
    while time.monotonic() < deadline:
        try:
            _login_at(cloud, address, login).close()
        except psycopg.OperationalError as error:
            if "authentication failed" in str(error):
                return
        time.sleep(0.05)
    raise TimeoutError(f"the pooler at {address} still accepts the old password")


def rotate(cloud: LocalCloud) -> None:
    """Rotate the application's secret with Secrets Manager; raise TimeoutError."""
    client, arn = cloud.client("secretsmanager"), _secret_arn(cloud)
    version = client.rotate_secret(SecretId=arn)["VersionId"]
    deadline = time.monotonic() + ROTATION_SECONDS
    while "AWSCURRENT" not in _stages(client, arn).get(version, ()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the rotation did not end within {ROTATION_SECONDS:g} s")
        time.sleep(0.05)


def application_login(cloud: LocalCloud) -> dict[str, Any]:
    """Read the application's current user and password."""
    secret = cloud.client("secretsmanager").get_secret_value(SecretId=_secret_arn(cloud))
    login: dict[str, Any] = json.loads(secret["SecretString"])
    return login


def _stages(client: Any, arn: str) -> dict[str, list[str]]:
    stages: dict[str, list[str]] = client.describe_secret(SecretId=arn)["VersionIdsToStages"]
    return stages


def _secret_arn(cloud: LocalCloud) -> str:
    parameter = cloud.client("ssm").get_parameter(Name="/lambda-pg/local/pooler/secret-arn")
    return str(parameter["Parameter"]["Value"])


# Environments


@contextmanager
def freeze_half_of_the_busy(cloud: LocalCloud) -> Iterator[None]:
    """Freeze half of the busy environments, at any point of their work."""
    busy = busy_environments(cloud)
    frozen = busy[: (len(busy) + 1) // 2]
    try:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def busy_environments(cloud: LocalCloud) -> list[psutil.Process]:
    """Return the environments that are busy for a third of a second: their request is slow."""
    functions = cloud.status()["functions"]
    pids = [pid for function in functions for pid in cloud.processes(function)]
    found = [psutil.Process(pid) for pid in pids]
    for _ in range(10):
        found = [each for each in found if each.status() != psutil.STATUS_STOPPED]
        time.sleep(0.03)
    return found


POOLER_KILLED: Final = Fault(
    "pooler-task-killed", "kill -9 of one pooler task", 0, kill_one_pooler_task
)
POOLER_HANGS: Final = Fault(
    "pooler-task-hangs", "one pooler task hangs for 10 s", 10, stop_one_pooler_task
)
POOLER_REPLACED: Final = Fault(
    "pooler-replaced", "rolling replacement of the pooler", 0, replace_pooler
)
POOLER_AWAY: Final = Fault("pooler-away", "no pooler for 4 s", 4, stop_pooler)
BACKENDS_KILLED: Final = Fault("backends-killed", "all backends killed", 0, kill_backends)
RESTARTED: Final = Fault(
    "postgres-restarted", "PostgreSQL restarted (fast)", 0, restart_postgres("fast")
)
CRASHED: Final = Fault(
    "postgres-crashed", "PostgreSQL restarted (immediate)", 0, restart_postgres("immediate")
)
OUTAGE: Final = Fault("postgres-away", "no database for 10 s", 10, stop_postgres)
ROTATED: Final = Fault("rotation", "two rotations, then all log in again", 0, rotate_twice)
POOLER_RESET: Final = Fault(
    "pooler-reset", "functions' connections reset", 0, on_wire("pooler", "reset")
)
ANSWERS_LOST: Final = Fault(
    "answers-lost", f"{RESETS} connection resets while answers are on their way", 0, lose_answers
)
POOL_FULL: Final = Fault("pool-full", "slow queries fill the pool for 1 s", 1, fill_pool)
POOL_FULL_LONG: Final = Fault("pool-full-long", "slow queries fill the pool for 6 s", 6, fill_pool)
FROZEN: Final = Fault(
    "frozen-in-transaction", "half of the busy environments frozen", 17, freeze_half_of_the_busy
)

FAULTS: Final = (
    POOLER_KILLED,
    POOLER_HANGS,
    POOLER_REPLACED,
    POOLER_AWAY,
    BACKENDS_KILLED,
    RESTARTED,
    CRASHED,
    OUTAGE,
    ROTATED,
    POOLER_RESET,
    ANSWERS_LOST,
    Fault("pooler-stall", "no byte to the pooler for 2 s", 2, on_wire("pooler", "stall")),
    Fault("pooler-blackhole", "packets to the pooler lost, 2 s", 2, on_wire("pooler", "blackhole")),
    Fault("database-reset", "the pooler's connections reset", 0, on_wire("database", "reset")),
    Fault("database-stall", "no byte to the database for 2 s", 2, on_wire("database", "stall")),
    Fault(
        "database-blackhole",
        "packets to the database lost, 2 s",
        2,
        on_wire("database", "blackhole"),
    ),
    Fault("secrets-failing", "Secrets Manager answers 500, 1.5 s", 1.5, secrets_fault("failing")),
    Fault("secrets-slow", "Secrets Manager 1.5 s late, 4 s", 4, secrets_fault("slow")),
    Fault(
        "secrets-throttling", "Secrets Manager throttles, 1.5 s", 1.5, secrets_fault("throttling")
    ),
    POOL_FULL,
    POOL_FULL_LONG,
    FROZEN,
)
