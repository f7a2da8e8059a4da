"""Foreign statements: results, limits, COPY, deadlines and lost connections."""

import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Final

import psycopg
import pytest
from lambda_pg import CommitOutcomeUnknownError, Database, Settings, _flight
from lambda_pg._connection import Connection
from lambda_pg.text import (
    FIELD_BYTES,
    VALUE_BYTES,
    CopyRefusedError,
    Field,
    Limits,
    Result,
    Statement,
    TooLargeError,
)
from psycopg import IsolationLevel
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, Open, scalar
from tests.support.waiting import wait_until

LIMITS: Final = Limits(rows=10_000, bytes=1_000_000)


def run(db: Database[TupleRow], *queries: str, limits: Limits = LIMITS) -> list[Result]:
    """Run statements without parameters."""
    return db.run_text([Statement(query) for query in queries], limits=limits)


def backend(db: Database[TupleRow]) -> object:
    """Return the process that answers."""
    return run(db, "SELECT pg_backend_pid()")[0].rows[0][0]


# Results


def test_values_and_parameters_are_text_without_types(db: Database[TupleRow]) -> None:
    """What PostgreSQL makes of them is what psql shows."""
    (result,) = db.run_text(
        [Statement("SELECT $1, $2::int + 1, 1.50, true, NULL, '{1,2}'::int[]", ["ü€", "41"])],
        limits=LIMITS,
    )
    assert result.rows == [("ü€", "42", "1.50", "t", None, "{1,2}")]
    assert result.fields[0] == Field("?column?", 25, 0, 0, -1, -1)
    assert [each.type_oid for each in result.fields] == [25, 23, 1700, 16, 25, 1007]


def test_a_column_of_a_table_is_described(db: Database[TupleRow], admin: Admin) -> None:
    """Clients find the table by these numbers."""
    (result,) = run(db, "SELECT n FROM counter")
    row = admin.execute("SELECT 'counter'::regclass::oid::int").fetchone()
    assert row is not None
    assert result == Result((Field("n", 23, row[0], 1, 4, -1),), [], "SELECT 0")


def test_a_table_that_changes_in_a_batch_is_described_as_it_is(db: Database[TupleRow]) -> None:
    """One text has several descriptions, of which the last one was seen before."""
    query = "SELECT * FROM changing"
    batch = [
        "CREATE TEMP TABLE changing (n int)",
        *(query, "ALTER TABLE changing RENAME n TO m"),
        *(query, "ALTER TABLE changing ALTER m TYPE bigint"),
        *(query, "ALTER TABLE changing ALTER m TYPE int", "ALTER TABLE changing RENAME m TO n"),
        query,
    ]
    described = [each.fields for each in run(db, *batch) if each.fields]
    assert [(each.name, each.type_oid) for (each,) in described] == [
        *(("n", 23), ("m", 23)),
        *(("m", 20), ("n", 23)),
    ]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_each_statement_has_all_its_rows_and_its_tag(db: Database[TupleRow], count: int) -> None:
    """Also where they come in pieces, and where columns or rows are missing."""
    results = run(
        db,
        f"SELECT generate_series(1, {count})",
        "",
        "-- nothing",
        f"SELECT FROM generate_series(1, {count})",
        f"INSERT INTO counter SELECT generate_series(1, {count}) RETURNING n",
        "UPDATE counter SET n = n + 1;",
    )
    numbers = [(str(number),) for number in range(1, count + 1)]
    assert [each.rows for each in results] == [numbers, [], [], [()] * count, numbers, []]
    assert [each.tag for each in results] == [
        *(f"SELECT {count}", "", "", f"SELECT {count}"),
        *(f"INSERT 0 {count}", f"UPDATE {count}"),
    ]


def test_no_statements_have_no_results(db: Database[TupleRow]) -> None:
    """And nothing fails."""
    assert run(db) == []


def test_the_options_and_the_claims_hold_inside(db: Database[TupleRow]) -> None:
    """And end with the transaction."""
    names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
    settings = ", ".join(f"current_setting('{name}')" for name in names)
    claims = "nullif(current_setting('request.jwt.claims', true), '')"
    query = Statement(f"SELECT {settings}, {claims}")
    (result,) = db.run_text(
        [query],
        limits=LIMITS,
        claims={"sub": "a"},
        isolation_level=IsolationLevel.SERIALIZABLE,
        read_only=True,
        deferrable=True,
    )
    assert result.rows == [("serializable", "on", "on", '{"sub": "a"}')]
    assert run(db, query.query)[0].rows == [("read committed", "off", "off", None)]


