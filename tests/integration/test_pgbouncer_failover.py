"""A failover between two real servers behind PgBouncer, whose server connections live on."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import Database, _denial
from lambda_pg._connection import Connection
from lambda_pg._denial import Denial
from psycopg import errors
from psycopg.rows import TupleRow

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import scalar, settings_for
from tests.support.load import (
    Ledger,
    insert_alone,
    insert_as_work,
    wait_for_refusals,
    wait_for_rows,
)
from tests.support.servers import SQL_DATABASE, PoolerFixture, SecretsService, waiting_clients
from tests.support.switchover import NAME, Pair, assert_clean
from tests.support.waiting import wait_until

INSERT = "INSERT INTO counter VALUES (1)"
IN_RECOVERY = "SELECT pg_is_in_recovery()"
RECONNECTS = "PgBouncer reconnects"
OTHER_ADDRESS = "127.0.0.2"


@pytest.fixture
def new_pooler(
    request: pytest.FixtureRequest,
    pair: Pair,
    secrets_service: SecretsService,
    pgbouncer_binary: PgBouncerBinary,
    secrets_environment: None,
) -> Iterator[PoolerFixture]:
    """A pooler before the address, not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    port = processes.free_port()
    pooler = PoolerFixture(pgbouncer_binary, folder, port, pair.primary, secrets_service)
    pooler.environment["DATABASE_PORT"] = str(pair.address.port)
    yield pooler
    pooler.stop()
    for log in folder.glob("*/*.log"):
        request.node.add_report_section("teardown", f"log {log.name}", log.read_text())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pooler(new_pooler: PoolerFixture) -> PoolerFixture:
    """A pooler before the address."""
    return new_pooler.start()


def reads(db: Database[TupleRow], *, in_recovery: bool) -> bool:
    """Tell whether a read is served, and by which kind of server."""
    with suppress(psycopg.OperationalError):
        return scalar(db, IN_RECOVERY) is in_recovery
    return False


def await_sight(pooler: PoolerFixture, kind: str) -> None:
    """Wait until the supervisor knows what the database is; server connections are there."""
    wait_until(lambda: f"the database is a {kind}" in pooler.log)


def test_a_pooler_leaves_the_demoted_server(pair: Pair, pooler: PoolerFixture) -> None:
    """Without a client's doing: server connections that were opened there are replaced."""
    with closing(Database(settings_for(pooler))) as db:
        db.execute(INSERT)
        await_sight(pooler, "primary")
        pair.switch_over()
        wait_until(lambda: reads(db, in_recovery=True))
        pair.move_address()
        wait_until(lambda: reads(db, in_recovery=False))
        db.execute(INSERT)
    assert RECONNECTS in pooler.log
    assert pair.rows() == [1, 1]
    wait_until(lambda: not pair.clients(pair.standby, pooler.login.name))


def test_a_pooler_leaves_the_demoted_server_under_the_second_name_too(
    pair: Pair, new_pooler: PoolerFixture
) -> None:
    """Also where only `/sql` has server connections there."""
    (reader,) = new_pooler.add_sql(1, pool_size=2, most=2)
    pooler = new_pooler.start()
    edge = replace(settings_for(pooler), dbname=SQL_DATABASE, secret_arn=reader.arn)
    with closing(Database(edge)) as db:
        db.execute(INSERT)
        await_sight(pooler, "primary")
        pair.switch_over()
        wait_until(lambda: reads(db, in_recovery=True))
        pair.move_address()
        wait_until(lambda: reads(db, in_recovery=False))
        db.execute(INSERT)
    assert pair.rows() == [1, 1]
    assert not pair.clients(pair.standby, pooler.login.name), "it is not only /sql"
    wait_until(lambda: not pair.clients(pair.standby, reader.name))


def test_a_full_second_name_hides_no_failover(pair: Pair, new_pooler: PoolerFixture) -> None:
    """The supervisor's question waits in vain there, and the application's server has answered."""
    (reader,) = new_pooler.add_sql(1, pool_size=1, most=1)
    pooler = new_pooler.start(QUERY_WAIT_TIMEOUT="1")
    with closing(Database(settings_for(pooler))) as db, ExitStack() as stack:
        db.execute(INSERT)
        await_sight(pooler, "primary")
        pair.switch_over()
        wait_until(lambda: reads(db, in_recovery=True))
        held = stack.enter_context(pooler.connect(reader, SQL_DATABASE))
        held.execute("BEGIN")
        held.execute(IN_RECOVERY)
        pair.move_address()
        wait_until(lambda: reads(db, in_recovery=False))
        assert held.execute(IN_RECOVERY).fetchone() == (True,), "it is not full"


