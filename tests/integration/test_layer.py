"""The layer against a real PostgreSQL: what Lambda and a server do to a connection."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectFailedError,
    CredentialsError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
)
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, dict_row

from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.context import Context
from tests.support.layer import PASSWORD, Open, kill_backends, scalar
from tests.support.waiting import wait_until


def test_a_statement_with_claims_sees_them_and_leaves_nothing(db: Database[TupleRow]) -> None:
    """Claims hold for one statement; the next one on the same connection has none."""
    query = "SELECT pg_backend_pid(), current_setting('request.jwt.claims', true)"
    first = db.execute(query, claims={"sub": "a"}).fetchone()
    second = db.execute(query).fetchone()
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert first[1] == '{"sub": "a"}'
    assert not second[1]


@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
def test_an_sql_error_is_psycopgs_own_and_leaves_the_connection_usable(
    db: Database[TupleRow], claims: dict[str, str] | None
) -> None:
    """The error keeps its SQLSTATE, and the same backend serves the next statement."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1/0", claims=claims)
    assert scalar(db, "SELECT pg_backend_pid()") == pid


def test_a_backend_killed_while_idle_is_replaced_unseen(
    db: Database[TupleRow], admin: psycopg.Connection[TupleRow]
) -> None:
    """The look at the socket notices the hang-up before a statement is sent."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    assert kill_backends(admin) == 1
    with db.connection() as connection:
        assert connection.info.backend_pid != pid
        connection.execute("SELECT 1")


def test_a_connection_idle_for_long_is_asked_before_it_is_used(open_database: Open) -> None:
    """After the threshold a checkout pays for one round trip, and only then."""
    db = open_database(idle_check_after=0.001)
    pid = scalar(db, "SELECT pg_backend_pid()")
    time.sleep(0.01)
    assert scalar(db, "SELECT pg_backend_pid()") == pid


def test_a_restart_of_the_server_is_survived(db: Database[TupleRow], postgres: Postgres) -> None:
    """A fault that ends within the checkout timeout costs time, not an error."""
    scalar(db, "SELECT 1")
    postgres.stop()
    with ThreadPoolExecutor(1) as request:
        answer = request.submit(scalar, db, "SELECT 2")
        time.sleep(0.5)
        assert not answer.done()
        postgres.start()
        assert answer.result() == 2


def test_a_long_outage_is_answered_in_time(
    open_database: Open, settings: Settings, postgres: Postgres
) -> None:
    """Without a server the error comes within the checkout timeout + 1 s, with its cause."""
    db = open_database()
    postgres.stop()
    started = time.monotonic()
    try:
        with pytest.raises(CheckoutTimeoutError, match="refused") as caught:
            db.execute("SELECT 1")
    finally:
        postgres.start()
    assert time.monotonic() - started < settings.checkout_timeout + 1
    assert caught.value.retry_after > 0
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert scalar(db, "SELECT 1") == 1


def test_a_full_server_is_waited_for(
    db: Database[TupleRow], settings: Settings, postgres: Postgres
) -> None:
    """`too many clients` is retried; a connection that becomes free is taken."""
    with ExitStack() as held:
        hold_every_connection(held, settings, postgres)
        release = threading.Timer(0.5, held.close)
        release.start()
        assert scalar(db, "SELECT 1") == 1
        release.join()


def test_a_server_that_stays_full_is_a_checkout_timeout(
    open_database: Open, settings: Settings, postgres: Postgres
) -> None:
    """The error names the cause, and says when to come back."""
    db = open_database(checkout_timeout=0.5)
    with ExitStack() as held:
        hold_every_connection(held, settings, postgres)
        with pytest.raises(CheckoutTimeoutError, match=r"clients already|slots are reserved"):
            db.execute("SELECT 1")


def test_a_full_server_is_not_hidden_by_a_last_attempt_that_is_too_short(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the window comes as a silence: the caller is told what the server has said."""
    attempts = []

    def connect(*_: object) -> None:
        attempts.append(1)
        if len(attempts) > 1:
            raise psycopg.errors.ConnectionTimeout("connection timeout expired: within 0.0 s")
        raise psycopg.OperationalError("FATAL:  sorry, too many clients already")

    monkeypatch.setattr("lambda_pg._connector.Connector.connect", connect)
    db = open_database(checkout_timeout=0.4)
    with pytest.raises(CheckoutTimeoutError, match="clients already"):
        db.execute("SELECT 1")
    assert len(attempts) > 1