def test_one_error_undoes_everything(db: Database[TupleRow]) -> None:
    """It is PostgreSQL's error, with its position, and the connection stays usable."""
    process = backend(db)
    with pytest.raises(psycopg.errors.UndefinedColumn) as raised:
        run(db, "INSERT INTO counter VALUES (1)", "SELECT nope FROM counter")
    assert raised.value.diag.statement_position == "8"
    assert raised.value.diag.message_primary == 'column "nope" does not exist'
    assert run(db, "SELECT count(*) FROM counter")[0].rows == [("0",)]
    assert backend(db) == process


def test_an_error_before_other_statements_keeps_the_connection(db: Database[TupleRow]) -> None:
    """Libpq takes no wish about the rows of a statement that it skips."""
    process = backend(db)
    with pytest.raises(psycopg.errors.DivisionByZero):
        run(db, "SELECT 1", "SELECT 1/0", "SELECT 2", "SELECT 3")
    assert backend(db) == process
    insert = [Statement("INSERT INTO counter VALUES (1)"), Statement("SELECT 1")]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        db.run_text(insert, limits=LIMITS, read_only=True)


@pytest.mark.parametrize(
    ("query", "sqlstate"),
    [
        ("SELECT 1; SELECT 2", "42601"),
        ("VACUUM", "25001"),
        ("COMMIT", "2D000"),
        ("/**/ rollback and chain", "2D000"),
        (";END", "2D000"),
        ("PREPARE TRANSACTION 'x'", "2D000"),
        ("DO $$ BEGIN COMMIT; END $$", "2D000"),
        ("copy counter to stdout", "0A000"),
        ("--\nCOPY counter FROM stdin", "0A000"),
        ("SELECT '\0'", "22021"),
        ("SELECT '\ud800'", "22021"),
    ],
)
def test_what_cannot_run_has_an_sqlstate(db: Database[TupleRow], query: str, sqlstate: str) -> None:
    """And the connection stays usable."""
    process = backend(db)
    with pytest.raises(psycopg.Error) as raised:
        run(db, "INSERT INTO counter VALUES (1)", query)
    assert raised.value.sqlstate == sqlstate
    assert run(db, "SELECT count(*), pg_backend_pid() FROM counter")[0].rows == [("0", process)]


@pytest.mark.parametrize(
    ("params", "sqlstate"),
    [(["\0"], "22021"), (["\udfff"], "22021"), (["1"] * 65_536, "54023")],
)
def test_parameters_that_cannot_be_sent_have_an_sqlstate(
    db: Database[TupleRow], params: list[str], sqlstate: str
) -> None:
    """Libpq would cut them, or fail without a reason."""
    with pytest.raises(psycopg.Error) as raised:
        db.run_text([Statement("SELECT $1", params)], limits=LIMITS)
    assert raised.value.sqlstate == sqlstate


def test_many_parameters_are_sent(db: Database[TupleRow]) -> None:
    """As many as PostgreSQL takes."""
    places = ",".join(f"${number}" for number in range(1, 65_536))
    (result,) = db.run_text(
        [Statement(f"SELECT cardinality(ARRAY[{places}])", ["x"] * 65_535)], limits=LIMITS
    )
    assert result.rows == [("65535",)]


def test_savepoints_work(db: Database[TupleRow]) -> None:
    """Their ROLLBACK is not the transaction's."""
    run(
        db,
        "SAVEPOINT a",
        "INSERT INTO counter VALUES (1)",
        "ROLLBACK TO a",
        "ROLLBACK WORK TO SAVEPOINT a",
        "INSERT INTO counter VALUES (2)",
        "RELEASE a",
    )
    assert run(db, "SELECT n FROM counter")[0].rows == [("2",)]