def test_writers_behind_a_pooler_follow_the_primary_there_and_back(
    pair: Pair, pooler: PoolerFixture
) -> None:
    """A ledger over two failovers, with writers that know nothing of them."""
    with (
        closing(Database(settings_for(pooler))) as one,
        closing(Database(settings_for(pooler))) as other,
        ExitStack() as stopped,
    ):
        ledgers = [Ledger(one, insert_alone, 0), Ledger(other, insert_as_work, 1_000_000)]
        for ledger in ledgers:
            stopped.enter_context(ledger)
        await_sight(pooler, "primary")
        for _ in range(2):
            wait_for_rows(ledgers)
            pair.switch_over()
            wait_for_refusals(ledgers)
            pair.move_address()
        wait_for_rows(ledgers)
    assert_clean(pair, ledgers)


def test_the_server_that_denied_a_write_says_why(
    new_pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked before the transaction leaves it to the next client, who waits for it here."""
    pooler = new_pooler.start(DEFAULT_POOL_SIZE="1", MAX_DB_CONNECTIONS="1")
    question = _denial._ask_why_denied
    answers = []

    def ask(connection: Connection[Any]) -> Denial:
        answers.append(question(connection))
        return answers[-1]

    monkeypatch.setattr(_denial, "_ask_why_denied", ask)
    with closing(Database(settings_for(pooler))) as db, closing(pooler.connect()) as other:
        denied = pytest.raises(errors.ReadOnlySqlTransaction)
        with denied, db.transaction(read_only=True) as held:
            held.execute(IN_RECOVERY)
            other.pgconn.send_query(b"SELECT FROM pg_sleep(1)")
            wait_until(lambda: waiting_clients(pooler))
            held.execute(INSERT)
    assert answers == [Denial.WRITABLE]


def test_a_statement_is_retried_however_often_another_server_says_why(
    pair: Pair, pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the standby denies it, and the primary is asked, which denies nothing."""
    question = _denial._ask_why_denied
    answers = []

    def ask(connection: Connection[Any]) -> Denial:
        lead_to(pair.primary)
        answers.append(question(connection))
        if len(answers) < 3:
            lead_to(pair.standby)
        return answers[-1]

    def lead_to(server: Postgres) -> None:
        pair.address.server = ("127.0.0.1", server.port)
        pair.address.reset()

    with closing(Database(settings_for(pooler))) as db:
        db.execute(INSERT)
        monkeypatch.setattr(_denial, "_ask_why_denied", ask)
        lead_to(pair.standby)
        db.execute(INSERT)
    assert len(answers) == 3
    assert Denial.WRITABLE in answers, "a server connection that is lost counts as a standby"
    assert pair.rows() == [1, 1]


def test_a_pooler_before_a_standby_keeps_its_connections(
    pair: Pair, new_pooler: PoolerFixture
) -> None:
    """Where the address is a standby's, that is what was asked for."""
    pair.address.server = ("127.0.0.1", pair.standby.port)
    pooler = new_pooler.start()
    with closing(Database(settings_for(pooler))) as db:
        assert scalar(db, IN_RECOVERY) is True
        with pytest.raises(errors.ReadOnlySqlTransaction):
            db.execute(INSERT)
        before = scalar(db, "SELECT pg_backend_pid()")
        await_sight(pooler, "standby")
        assert scalar(db, "SELECT pg_backend_pid()") == before
    assert RECONNECTS not in pooler.log


@dataclass
class Hosts:
    """The names that one pooler knows, in a file that stands for /etc/hosts there."""

    path: Path

    def lead(self, name: str, address: str) -> None:
        """Have a name lead to an address; the file stays the same one."""
        self.path.write_text(f"{address} {name}\n")


@pytest.fixture
def hosts(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """Names for the pooler that the test starts; only Linux's root can give it such a file."""
    hosts = Hosts(short_folder / "hosts")
    hosts.lead(NAME, "127.0.0.1")
    mount = f'mount --bind {hosts.path} /etc/hosts && exec "$@"'
    private = ["unshare", "--mount", "sh", "-c", mount]
    try:
        subprocess.run([*private, "sh", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this process cannot have a private /etc/hosts: {error}")
    start = processes.start

    def start_privately(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return start([*private, "sh", *command], **options)

    monkeypatch.setattr("lambda_pg_cdk.local.servers.pgbouncer.processes.start", start_privately)
    return hosts


def test_a_pooler_follows_its_name_to_another_address(
    pair: Pair, new_pooler: PoolerFixture, hosts: Hosts
) -> None:
    """Both addresses lead to a server that takes writes: only the name tells, there and back."""
    port = pair.address.port
    there = FaultProxy(*pair.address.server, listen_port=port, listen_address=OTHER_ADDRESS)
    with there:
        pooler = new_pooler.start(DATABASE_HOST=NAME)
        with closing(Database(settings_for(pooler))) as db:
            db.execute(INSERT)
            for address, old, new in (
                (OTHER_ADDRESS, pair.address, there),
                ("127.0.0.1", there, pair.address),
            ):
                hosts.lead(NAME, address)
                wait_until(partial(follows, db, old, new), 60)
                assert f"the database is at {address} now" in pooler.log


def follows(db: Database[TupleRow], old: FaultProxy, new: FaultProxy) -> bool:
    """Write, and tell whether all of the pooler's server connections are at the new address."""
    db.execute(INSERT)
    return not old.open_connections and new.open_connections > 0
