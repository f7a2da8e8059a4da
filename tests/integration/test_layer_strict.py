"""Strict mode refuses what pins or leaks before a byte of it is sent, whichever way it takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database, StatementRefusedError
from psycopg import sql
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Open, scalar
from tests.support.recorder import Recorder, socket_of

LEAKING: Final = [
    "SET statement_timeout = 0",
    "RESET ALL",
    "LISTEN news",
    "SELECT pg_advisory_lock(1)",
    "CREATE TEMP TABLE mine (n int)",
    "PREPARE mine AS SELECT 1",
    "DISCARD ALL",
    "SELECT set_config('app.mark', 'x', false)",
    "SELECT 1; SET search_path = public",
    "/* SELECT */ set search_path to public",
]
"""What no pooler in transaction mode bears."""

PINNING: Final = [
    "DECLARE mine CURSOR FOR SELECT 1",
    "SELECT nextval('mine')",
    "CREATE TEMP TABLE mine (n int) ON COMMIT DROP",
    f"SELECT 1 -- {'x' * 16384}",
]
"""What RDS Proxy does not bear besides."""

Strict = Callable[[str], Database[TupleRow]]
Way = Callable[[Database[TupleRow], Any], object]


@pytest.fixture
def recorder(postgres: Postgres, tmp_path: Path) -> Iterator[Recorder]:
    """What stands between the layer and the server."""
    with Recorder(socket_of(postgres), tmp_path) as recorder:
        yield recorder


@pytest.fixture
def strict(open_database: Open, recorder: Recorder) -> Strict:
    """Make strict databases of a profile, connected through the recorder."""

    def make(profile: str) -> Database[TupleRow]:
        db = open_database(
            port=recorder.port, sslrootcert=recorder.ca_file, profile=profile, strict=True
        )
        db.execute("SELECT 1")
        recorder.clear()
        return db

    return make


def way_execute(db: Database[TupleRow], query: Any) -> None:
    """Run one statement."""
    db.execute(query)


def way_claims(db: Database[TupleRow], query: Any) -> None:
    """Run one statement with claims."""
    db.execute(query, claims={"sub": "a"})


def way_composed(db: Database[TupleRow], query: Any) -> None:
    """Run a composed statement."""
    db.execute(sql.SQL("{}").format(sql.SQL(query)))


def way_connection(db: Database[TupleRow], query: Any) -> None:
    """Run it on a connection."""
    with db.connection() as connection:
        connection.execute(query)


def way_bytes(db: Database[TupleRow], query: Any) -> None:
    """Run bytes on a cursor."""
    with db.connection() as connection:
        connection.cursor().execute(query.encode())


def way_executemany(db: Database[TupleRow], query: Any) -> None:
    """Run it several times."""
    with db.connection() as connection:
        connection.cursor().executemany(query, [(), ()])


def way_stream(db: Database[TupleRow], query: Any) -> None:
    """Stream its rows."""
    with db.connection() as connection:
        list(connection.cursor().stream(query))


def way_copy(db: Database[TupleRow], query: Any) -> None:
    """Give it to copy()."""
    with db.connection() as connection, connection.cursor().copy(query):
        pass


def way_pipeline(db: Database[TupleRow], query: Any) -> None:
    """Send it in a pipeline."""
    with db.connection() as connection, connection.pipeline():
        connection.execute(query)


def way_transaction(db: Database[TupleRow], query: Any) -> None:
    """Begin a transaction with it."""
    with db.transaction() as connection:
        connection.execute(query)


def way_run_transaction(db: Database[TupleRow], query: Any) -> None:
    """Begin a unit of work with it."""
    db.run_transaction(lambda connection: connection.execute(query))


WAYS: Final = [
    way_execute,
    way_claims,
    way_composed,
    way_connection,
    way_bytes,
    way_executemany,
    way_stream,
    way_copy,
    way_pipeline,
    way_transaction,
    way_run_transaction,
]


@contextmanager
def refused(recorder: Recorder) -> Iterator[None]:
    """Expect a refusal, and nothing on the wire."""
    with pytest.raises(StatementRefusedError, match=r"docs/pooling\.md|leave out prepare"):
        yield
    assert recorder.queries == []


@pytest.mark.parametrize("profile", ["pgbouncer", "rds-proxy"])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_around_the_refusal(
    strict: Strict, recorder: Recorder, way: Way, profile: str
) -> None:
    """Nothing was sent, and the connection serves the next statement."""
    db = strict(profile)
    for query in LEAKING:
        with refused(recorder):
            way(db, query)
    assert scalar(db, "SELECT 1") == 1
    assert recorder.violations("rds-proxy") == []
    assert db.stats()["connections_num"] == 1


@pytest.mark.parametrize("way", [way_execute, way_connection, way_transaction])
def test_rds_proxy_refuses_more(strict: Strict, recorder: Recorder, way: Way) -> None:
    """Cursors, sequences, temporary tables of a transaction, and long statements pin there."""
    db = strict("rds-proxy")
    for query in PINNING:
        with refused(recorder):
            way(db, query)


IN_VAIN: Final = [
    "SET LOCAL statement_timeout = 0",
    "set local role x",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SELECT set_config('app.mark', 'x', true)",
    "SELECT set_config('app.mark', 'x', true) AS mark",
    "CREATE TEMP TABLE mine (n int) ON COMMIT DROP",
    "SET LOCAL statement_timeout = 0; SELECT set_config('app.mark', 'x', true)",
]
"""What ends with its transaction, and does nothing where it is all of it."""

ALONE: Final = [
    way_execute,
    way_claims,
    way_composed,
    way_connection,
    way_bytes,
    way_executemany,
    way_stream,
]


@pytest.mark.parametrize("way", ALONE)
def test_what_would_do_nothing_is_refused(strict: Strict, recorder: Recorder, way: Way) -> None:
    """Nothing was sent."""
    db = strict("pgbouncer")
    for query in IN_VAIN:
        with refused(recorder):
            way(db, query)
    assert scalar(db, "SELECT 1") == 1


def test_it_is_refused_in_a_session_of_ones_own_too(strict: Strict, recorder: Recorder) -> None:
    """It does nothing there either."""
    db = strict("direct")
    for query in IN_VAIN:
        with refused(recorder):
            way_execute(db, query)


def way_begin(db: Database[TupleRow], query: Any) -> None:
    """Run it in a transaction of one's own."""
    with db.connection() as connection:
        connection.execute("BEGIN")
        connection.execute(query)
        connection.execute("COMMIT")


