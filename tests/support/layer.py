"""What the tests of the layer share: an invocation's context, and a few questions."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psutil
import psycopg
from lambda_pg import Database, Settings
from psycopg.rows import TupleRow

from lambda_pg_cdk.stage.loading import load_stage
from tests.support.servers import DATABASE, PoolerFixture
from tests.support.waiting import wait_until

PASSWORD = "canary-Pa55word"
APPLICATION = "layer-test"

Admin = psycopg.Connection[TupleRow]
Open = Callable[..., Database[TupleRow]]
"""Makes a database with other settings than the defaults."""


@contextmanager
def slot_taken(db: Database[TupleRow]) -> Iterator[None]:
    """Let another thread have a connection of the pool."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with db.connection():
            taken.set()
            release.wait()

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        while not taken.wait(0.05):
            if holder.done():
                holder.result()  # raises what kept it from a slot
        try:
            yield
        finally:
            release.set()
        holder.result()


def kill_backends(admin: Admin) -> int:
    """End the layer's backends, as a failover does; wait until they are gone."""
    ended = admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
        [APPLICATION],
    ).fetchall()
    return len(ended)


def in_child(action: Callable[[], object]) -> str:
    """Fork, let the child act, and return what came out of it, as text."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write_end, f"{action()}".encode())
            status = 0
        except BaseException as error:  # noqa: BLE001 - it must not run the rest of the tests
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        if not select.select([pipe], [], [], 20)[0]:
            os.kill(child, signal.SIGKILL)
        result = pipe.read()
    os.waitpid(child, 0)
    return result


def sockets_to(port: int) -> list[object]:
    """Return this process' connections to a port."""
    found = psutil.Process().net_connections("tcp")
    return [each for each in found if each.raddr and each.raddr.port == port]


def scalar(db: Database[TupleRow], query: str) -> object:
    """Return the first column of the first row."""
    row = db.execute(query).fetchone()
    return row[0] if row else None


def settings_for(pooler: PoolerFixture) -> Settings:
    """Say what the stacks say to a function: endpoint, CA and the ARN of the secret."""
    return Settings(
        host="127.0.0.1",
        port=pooler.port,
        dbname=DATABASE,
        secret_arn=pooler.login.arn,
        profile="pgbouncer",
        ca_pem=pooler.authority.pem,
    )


def end_backends(pooler: PoolerFixture) -> None:
    """End the login's server connections: the pooler has to log in again."""
    with psycopg.connect(pooler.postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
            [pooler.login.name],
        )


def is_refused(pooler: PoolerFixture, password: str) -> bool:
    """Tell whether the pooler refuses a password."""
    try:
        pooler.connect(password=password).close()
    except psycopg.OperationalError:
        return True
    return False


def pool_sizes(max_db_connections: int, rotation: str) -> dict[str, str]:
    """Size the pooler's pools as a stage with so many server connections a task does."""
    override = {
        "pgbouncer": {"max_db_connections": max_db_connections},
        "database": {"rotation": rotation},
    }
    size = load_stage("dev", override).pool_size
    return {"MAX_DB_CONNECTIONS": str(max_db_connections), "DEFAULT_POOL_SIZE": str(size)}


@contextmanager
def later(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Do something after some seconds, in any case before the block is left."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


SLEEP = "DO $$ BEGIN RAISE NOTICE 'at work'; PERFORM pg_sleep(300); END $$"
"""Says when it is at work: a notice is sent at once."""


def vanish(client: psycopg.Connection[Any], statement: str = SLEEP) -> bool:
    """Have a client vanish in the middle of a statement; tell whether that was at work."""
    with closing(client):
        said: list[object] = []
        client.add_notice_handler(said.append)
        client.pgconn.send_query(statement.encode())
        client.pgconn.flush()
        select.select([client.fileno()], [], [], 10)
        client.pgconn.consume_input()
        client.pgconn.is_busy()  # parses what has come
        return bool(said)


@contextmanager
def busy_clients(connect: Callable[[], Admin], count: int = 24) -> Iterator[None]:
    """Have clients that send statements of 50 to 200 ms, one after the other."""
    stop = threading.Event()
    begun = [threading.Event() for _ in range(count)]

    def work(number: int) -> None:
        with connect() as client:
            while not stop.is_set():
                client.execute("SELECT pg_sleep(%s)", [0.05 + 0.15 * number / count])
                begun[number].set()

    with ThreadPoolExecutor(count) as threads:
        working = [threads.submit(work, number) for number in range(count)]
        try:
            wait_until(lambda: all(each.is_set() for each in begun))
            yield
        finally:
            stop.set()
        for each in working:
            each.result()


def count_served(settings: Settings, environments: int = 8) -> int:
    """Have new environments make one request each, at once; count those that are served."""

    def request(_: int) -> bool:
        with closing(Database(settings)) as db:
            try:
                return db.execute("SELECT 1", idempotent=True).fetchone() == (1,)
            except psycopg.OperationalError:
                return False

    with ThreadPoolExecutor(environments) as threads:
        return sum(threads.map(request, range(environments)))