@pytest.mark.parametrize(
    "query", ["COMMIT", "COMMIT AND CHAIN", "ROLLBACK", "ROLLBACK AND CHAIN", "END"]
)
def test_the_tag_shows_an_end_that_the_text_did_not(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """The second check: an error is raised, and no transaction stays open."""
    monkeypatch.setattr(_flight, "ends_transaction", lambda _: False)
    _flight._known.cache_clear()
    with pytest.raises(psycopg.errors.InvalidTransactionTermination, match="may be committed"):
        run(db, query, "SELECT 1")
    _flight._known.cache_clear()
    with db.connection() as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("count", [1, 100])
def test_a_value_in_another_encoding_is_an_error(db: Database[TupleRow], count: int) -> None:
    """Not a failure of the caller's program, for a few values and for many."""
    query = f"SELECT chr(252) FROM generate_series(1, {count})"  # noqa: S608 - a number
    with pytest.raises(psycopg.errors.CharacterNotInRepertoire, match="client_encoding"):
        run(db, "SET client_encoding = 'LATIN1'", query)
    assert run(db, "SELECT 'ü'")[0].rows == [("ü",)]


# Limits


TOO_LARGE: Final = {
    "rows": "SELECT generate_series(1, 10001)",
    "rows without columns": "SELECT FROM generate_series(1, 1000000)",
    "bytes": "SELECT repeat('x', 1000) FROM generate_series(1, 9999)",
    "one value": "SELECT repeat('x', 1000001)",
    "NULLs": "SELECT NULL" + ", NULL" * 60 + " FROM generate_series(1, 9999)",
    "columns": "SELECT " + ", ".join(f"1 AS {'c' * 63}" for _ in range(1600)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_results_over_the_limits_are_refused(db: Database[TupleRow], name: str) -> None:
    """And the next call is served."""
    queries = [TOO_LARGE[name]] * (5 if name == "columns" else 1)
    with pytest.raises(TooLargeError, match=r"10000 rows|1000000 bytes") as raised:
        run(db, *queries)
    assert raised.value.sqlstate == "54000"
    assert run(db, "SELECT 7")[0].rows == [("7",)]


@pytest.mark.parametrize("count", [1, 10, 100, 250])
def test_bytes_are_counted_alike_for_few_and_many_values(
    db: Database[TupleRow], count: int
) -> None:
    """Those of UTF-8, of an empty text and of NULL too; one byte more is refused."""
    query = f"SELECT 'ü€' AS a, '' AS b, NULL AS c FROM generate_series(1, {count})"  # noqa: S608 - a number
    size = 3 * (FIELD_BYTES + 1) + count * (len("ü€".encode()) + 3 * VALUE_BYTES)
    (result,) = db.run_text([Statement(query)], limits=Limits(rows=count, bytes=size))
    assert result.rows == [("ü€", "", None)] * count
    with pytest.raises(TooLargeError, match="bytes"):
        db.run_text([Statement(query)], limits=Limits(rows=count, bytes=size - 1))


def test_the_limits_are_for_all_results_together(db: Database[TupleRow]) -> None:
    """Several results may have as much as one."""
    query = "SELECT generate_series(1, 5000)"
    assert len(run(db, query, query)) == 2
    with pytest.raises(TooLargeError):
        run(db, query, query, "SELECT 1")


def test_a_write_that_returns_too_much_tells_its_outcome(db: Database[TupleRow]) -> None:
    """The rows are there exactly if the error says so."""
    query = "INSERT INTO counter SELECT generate_series(1, {}) RETURNING n"
    for count in (10_001, 200_000):
        with pytest.raises(TooLargeError) as raised:
            run(db, query.format(count))
        there = scalar(db, "SELECT count(*) FROM counter")
        outcomes = {True: {count}, False: {0}, None: {0, count}}
        assert there in outcomes[raised.value.committed]
        assert ("were committed" in str(raised.value)) is (raised.value.committed is True)
        run(db, "DELETE FROM counter")


def test_a_cancelled_result_keeps_the_connection(db: Database[TupleRow]) -> None:
    """A login takes longer than the rest of a large result."""
    process = backend(db)
    with pytest.raises(TooLargeError) as raised:
        run(db, "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)")
    assert raised.value.committed is False
    assert backend(db) == process


def test_a_flight_that_is_sent_in_parts_is_one_transaction(db: Database[TupleRow]) -> None:
    """A large statement waits for the answers before it; whatever fails, nothing stays."""
    process, limits = backend(db), Limits(rows=10_000, bytes=1_000_000)
    first = Statement("INSERT INTO counter VALUES (1)")
    large = Statement("SELECT length($1)", ["y" * (2 * _flight.SENT_AT_ONCE)])
    too_much = Statement("SELECT repeat('x', 1000) FROM generate_series(1, 3000000)")
    with pytest.raises(TooLargeError) as raised:
        db.run_text([first, too_much, large], limits=limits)
    assert raised.value.committed is False
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.run_text([first, Statement("SELECT 1/0"), large, large], limits=limits)
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    found = db.run_text([first, large, large], limits=limits)
    assert [each.rows for each in found[1:]] == [[(str(2 * _flight.SENT_AT_ONCE),)]] * 2
    assert scalar(db, "SELECT count(*) FROM counter") == 1
    assert backend(db) == process
    run(db, "DELETE FROM counter")


def test_where_nothing_can_be_cancelled_the_connection_is_closed(
    open_database: Open, admin: Admin
) -> None:
    """As with RDS Proxy."""
    db = open_database(profile="rds-proxy")
    process = backend(db)
    with pytest.raises(TooLargeError) as raised:
        run(db, "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)")
    assert raised.value.committed is None
    assert backend(db) != process


SCRIPT: Final = """
import sys
from lambda_pg import Database
from lambda_pg.text import Limits, Statement, TooLargeError

def peak():  # not by getrusage: there Linux counts what the process had before this program
    lines = open("/proc/self/status").read().splitlines()
    (found,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(found.split()[1])

db = Database.from_env()
limits = Limits(rows=10_000, bytes=int(sys.argv[2]))
db.run_text([Statement("SELECT repeat('x', 10000)")] * 2, limits=limits)
unsent = [Statement("SELECT length($1)", ["y" * int(sys.argv[3])])]
db.run_text(unsent, limits=limits)
before = peak()
try:
    db.run_text([Statement(sys.argv[1]), *unsent], limits=limits)
except TooLargeError:
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("size", "unsent"),
    [(100, 0), (1000, 0), (100_000, 0), (1_000_000, 0), (100_000, 16_000_000)],
)
def test_a_result_of_a_gigabyte_takes_little_memory(
    settings: Settings, size: int, unsent: int
) -> None:
    """Four times the limit at most, with many rows or large ones.

    Also while the server does not read the statement behind it, which then takes memory itself.
    """
    assert growth(settings, size, 5_000_000, unsent) <= 4 * 5_000_000 + 4 * unsent


def test_the_memory_of_a_result_is_seen(settings: Settings) -> None:
    """The control: with another limit it is over what the test above allows."""
    assert growth(settings, 100_000, 50_000_000) > 4 * 5_000_000


def growth(settings: Settings, size: int, limit: int, unsent: int = 0) -> int:
    """Return by how many bytes a program's peak grows while it refuses 1 GB of values of a size.

    A statement with a parameter of `unsent` bytes follows the one that returns them.
    """
    count = 1_000_000_000 // size
    query = f"SELECT repeat('x', {size}) FROM generate_series(1, {count})"  # noqa: S608 - numbers
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "DATABASE_URL": f"postgresql://layer_test:{settings.password}@127.0.0.1:{settings.port}/postgres",
        "PGSSLROOTCERT": str(settings.sslrootcert),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, query, str(limit), str(unsent)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout) * 1024


@pytest.mark.parametrize("query", ["COPY counter TO STDOUT", "COPY counter FROM STDIN"])
def test_a_copy_ends_the_connection_at_once(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """The second check: libpq would repeat its status without end, past every deadline."""
    monkeypatch.setattr(_flight, "first_words", lambda _: ["select"])
    _flight._known.cache_clear()
    process, began = backend(db), time.process_time()
    with db.deadline(20), pytest.raises(CopyRefusedError):
        run(db, query)
    _flight._known.cache_clear()
    assert time.process_time() - began < 1
    assert backend(db) != process


# The deadline


def test_the_deadline_cancels_and_nothing_was_done(db: Database[TupleRow], admin: Admin) -> None:
    """With any timeout that the caller has set; the next call is served."""
    began = time.monotonic()
    with db.deadline(1.0), pytest.raises(psycopg.errors.QueryCanceled, match="deadline") as raised:
        run(
            db,
            "SET statement_timeout = 0",
            "INSERT INTO counter VALUES (1)",
            "SELECT pg_sleep(60)",
        )
    assert raised.value.sqlstate == "57014"
    assert time.monotonic() - began < 10
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    assert db.stats()["deadline_cancels"] == 1


def test_without_an_answer_to_the_cancel_the_outcome_is_unknown(open_database: Open) -> None:
    """Unless the caller has said that the statements may run twice."""
    db = open_database(profile="rds-proxy")
    sleep = [Statement("SELECT pg_sleep(2)")]
    with db.deadline(0.5), pytest.raises(CommitOutcomeUnknownError, match="deadline"):
        db.run_text(sleep, limits=LIMITS)
    with db.deadline(0.5), pytest.raises(psycopg.errors.QueryCanceled):
        db.run_text(sleep, limits=LIMITS, idempotent=True)


def test_results_that_the_deadline_has_cut_are_not_returned(
    db: Database[TupleRow], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were committed, but the caller would get fewer results than statements."""
    backend(db)
    await_answers = Connection._await

    def overdue(_: object, flight: Generator[object], *__: object, **___: object) -> None:
        monkeypatch.setattr(Connection, "_await", await_answers)
        next(flight)  # sends it
        wait_until(lambda: admin.execute("SELECT 1 FROM counter").fetchone())
        raise psycopg.errors._WaitTimeout

    monkeypatch.setattr(Connection, "_await", overdue)
    with pytest.raises(CommitOutcomeUnknownError, match="deadline"):
        run(db, "INSERT INTO counter VALUES (1) RETURNING n")


# Lost connections


SLOW_COMMIT: Final = """
CREATE TABLE slow (n int);
GRANT ALL ON slow TO layer_test;
CREATE FUNCTION sleep_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('attempts') = 1 THEN PERFORM pg_sleep(2); END IF;
  RETURN NULL;
END $$;
CREATE SEQUENCE attempts;
GRANT ALL ON SEQUENCE attempts TO layer_test;
CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION sleep_once();
"""
DROP_SLOW: Final = "DROP TABLE slow; DROP FUNCTION sleep_once; DROP SEQUENCE attempts"


@pytest.fixture
def slow(admin: Admin) -> Iterator[None]:
    """A table whose first COMMIT takes two seconds."""
    admin.execute(SLOW_COMMIT.encode())
    yield
    admin.execute(DROP_SLOW.encode())


@pytest.fixture
def network(settings: Settings) -> Iterator[FaultProxy]:
    """The way to the server."""
    with FaultProxy("127.0.0.1", settings.port or 0) as proxy:
        yield proxy


@pytest.fixture
def far(settings: Settings, network: FaultProxy) -> Iterator[Database[TupleRow]]:
    """The layer at its other end."""
    with closing(Database(replace(settings, port=network.port, checkout_timeout=20.0))) as db:
        db.execute("SELECT 1")
        yield db


def wait_for(admin: Admin, query: str) -> None:
    """Wait until a backend of the layer runs a query."""
    wait_until(
        lambda: admin.execute(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
            " AND usename = 'layer_test'",
            [query + "%"],
        ).fetchone()
    )


def end_backend(admin: Admin) -> None:
    """End the layer's backend."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'layer_test'"
    )


def rows(admin: Admin) -> object:
    """Count what was committed."""
    row = admin.execute("SELECT count(*) FROM slow").fetchone()
    return row and row[0]


@pytest.mark.usefixtures("slow")
def test_a_lost_answer_to_a_commit_is_looked_up(
    far: Database[TupleRow], network: FaultProxy, admin: Admin
) -> None:
    """It was committed: the results are returned, and nothing runs twice."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, far, "INSERT INTO slow VALUES (1) RETURNING n")
        wait_for(admin, "COMMIT")
        with network.stall("to_client", connections="open"):
            wait_until(lambda: rows(admin) == 1)
            network.reset()
        assert running.result()[0].rows == [("1",)]
    assert rows(admin) == 1


@pytest.mark.usefixtures("slow")
def test_without_a_flush_before_commit_the_outcome_would_be_unknown(
    far: Database[TupleRow], network: FaultProxy, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: the server keeps the id until it answers the Sync."""
    monkeypatch.setattr(_flight, "READS", _flight.READS | {"insert"})
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, far, "INSERT INTO slow VALUES (1) RETURNING n")
        wait_for(admin, "COMMIT")
        with network.stall("to_client", connections="open"):
            wait_until(lambda: rows(admin) == 1)
            network.reset()
        with pytest.raises(CommitOutcomeUnknownError):
            running.result()


@pytest.mark.usefixtures("slow")
def test_a_commit_that_was_cut_short_is_repeated(
    far: Database[TupleRow], network: FaultProxy, admin: Admin
) -> None:
    """It was rolled back: the look-up tells, and the second attempt commits."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, far, "INSERT INTO slow VALUES (1) RETURNING n")
        wait_for(admin, "COMMIT")
        with network.stall("to_client", connections="open"):
            end_backend(admin)
            network.reset()
        assert running.result()[0].rows == [("1",)]
    assert rows(admin) == 1
    assert far.stats()["retries"] == 1


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("query", ["COMMIT", "INSERT"])
def test_a_backend_that_ends_before_its_commit_has_done_nothing(
    db: Database[TupleRow], admin: Admin, query: str
) -> None:
    """It says so, in the order of the answers: the statements are retried."""
    sleep = "SELECT count(*) FROM pg_sleep(2)" if query == "INSERT" else "SELECT 1"
    insert = f"INSERT INTO slow SELECT 1 FROM ({sleep}) AS slept"  # noqa: S608 - one of two
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, db, insert)
        wait_for(admin, query)
        end_backend(admin)
        assert running.result()[0].tag == "INSERT 0 1"
    assert rows(admin) == 1
    assert db.stats()["retries"] == 1


def test_a_connection_lost_in_a_statement_leaves_the_outcome_unknown(
    far: Database[TupleRow], network: FaultProxy, admin: Admin
) -> None:
    """COMMIT was sent with it. Only what is idempotent is retried."""
    sleep = [Statement("SELECT pg_sleep(1)")]
    for idempotent in (False, True):
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(far.run_text, sleep, limits=LIMITS, idempotent=idempotent)
            wait_for(admin, "SELECT pg_sleep")
            network.reset()
            if idempotent:
                assert running.result()[0].tag == "SELECT 1"
            else:
                with pytest.raises(CommitOutcomeUnknownError):
                    running.result()


def test_a_conflict_is_retried(db: Database[TupleRow], admin: Admin, postgres: Postgres) -> None:
    """Two transactions wait for each other: the layer's is rolled back, and runs again."""
    admin.execute("INSERT INTO counter VALUES (1), (2)")
    update = "UPDATE counter SET n = n + 10 WHERE n % 10 = {}"
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(postgres.superuser_dsn) as other:
            other.execute("SET LOCAL deadlock_timeout = '20s'")
            other.execute(update.format(1).encode())
            running = threads.submit(run, db, update.format(2), update.format(1))
            wait_for(admin, update.format(1))
            other.execute(update.format(2).encode())
        assert [each.tag for each in running.result()] == ["UPDATE 1", "UPDATE 1"]
    assert db.stats()["retries"] >= 1


# RDS Proxy


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("SELECT 1", True),
        ("INSERT INTO counter VALUES (1)", True),
        ("SET lock_timeout = 7777", False),
        ("SELECT pg_advisory_lock(7)", False),
        ("CREATE TEMP TABLE mine (n int)", False),
        ("DO $$ BEGIN END $$", False),
    ],
)
@pytest.mark.parametrize("last", ["SELECT 1", "SELECT 1/0"])
def test_a_reset_would_pin_so_the_connection_is_closed(
    open_database: Open, query: str, kept: bool, last: str
) -> None:
    """Only after statements that are not plainly harmless, also after an error."""
    db = open_database(profile="rds-proxy")
    process = backend(db)
    if last == "SELECT 1":
        run(db, query, last)
    else:
        with pytest.raises(psycopg.errors.DivisionByZero):
            run(db, query, last)
    assert (backend(db) == process) is kept
