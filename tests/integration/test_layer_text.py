"""Statements of foreign clients: results, limits, COPY, deadlines and the end of the transaction."""

import psycopg
import pytest
from lambda_pg import Database
from lambda_pg.text import *
from psycopg.rows import TupleRow

LIMITS = Limits(rows=10_000, bytes=1_000_000)


def test_results_are_text(db: Database[TupleRow]) -> None:
    """Each with its fields and its command tag."""
    first, second, third = db.run_text(
        [
            Statement("SELECT $1, 2 AS two, NULL", ["ü"]),
            Statement(""),
            Statement("SELECT FROM generate_series(1,3)"),
        ],
        limits=LIMITS,
    )
    assert first.rows == [("ü", "2", None)]
    assert [each.name for each in first.fields] == ["?column?", "two", "?column?"]
    assert first.tag == "SELECT 1"
    assert second == ((), [], "")
    assert third.rows == [()] * 3


@pytest.mark.parametrize(
    "q",
    [
        "select 1/0",
        "select 1; select 2",
        "copy counter to stdout",
        "select generate_series(1,100000)",
        "select repeat('x',1000000) from generate_series(1,3000)",
        "vacuum",
        "select 1 from nope",
        "commit and chain",
        "select repeat('x',1000000000)",
    ],
)
def test_e(db, q):
    import time, resource

    b = db.run_text([Statement("select pg_backend_pid()")], limits=LIMITS)
    t = time.monotonic()
    try:
        print(db.run_text([Statement(q)], limits=LIMITS))
    except psycopg.Error as e:
        print(q, type(e), e.sqlstate, e, e.diag.statement_position)
    print(time.monotonic() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    a = db.run_text([Statement("select pg_backend_pid()")], limits=LIMITS)
    print(a[0].rows == b[0].rows, db.stats())
    assert 0
