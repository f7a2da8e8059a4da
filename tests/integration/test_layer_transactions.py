"""Whatever a transaction of the layer's begins with is inside of it, with its claims."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database
from psycopg import sql
from psycopg.rows import TupleRow, dict_row, namedtuple_row

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Open, scalar
from tests.support.recorder import Recorder, socket_of

Connection = psycopg.Connection[TupleRow]
Action = Callable[[Connection], object]

WRITE: Final = (
    "INSERT INTO counter SELECT CASE WHEN"
    " current_setting('request.jwt.claims', true) = '{\"sub\": \"a\"}' THEN 1 ELSE -1 END"
)
"""Writes 1 where the claims are there, and -1 where they are not."""


def executemany(connection: Connection) -> None:
    """Insert two rows with one call."""
    connection.cursor().executemany(f"{WRITE} WHERE %s", [(True,), (True,)])


def copy(connection: Connection) -> None:
    """Copy one row out and one in; a trigger could read the claims there."""
    with connection.cursor().copy("COPY counter FROM STDIN") as lines:
        lines.write_row((1,))


def stream(connection: Connection) -> None:
    """Insert and read the row as it comes."""
    assert list(connection.cursor().stream(f"{WRITE} RETURNING n")) == [(1,)]


def pipeline(connection: Connection) -> None:
    """Insert two rows in psycopg's pipeline mode."""
    with connection.pipeline():
        connection.execute(WRITE)
        connection.execute(WRITE)


def savepoint(connection: Connection) -> None:
    """Insert in a transaction inside, and undo another one."""
    with connection.transaction():
        connection.execute(WRITE)
    with connection.transaction() as inner:
        connection.execute(WRITE)
        raise psycopg.Rollback(inner)


def pipelined_savepoint(connection: Connection) -> None:
    """Insert in a transaction inside of a pipeline."""
    with connection.pipeline(), connection.transaction():
        connection.execute(WRITE)


def server_cursor(connection: Connection) -> None:
    """Read from a named cursor, which needs a transaction, then insert."""
    with connection.cursor("mine") as cursor:
        cursor.execute("SELECT generate_series(1, 3)")
        assert cursor.fetchall() == [(1,), (2,), (3,)]
    connection.execute(WRITE)


def several_statements(connection: Connection) -> None:
    """Insert two rows with one string."""
    connection.execute(f"{WRITE}; {WRITE}")


def composed(connection: Connection) -> None:
    """Insert with a composed statement."""
    connection.execute(sql.SQL("{}").format(sql.SQL(WRITE)))


def encoded(connection: Connection) -> None:
    """Insert with a statement that is bytes."""
    connection.execute(WRITE.encode())


def parameters(connection: Connection) -> None:
    """Insert with parameters, and get the answer as binary."""
    row = connection.execute(f"{WRITE} WHERE %s RETURNING n", [True], binary=True).fetchone()
    assert row == (1,)


def prepared(connection: Connection) -> None:
    """Insert with a prepared statement."""
    connection.prepare_threshold = 0
    connection.execute(WRITE, prepare=True)
    connection.execute(WRITE, prepare=True)


def client_cursor(connection: Connection) -> None:
    """Insert with a cursor that is not the layer's."""
    psycopg.ClientCursor(connection).execute(WRITE)


FIRST_THINGS: Final = [
    executemany,
    copy,
    stream,
    pipeline,
    savepoint,
    pipelined_savepoint,
    server_cursor,
    several_statements,
    composed,
    encoded,
    parameters,
    prepared,
    client_cursor,
]


def through_transaction(db: Database[TupleRow], action: Action) -> None:
    """Act in the block of transaction()."""
    with db.transaction(claims={"sub": "a"}) as connection:
        action(connection)


def through_run_transaction(db: Database[TupleRow], action: Action) -> None:
    """Act in a unit of work."""
    db.run_transaction(action, claims={"sub": "a"})


LENDERS: Final = [through_transaction, through_run_transaction]
Lender = Callable[[Database[TupleRow], Action], None]


@pytest.mark.parametrize("first", FIRST_THINGS)
@pytest.mark.parametrize("lender", LENDERS)
def test_what_comes_first_is_inside_and_is_committed(
    db: Database[TupleRow], lender: Lender, first: Action
) -> None:
    """The claims are there, and the rows stay."""
    lender(db, first)
    rows = db.execute("SELECT n FROM counter").fetchall()
    assert rows
    assert set(rows) == {(1,)}
    claims = "coalesce(current_setting('request.jwt.claims', true), '')"
    assert scalar(db, f"SELECT {claims}") == ""
    assert db.stats()["connections_num"] == 1


@pytest.mark.parametrize("first", FIRST_THINGS)
@pytest.mark.parametrize("lender", LENDERS)
def test_what_comes_first_is_rolled_back_by_an_exception(
    db: Database[TupleRow], lender: Lender, first: Action
) -> None:
    """Nothing of it stays, and the connection does."""

    def act_and_fail(connection: Connection) -> None:
        first(connection)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        lender(db, act_and_fail)
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    assert db.stats()["connections_num"] == 1


@pytest.mark.parametrize("first", [executemany, pipeline, several_statements, parameters])
@pytest.mark.parametrize("lender", LENDERS)
def test_an_sql_error_after_what_comes_first_rolls_it_back(
    db: Database[TupleRow], lender: Lender, first: Action
) -> None:
    """The error keeps its SQLSTATE."""

    def act_and_fail(connection: Connection) -> None:
        first(connection)
        connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        lender(db, act_and_fail)
    assert scalar(db, "SELECT count(*) FROM counter") == 0