def hold_every_connection(held: ExitStack, settings: Settings, postgres: Postgres) -> None:
    """Connect until the server refuses."""
    address = f"host=127.0.0.1 port={settings.port} user=layer_test password={PASSWORD}"
    try:
        for _ in range(postgres.max_connections + 1):
            held.callback(psycopg.connect(f"{address} dbname=postgres").close)
    except psycopg.OperationalError:
        return
    pytest.fail("the server refused nobody")


def test_a_wrong_password_is_a_credentials_error_without_it(open_database: Open) -> None:
    """A refused login is told apart, and the password shows nowhere."""
    db = open_database(password=f"{PASSWORD}-wrong", checkout_timeout=0.5)
    with pytest.raises(CredentialsError) as caught:
        db.execute("SELECT 1")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert PASSWORD not in str(chain)
        chain = chain.__cause__
    assert PASSWORD not in repr(db)


def test_a_wrong_ca_is_refused_at_once(
    open_database: Open, settings: Settings, tmp_path: Path
) -> None:
    """A server that another CA vouches for is not talked to, and not asked again."""
    other = tmp_path / "other.pem"
    other.write_text(Authority.create("somebody else").pem)
    db = open_database(sslrootcert=other)
    started = time.monotonic()
    with pytest.raises(ConnectFailedError, match="certificate verify failed"):
        db.execute("SELECT 1")
    assert time.monotonic() - started < settings.checkout_timeout