def way_psycopg(db: Database[TupleRow], query: Any) -> None:
    """Run it in psycopg's block."""
    with db.connection() as connection, connection.transaction():
        connection.execute(query)


def way_manual(db: Database[TupleRow], query: Any) -> None:
    """Run it first on a connection that is not in autocommit, as SQLAlchemy's is."""
    connection = db.getconn()
    connection.autocommit = False
    connection.execute(query)
    connection.rollback()
    db.putconn(connection)


@pytest.mark.parametrize(
    "way",
    [way_transaction, way_run_transaction, way_begin, way_psycopg, way_manual, way_pipeline],
)
def test_in_a_transaction_it_is_not_refused(strict: Strict, way: Way) -> None:
    """There the rest of the transaction has it; a pipeline's is one as well."""
    db = strict("pgbouncer")
    for query in IN_VAIN:
        if query != "set local role x" and not (way is way_pipeline and ";" in query):
            way(db, query)


def test_what_other_statements_of_the_string_use_is_not_refused(strict: Strict) -> None:
    """The string is a transaction."""
    db = strict("pgbouncer")
    db.execute("SET LOCAL application_name = 'mine'; SELECT 1")
    with db.connection() as connection:
        connection.execute("SELECT set_config('app.mark', 'x', true); SELECT 1")
        connection.execute("SELECT 1 WHERE set_config('app.mark', 'x', true) = 'x'")


def declare(db: Database[TupleRow], *, withhold: bool) -> list[TupleRow]:
    """Read through a named cursor in a transaction."""
    with db.transaction() as connection, connection.cursor("mine", withhold=withhold) as cursor:
        return cursor.execute("SELECT generate_series(1, %s)", [2]).fetchall()


