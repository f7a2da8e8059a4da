"""Two real servers, one address that leads to one of them, and a ledger of writers."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from lambda_pg import Settings
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.install.postgres_discovery import find_postgres
from lambda_pg_cdk.local.servers.postgres import HBA, Postgres
from tests.support.load import Ledger
from tests.support.postgres import CopiedPostgres
from tests.support.servers import DATABASE, MAJOR, MASTER, change_password
from tests.support.waiting import wait_until

NAME = "database.internal"
"""A name that the servers' certificates are for, and that leads nowhere."""


def start_with_table(server: Postgres) -> None:
    """Start a new server, with its master and an empty table `counter`."""
    server.start()
    server.create_master(*MASTER, DATABASE)
    change_password(server, *MASTER)
    with psycopg.connect(make_conninfo(server.superuser_dsn, dbname=DATABASE)) as admin:
        admin.execute("CREATE TABLE counter (n int)")
        admin.execute("GRANT ALL ON counter TO PUBLIC")


def copy_server(origin: Postgres, copy: Postgres) -> None:
    """Stop a server and copy its files."""
    origin.stop("fast")
    subprocess.run(["cp", "-a", str(origin.folder), str(copy.folder)], check=True)


def mark_standby(server: Postgres) -> None:
    """Have a stopped server start as a standby."""
    signal_file = server.folder / "data" / "standby.signal"
    signal_file.touch()
    processes.own(signal_file, processes.service_account())


class Replicated(CopiedPostgres):
    """A server that another one may follow, over its socket."""

    def follow(self, leader: Postgres) -> None:
        """Start as the hot standby of another server."""
        password = (self.folder / "superuser").read_text()
        self.parameters["primary_conninfo"] = make_conninfo(
            host=str(leader.folder / "socket"), port=leader.port, user="postgres", password=password
        )
        mark_standby(self)
        self.start()

    def _write_settings(self) -> None:
        super()._write_settings()
        self._write_private("pg_hba.conf", f"{HBA}local  replication  all  scram-sha-256\n")


@dataclass
class Pair:
    """A primary, the standby that follows it, and the address that clients know."""

    primary: Replicated
    standby: Replicated
    address: FaultProxy

    def superuser(self, server: Postgres) -> psycopg.Connection[TupleRow]:
        """Connect to one of the servers, past the address."""
        return psycopg.connect(
            make_conninfo(server.superuser_dsn, dbname=DATABASE), autocommit=True
        )

    def settings(self, server: Postgres | None = None) -> Settings:
        """Say where the address is, or one of the servers."""
        user, password = MASTER
        return Settings(
            host="127.0.0.1",
            port=self.address.port if server is None else server.port,
            dbname=DATABASE,
            user=user,
            password=password,
            sslrootcert=self.primary.ca_file,
        )

    def switch_over(self) -> None:
        """Promote the standby; the old primary follows it, and the address still leads to that.

        Nothing is lost: a primary that is stopped in order sends everything before, to a standby
        that is connected.
        """
        self.await_follower()
        self.primary.stop("fast")
        with self.superuser(self.standby) as admin:
            admin.execute("SELECT pg_promote()")
        self.primary.follow(self.standby)
        self.primary, self.standby = self.standby, self.primary
        self.await_follower()

    def move_address(self) -> None:
        """Have the address lead to the primary; open connections stay where they are."""
        self.address.server = ("127.0.0.1", self.primary.port)

    def await_follower(self) -> None:
        """Wait until the standby receives what the primary writes."""
        streaming = "SELECT FROM pg_stat_replication WHERE state = 'streaming'"
        with self.superuser(self.primary) as admin:
            wait_until(lambda: admin.execute(streaming).rowcount, what="a standby that follows")

    def clients(self, server: Postgres, user: str = MASTER[0]) -> set[int]:
        """Return the process ids of a user's connections to one of the servers."""
        with self.superuser(server) as admin:
            query = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
            return {pid for (pid,) in admin.execute(query, [user])}

    def rows(self) -> list[int]:
        """Return the rows that the primary has."""
        with self.superuser(self.primary) as admin:
            return [n for (n,) in admin.execute("SELECT n FROM counter ORDER BY n")]


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Start the servers, with an empty table `counter`; the address leads to the primary."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    parameters = {"wal_retrieve_retry_interval": "100ms"}
    first, second = (
        Replicated(
            find_postgres(MAJOR),
            folder / name,
            port=processes.free_port(),
            durable=False,
            names=("127.0.0.1", NAME),
            parameters=parameters,
        )
        for name in ("a", "b")
    )
    try:
        start_with_table(first)
        copy_server(first, second)
        first.start()
        second.follow(first)
        with FaultProxy("127.0.0.1", first.port) as address:
            pair = Pair(first, second, address)
            pair.await_follower()
            yield pair
    finally:
        first.stop("immediate")
        second.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def assert_clean(pair: Pair, ledgers: list[Ledger]) -> None:
    """Hold the rows against what the writers were told: none lost, none twice, none hidden."""
    rows = pair.rows()
    acknowledged = {number for ledger in ledgers for number in ledger.acknowledged}
    unknown = {number for ledger in ledgers for number in ledger.unknown}
    errors = [error for ledger in ledgers for error in ledger.errors]
    assert not errors, errors
    assert len(rows) == len(set(rows)), "a row is there twice"
    assert acknowledged <= set(rows), "an acknowledged row is lost"
    assert set(rows) <= acknowledged | unknown, "a row is there that was refused"