def test_the_ca_may_come_as_text(open_database: Open, postgres: Postgres) -> None:
    """LAMBDA_PG_CA_PEM needs no file."""
    db = open_database(sslrootcert=None, ca_pem=postgres.ca_file.read_text())
    assert scalar(db, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True


def test_the_deadline_ends_a_statement_and_cancels_it(
    db: Database[TupleRow], admin: psycopg.Connection[TupleRow]
) -> None:
    """1.5 s before its end an invocation gets DeadlineExceededError, and the server is free."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> None:
        db.execute("SELECT pg_sleep(30)")

    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        handler(None, Context(1.5))
    assert time.monotonic() - started < 1.5
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%'"
        " AND state = 'active' AND pid <> pg_backend_pid()"
    )
    give_up = time.monotonic() + 5
    while admin.execute(sleeping).fetchone() != (0,):
        assert time.monotonic() < give_up, "the statement goes on"
    assert scalar(db, "SELECT 1") == 1


def test_without_an_invocation_there_is_no_deadline(db: Database[TupleRow]) -> None:
    """The deadline ends with its invocation."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> object:
        return scalar(db, "SELECT 1")

    assert handler(None, Context(1.0)) == 1
    assert scalar(db, "SELECT 1 FROM pg_sleep(1.1)") == 1


def cut(connection: psycopg.Connection[TupleRow]) -> None:
    """Lose a connection as a network does: without a farewell."""
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def test_work_is_rerun_after_its_connection_was_lost(db: Database[TupleRow]) -> None:
    """Before COMMIT was sent nothing can have happened: the whole runs again, once."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> int:
        runs.append(connection.info.backend_pid)
        connection.execute("INSERT INTO counter VALUES (1)")
        if len(runs) == 1:
            cut(connection)
        connection.execute("INSERT INTO counter VALUES (1)")
        return len(runs)

    assert db.run_transaction(work) == 2
    assert scalar(db, "SELECT count(*) FROM counter") == 2


def test_work_is_rerun_after_a_serialization_failure(open_database: Open) -> None:
    """Of two that conflict, the loser runs again and sees what the winner wrote."""
    first, second = open_database(), open_database()
    first.execute("INSERT INTO counter VALUES (0)")
    runs = []

    def increment(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT n FROM counter")
        if len(runs) == 1:
            second.execute("UPDATE counter SET n = n + 1")
        connection.execute("UPDATE counter SET n = n + 1")

    first.run_transaction(increment)
    assert len(runs) == 2
    assert scalar(first, "SELECT n FROM counter") == 2


def test_an_error_of_the_work_is_rolled_back_and_passed_on(db: Database[TupleRow]) -> None:
    """Whatever work raises comes through, and nothing of it stays."""

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        connection.execute("INSERT INTO counter VALUES (1)")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        db.run_transaction(work)
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_a_swallowed_error_is_no_commit(db: Database[TupleRow]) -> None:
    """COMMIT of a failed transaction rolls back: the caller is told."""

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing was committed"):
        db.run_transaction(work)


def test_a_transaction_commits_or_rolls_back(db: Database[TupleRow]) -> None:
    """Leaving the block commits; an exception rolls back."""
    with db.transaction(claims={"sub": "a"}) as connection:
        connection.execute("INSERT INTO counter VALUES (1)")

    def insert_and_fail() -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO counter VALUES (1)")
            raise LookupError

    with pytest.raises(LookupError):
        insert_and_fail()
    assert scalar(db, "SELECT count(*) FROM counter") == 1


def test_a_lost_connection_in_a_transaction_is_unavailability(
    db: Database[TupleRow], admin: psycopg.Connection[TupleRow]
) -> None:
    """A handler has one thing to catch, and the pool serves the next request."""

    def lose() -> None:
        with db.transaction() as connection:
            kill_backends(admin)
            connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailableError):
        lose()
    assert scalar(db, "SELECT 1") == 1


def test_a_transaction_left_open_does_not_reach_the_next_checkout(db: Database[TupleRow]) -> None:
    """What a handler began and never ended is rolled back on return to the pool."""
    with db.connection() as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO counter VALUES (1)")
    with db.connection() as connection:
        assert connection.info.transaction_status == TransactionStatus.IDLE
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_a_nested_checkout_is_explained_at_once(db: Database[TupleRow]) -> None:
    """With one slot, a checkout inside a checkout can never succeed."""
    started = time.monotonic()
    with db.connection(), pytest.raises(ConfigurationError, match="LAMBDA_PG_SLOTS"):
        db.execute("SELECT 1")
    assert time.monotonic() - started < 1
    assert scalar(db, "SELECT 1") == 1


def test_slots_bound_the_connections_of_threads(open_database: Open) -> None:
    """Eight threads with two slots use two connections and all are served."""
    db = open_database(slots=2)
    pids: set[object] = set()

    def work() -> None:
        pids.add(scalar(db, "SELECT pg_backend_pid() FROM pg_sleep(0.02)"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(pids) <= 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of threads
def test_a_forked_child_never_uses_its_parents_connection(db: Database[TupleRow]) -> None:
    """The child connects anew, and its end does not end the parent's backend."""
    mine = scalar(db, "SELECT pg_backend_pid()")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, str(scalar(db, "SELECT pg_backend_pid()")).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert theirs.isdigit()
    assert int(theirs) != mine
    assert scalar(db, "SELECT pg_backend_pid()") == mine


def test_nothing_that_a_handler_sets_reaches_the_next_checkout(db: Database[TupleRow]) -> None:
    """Autocommit, prepared statements, row and cursor factories are as new each time."""
    with db.connection() as connection:
        pid = connection.info.backend_pid
        connection.autocommit = False
        connection.prepare_threshold = 0
        connection.cursor_factory = psycopg.ClientCursor
        connection.row_factory = dict_row  # type: ignore[assignment]  # what a handler might do
        connection.rollback()
    assert db.execute("INSERT INTO counter VALUES (%s) RETURNING n", [2]).fetchone() == (2,)
    assert scalar(db, "SELECT count(*) FROM counter") == 1
    with db.connection() as connection:
        assert connection.info.backend_pid == pid
        assert connection.autocommit
        assert connection.prepare_threshold is None


def test_a_procedure_that_committed_is_not_run_again(
    db: Database[TupleRow], admin: psycopg.Connection[TupleRow]
) -> None:
    """A backend that is told to stop may have committed before: the outcome is unknown."""
    db.execute(
        "DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE x (n int)'; END $$"
    )  # any statement: it opens the connection that is killed below
    block = "DO $$ BEGIN INSERT INTO counter VALUES (1); COMMIT; PERFORM pg_sleep(5); END $$"
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(db.execute, block)
        wait_for_row(admin)
        kill_backends(admin)
        with pytest.raises(CommitOutcomeUnknownError):
            running.result()
    assert scalar(db, "SELECT count(*) FROM counter") == 1


def wait_for_row(admin: psycopg.Connection[TupleRow]) -> None:
    """Wait until the table has a row."""
    wait_until(lambda: admin.execute("SELECT FROM counter").rowcount, what="a row")


@pytest.mark.parametrize("verb", ["commit", "rollback", "with", "COMMIT"])
def test_work_that_ends_its_own_transaction_is_refused_and_not_rerun(
    db: Database[TupleRow], verb: str
) -> None:
    """The layer began the transaction and alone ends it: a rerun could do its work twice."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(verb)
        connection.execute("INSERT INTO counter VALUES (1)")
        if verb == "COMMIT":
            connection.execute(verb)
        elif verb == "with":
            with connection:
                pass
        else:
            getattr(connection, verb)()

    with pytest.raises(psycopg.ProgrammingError, match="transaction"):
        db.run_transaction(work)
    assert runs == [verb]
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_savepoints_work_inside_a_transaction(db: Database[TupleRow]) -> None:
    """connection.transaction() nests, as in psycopg."""
    with db.transaction() as connection:
        connection.execute("INSERT INTO counter VALUES (1)")
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1/0")
    assert scalar(db, "SELECT count(*) FROM counter") == 1


@pytest.mark.parametrize("verb", ["execute", "run_transaction"])
def test_an_error_before_anything_was_sent_is_passed_on_at_once(
    db: Database[TupleRow], verb: str
) -> None:
    """70,000 parameters are refused on this side: nothing was lost, and nothing is rerun."""
    query, runs = f"SELECT {','.join(['%s'] * 70_000)}", []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(verb)
        connection.execute(query, [1] * 70_000)

    with pytest.raises(psycopg.OperationalError, match="parameters") as caught:
        db.run_transaction(work) if verb == "run_transaction" else db.execute(query, [1] * 70_000)
    assert not isinstance(caught.value, DatabaseUnavailableError | CommitOutcomeUnknownError)
    assert len(runs) <= 1


def test_a_stream_left_open_neither_hangs_nor_reaches_the_next_user(
    db: Database[TupleRow],
) -> None:
    """Its generator holds the connection's lock: the transaction fails and is dropped."""
    kept = []

    def leave_open() -> None:
        with db.transaction() as connection:
            rows = connection.cursor().stream("SELECT generate_series(1, 100000)")
            kept.append(rows)
            next(rows)

    with pytest.raises(psycopg.ProgrammingError, match="stream"):
        leave_open()
    assert scalar(db, "SELECT 1") == 1
    kept.clear()


def test_idle_connections_of_a_stalled_server_cost_one_wait(
    open_database: Open, admin: psycopg.Connection[TupleRow]
) -> None:
    """What one has met, the others have: a checkout does not wait for each of them."""
    db = open_database(slots=4, idle_check_after=0.01, checkout_timeout=2.0)
    with ThreadPoolExecutor(4) as threads:
        pids = [
            row.result().fetchone() for row in [threads.submit(db.execute, HELD) for _ in range(4)]
        ]
    stalled = [pid[0] for pid in pids if pid]
    assert len(set(stalled)) == 4
    for pid in stalled:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)  # longer than idle_check_after
    try:
        started = time.monotonic()
        assert scalar(db, "SELECT 1") == 1
        assert time.monotonic() - started < 2.0
    finally:
        for pid in stalled:
            os.kill(pid, signal.SIGCONT)


