"""The cursor that execute() returns reads its rows, and nothing else."""

from collections.abc import Callable
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database
from psycopg.adapt import Loader
from psycopg.rows import TupleRow, dict_row

from tests.support.layer import Open, scalar

Cursor = psycopg.Cursor[TupleRow]

SENDERS: Final[dict[str, Callable[[Cursor], object]]] = {
    "execute": lambda cursor: cursor.execute("SET statement_timeout = '7s'"),
    "execute with parameters": lambda cursor: cursor.execute("SELECT %s", [1], binary=True),
    "executemany": lambda cursor: cursor.executemany("INSERT INTO counter VALUES (%s)", [[1]]),
    "stream": lambda cursor: list(cursor.stream("SELECT 1")),
    "copy": lambda cursor: cursor.copy("COPY counter FROM STDIN").__enter__(),
    "connection": lambda cursor: cursor.connection.execute("SET statement_timeout = '7s'"),
}

CLAIMS: Final = pytest.mark.parametrize("claims", [None, {"sub": "a"}])


@CLAIMS
@pytest.mark.parametrize("name", SENDERS)
@pytest.mark.parametrize("strict", [False, True])
def test_it_sends_nothing(
    open_database: Open, name: str, claims: dict[str, str] | None, strict: bool
) -> None:
    """Its connection may be somebody else's by now; the sentence says what to use instead."""
    db = open_database(profile="pgbouncer", strict=strict)
    cursor = db.execute("SELECT 1", claims=claims)
    with pytest.raises(psycopg.InterfaceError, match=r"Database\.execute\(\) for another"):
        SENDERS[name](cursor)
    assert cursor.fetchone() == (1,)
    assert scalar(db, "SHOW statement_timeout") == "0"
    assert scalar(db, "SELECT count(*) FROM counter") == 0


@pytest.mark.parametrize("name", SENDERS)
def test_it_reaches_nobody_elses_transaction(db: Database[TupleRow], name: str) -> None:
    """The one slot's connection has another holder meanwhile."""
    cursor = db.execute("SELECT 1")
    with db.transaction() as connection:
        connection.execute("INSERT INTO counter VALUES (7)")
        with pytest.raises(psycopg.InterfaceError):
            SENDERS[name](cursor)
    assert db.execute("SELECT n FROM counter").fetchall() == [(7,)]


@CLAIMS
def test_it_reads_its_rows_in_every_way(
    db: Database[TupleRow], claims: dict[str, str] | None
) -> None:
    """As any cursor of psycopg's does."""
    query = "SELECT n, 'a' AS name FROM generate_series(1, 6) n"
    with db.execute(query, claims=claims) as cursor:
        assert cursor.rowcount == 6
        assert cursor.description is not None
        assert [column.name for column in cursor.description] == ["n", "name"]
        assert cursor.fetchone() == (1, "a")
        assert cursor.fetchmany(2) == [(2, "a"), (3, "a")]
        assert next(cursor) == (4, "a")
        cursor.scroll(-1)
        assert cursor.fetchall() == [(4, "a"), (5, "a"), (6, "a")]
        cursor.scroll(5, mode="absolute")
        assert [row for (row, _) in cursor] == [6]
        cursor.scroll(0, mode="absolute")
        cursor.row_factory = dict_row  # type: ignore[assignment]
        assert cursor.fetchone() == {"n": 1, "name": "a"}  # type: ignore[comparison-overlap]
        assert "TUPLES_OK" in repr(cursor)
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        cursor.fetchone()


def test_it_has_every_result_of_its_string(db: Database[TupleRow]) -> None:
    """One after the other."""
    cursor = db.execute("SELECT 1; SELECT 2; SELECT 3")
    assert [each.fetchone() for each in cursor.results()] == [(1,), (2,), (3,)]
    assert cursor.set_result(0).fetchall() == [(1,)]
    assert cursor.nextset()
    assert cursor.statusmessage == "SELECT 1"


class Upper(Loader):
    """Reads texts in capitals."""

    def load(self, data: Any) -> str:
        """Read one."""
        return bytes(data).decode().upper()


@CLAIMS
def test_it_reads_by_the_loaders_that_are_registered_on_it(
    db: Database[TupleRow], claims: dict[str, str] | None
) -> None:
    """From where it stands, and for itself alone."""
    cursor = db.execute("SELECT 'a' FROM generate_series(1, 2)", claims=claims)
    assert cursor.fetchone() == ("a",)
    cursor.adapters.register_loader("text", Upper)
    assert cursor.fetchone() == ("A",)
    assert scalar(db, "SELECT 'a'") == "a"