def test_a_named_cursor_is_refused_where_it_pins(strict: Strict, recorder: Recorder) -> None:
    """RDS Proxy bears none; PgBouncer one that ends with its transaction."""
    with pytest.raises(StatementRefusedError, match="a cursor pins"):
        declare(strict("rds-proxy"), withhold=False)
    assert not any("DECLARE" in query for query in recorder.queries)
    db = strict("pgbouncer")
    with pytest.raises(StatementRefusedError, match="WITH HOLD"):
        declare(db, withhold=True)
    assert not any("DECLARE" in query for query in recorder.queries)
    assert declare(db, withhold=False) == [(1,), (2,)]


def prepared_explicitly(connection: psycopg.Connection[TupleRow]) -> None:
    """Ask for one prepared statement."""
    connection.execute("SELECT 1", prepare=True)


def prepared_by_threshold(connection: psycopg.Connection[TupleRow]) -> None:
    """Ask for whatever is repeated."""
    connection.prepare_threshold = 0
    connection.execute("SELECT 1")


def prepared_many(connection: psycopg.Connection[TupleRow]) -> None:
    """Ask for it, and repeat."""
    connection.prepare_threshold = 0
    connection.cursor().executemany("SELECT 1", [(), ()])


@pytest.mark.parametrize("action", [prepared_explicitly, prepared_by_threshold, prepared_many])
def test_prepared_statements_are_refused_where_they_pin(
    strict: Strict,
    recorder: Recorder,
    action: Callable[[psycopg.Connection[TupleRow]], None],
) -> None:
    """However psycopg is asked for them; PgBouncer keeps track of them."""
    db = strict("rds-proxy")
    with refused(recorder), db.connection() as connection:
        action(connection)
    db = strict("pgbouncer")
    with db.connection() as connection:
        action(connection)
    assert scalar(db, "SELECT 1") == 1
    assert not {"DISCARD ALL"} & set(recorder.queries)


def test_nothing_is_refused_where_the_session_is_ones_own(strict: Strict) -> None:
    """On the direct address all of it works, and is undone afterwards."""
    db = strict("direct")
    for query in LEAKING:
        db.execute(query)
    assert declare(db, withhold=True) == [(1,), (2,)]
    with db.connection() as connection:
        prepared_by_threshold(connection)


def test_without_strict_mode_nothing_is_refused(open_database: Open) -> None:
    """What pins costs speed, and is the caller's choice."""
    db = open_database(profile="rds-proxy")
    db.execute("SET statement_timeout = '7s'")
    assert declare(db, withhold=False) == [(1,), (2,)]


@pytest.mark.parametrize("profile", ["pgbouncer", "rds-proxy", "supabase", "neon"])
def test_through_a_pooler_nothing_is_sent_at_a_return_or_a_checkout(
    open_database: Open, recorder: Recorder, profile: str
) -> None:
    """There is no session to reset: the statements of the callers cross, and no other."""
    db = open_database(port=recorder.port, sslrootcert=recorder.ca_file, profile=profile)
    db.execute("SELECT 1")
    recorder.clear()
    for number in range(3):
        with db.connection() as connection:
            connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
            connection.execute(f"SELECT {number}")
        db.execute(f"SELECT {number} + 10")
    assert recorder.queries == [
        query for number in range(3) for query in (f"SELECT {number}", f"SELECT {number} + 10")
    ]
    db.close()


def test_on_a_session_of_ones_own_a_reset_is_sent_only_after_a_loan(
    open_database: Open, recorder: Recorder
) -> None:
    """Statements that set nothing cost no round trip more."""
    db = open_database(port=recorder.port, sslrootcert=recorder.ca_file, profile="direct")
    db.execute("SELECT 1")
    recorder.clear()
    db.execute("SELECT 2")
    db.run_transaction(lambda connection: connection.execute("SELECT 3"))
    with db.connection() as connection:
        connection.execute("SELECT 4")
    db.execute("SELECT 5")
    resets = [query for query in recorder.queries if "DISCARD" in query]
    assert resets == ["DISCARD ALL"]
    assert recorder.queries[-2:] == ["DISCARD ALL", "SELECT 5"]
    db.close()