@pytest.mark.parametrize("lender", LENDERS)
def test_nothing_at_all_sends_nothing(
    open_database: Open, postgres: Postgres, tmp_path: Path, lender: Lender
) -> None:
    """Not even BEGIN."""
    with Recorder(socket_of(postgres), tmp_path) as recorder:
        db = open_database(port=recorder.port, sslrootcert=recorder.ca_file)
        db.execute("SELECT 1")
        recorder.clear()
        lender(db, lambda _connection: None)
        assert recorder.messages == ()
        db.close()


def test_work_that_only_reads_returns_its_rows(db: Database[TupleRow]) -> None:
    """It has no transaction id that could be asked for later, and needs none."""
    assert db.run_transaction(lambda c: c.execute("SELECT 7").fetchone()) == (7,)


@pytest.mark.parametrize("lender", LENDERS)
def test_the_first_statement_has_the_databases_row_factory(
    open_database: Open, lender: Callable[[Database[Any], Callable[[Any], object]], None]
) -> None:
    """Also where it shares its round trip with BEGIN; a cursor of its own may have another."""
    db: Database[Any] = Database(open_database()._settings, row_factory=dict_row)
    seen: list[object] = []

    def read(connection: psycopg.Connection[Any]) -> None:
        seen.append(connection.execute("SELECT 1 AS one").fetchone())
        cursor = connection.cursor(row_factory=namedtuple_row)
        seen.append(cursor.execute("SELECT 2 AS two").fetchone())

    lender(db, read)
    lender(db, lambda c: seen.append(c.cursor(row_factory=dict_row).execute("SELECT 3").fetchone()))
    assert seen == [{"one": 1}, (2,), {"?column?": 3}]
    assert db.execute("SELECT 4 AS four").fetchone() == {"four": 4}
    db.close()


@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
@pytest.mark.parametrize("query", ["INSERT INTO counter VALUES (1)\0, (2)", b"SELECT 1\0"])
def test_a_nul_in_a_statement_is_refused(
    db: Database[TupleRow], query: Any, claims: dict[str, str] | None
) -> None:
    """The library would cut the statement there without a word."""

    def run(connection: Connection) -> None:
        connection.execute(query)

    def declare(connection: Connection) -> None:
        with connection.cursor("mine") as cursor:
            cursor.execute(query)

    for attempt in (
        lambda: db.execute(query, claims=claims),
        lambda: db.run_transaction(run, claims=claims),
        lambda: through_transaction(db, run),
        lambda: through_transaction(db, lambda c: c.cursor().executemany(query, [()])),
        lambda: through_transaction(db, lambda c: list(c.cursor().stream(query))),
        lambda: through_transaction(db, declare),
    ):
        with pytest.raises(psycopg.ProgrammingError, match="NUL"):
            attempt()
    assert scalar(db, "SELECT count(*) FROM counter") == 0


@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
@pytest.mark.parametrize("value", ["a\0b", ["a\0"]])
def test_a_nul_in_a_parameter_is_refused(
    db: Database[TupleRow], value: object, claims: dict[str, str] | None
) -> None:
    """PostgreSQL's texts cannot hold it; nothing was sent, and the connection stays."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    with pytest.raises(psycopg.DataError, match="NUL"):
        db.execute("SELECT %s", [value], claims=claims)
    assert scalar(db, "SELECT pg_backend_pid()") == pid


def test_a_nul_in_a_claim_arrives_as_json_writes_it(db: Database[TupleRow]) -> None:
    """JSON has an escape for it."""
    query = "SELECT current_setting('request.jwt.claims')"
    row = db.execute(query, claims={"sub": "a\0"}).fetchone()
    assert row == ('{"sub": "a\\u0000"}',)


@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
@pytest.mark.parametrize(
    "query", [sql.SQL("SELECT {}").format(7), sql.SQL("SELECT 7"), b"SELECT 7"]
)
def test_a_statement_may_be_composed_or_bytes(
    db: Database[TupleRow], query: Any, claims: dict[str, str] | None
) -> None:
    """As in psycopg."""
    assert db.execute(query, claims=claims).fetchone() == (7,)
    assert db.execute(query, claims=claims).fetchone() == (7,)
    assert db.stats()["connections_num"] == 1


@pytest.mark.skipif(sys.version_info < (3, 14), reason="template strings are of Python 3.14")
def test_a_template_string_is_bound_not_pasted(db: Database[TupleRow]) -> None:
    """Its values travel as parameters, in transactions too."""
    value = "x'; DROP TABLE counter; --"
    template = eval('t"SELECT {value}"', {"value": value})  # noqa: S307 - no syntax before 3.14
    assert db.run_transaction(lambda c: c.execute(template).fetchone()) == (value,)
    with db.connection() as connection:
        assert connection.execute(template).fetchone() == (value,)


def test_a_mistake_of_the_caller_costs_no_connection(db: Database[TupleRow]) -> None:
    """Parameters that are none are a TypeError, and nothing was sent."""
    pid = scalar(db, "SELECT pg_backend_pid()")
    with pytest.raises(TypeError):
        db.execute("SELECT %s", 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        db.run_transaction(lambda c: c.execute("SELECT %s", 7))  # type: ignore[call-overload]
    assert scalar(db, "SELECT pg_backend_pid()") == pid