HELD = "SELECT pg_backend_pid() FROM pg_sleep(0.3)"


def test_a_bound_handler_inside_another_keeps_its_deadline(db: Database[TupleRow]) -> None:
    """The end of the inner one does not end the outer one's."""

    @db.bind_lambda_context
    def inner(event: object, context: Context) -> object:
        return scalar(db, "SELECT 1")

    @db.bind_lambda_context
    def outer(event: object, context: Context) -> None:
        inner(event, context)
        db.execute("SELECT pg_sleep(10)")

    with pytest.raises(DeadlineExceededError):
        outer(None, Context(1.2))


def test_a_wrong_password_of_a_url_is_told_at_once(open_database: Open) -> None:
    """There is no secret that could hold another one."""
    started = time.monotonic()
    with pytest.raises(CredentialsError, match="URL"):
        open_database(password="wrong").execute("SELECT 1")
    assert time.monotonic() - started < 2


def test_a_composed_statement_is_as_good_as_a_text(db: Database[TupleRow]) -> None:
    """psycopg.sql builds statements that have no hash."""
    statement = sql.SQL("SELECT {} + {}").format(sql.Literal(1), sql.Placeholder())
    assert db.execute(statement, [2]).fetchone() == (3,)
    assert db.execute(b"SELECT %s", [4], claims={"sub": "a"}).fetchone() == (4,)


def test_claims_that_are_no_json_cost_no_connection(db: Database[TupleRow]) -> None:
    """What cannot be written down is refused before a connection is taken."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    with pytest.raises(TypeError, match="JSON"):
        db.execute("SELECT 1", claims={"sub": object()})
    assert scalar(db, "SELECT pg_backend_pid()") == pid


def test_a_long_work_is_rerun_too(open_database: Open) -> None:
    """Time in which the database was at work does not count against the checkout timeout."""
    db, runs = open_database(checkout_timeout=0.5), []

    def work(connection: psycopg.Connection[TupleRow]) -> int:
        runs.append(connection.execute("SELECT FROM pg_sleep(0.6)"))
        if len(runs) == 1:
            connection.execute("DO $$BEGIN RAISE SQLSTATE '40001'; END$$")
        return len(runs)

    assert db.run_transaction(work) == 2


SLOW_WRITE = "INSERT INTO counter SELECT 1 FROM pg_sleep(5)"


def write_in_transaction(db: Database[TupleRow]) -> None:
    """Write slowly between BEGIN and COMMIT."""
    with db.transaction() as connection:
        connection.execute(SLOW_WRITE)


@pytest.mark.parametrize(
    ("write", "may_have_run"),
    [(lambda db: db.execute(SLOW_WRITE), True), (write_in_transaction, False)],
)
def test_the_deadline_says_whether_a_write_may_have_been_committed(
    db: Database[TupleRow], write: Callable[[Database[TupleRow]], object], *, may_have_run: bool
) -> None:
    """A transaction that the deadline ends before COMMIT is certainly rolled back."""
    with db.deadline(0.3), pytest.raises(DeadlineExceededError) as caught:
        write(db)
    assert caught.value.may_have_run is may_have_run
