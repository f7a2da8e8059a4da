"""What the layer's copy of psycopg changes, used: asynchronous connections, COPY, cancelling.

Runs with the installed psycopg, and by test_built_layer.py with the built layer's.
"""

import asyncio
import os
import sys
import typing
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres

Work = Callable[[AsyncConnection[TupleRow]], Awaitable[object]]


def on(postgres: Postgres, work: Work) -> object:
    """Run `work` with an asynchronous connection."""

    async def main() -> object:
        async with await AsyncConnection.connect(postgres.superuser_dsn) as connection:
            return await work(connection)

    return asyncio.run(main())


def test_it_is_the_psycopg_that_is_to_be_tested() -> None:
    """A path that does not come first would test the wrong one, and say nothing."""
    wanted = os.environ.get("LAMBDA_PG_TESTED_PSYCOPG", sys.prefix)
    assert Path(psycopg.__file__).is_relative_to(wanted)
    assert (Path(psycopg.__file__).with_name("_lazy.py")).exists() == (wanted != sys.prefix)


def test_a_query_and_a_pipeline(postgres: Postgres) -> None:
    """The usual way to wait, for reading and for writing."""

    async def work(connection: AsyncConnection[TupleRow]) -> object:
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int", [n]) for n in range(3)]
            return [await cursor.fetchone() for cursor in cursors]

    assert on(postgres, work) == [(0,), (1,), (2,)]


def test_a_host_by_name(postgres: Postgres) -> None:
    """Its address comes from the event loop."""

    async def work() -> object:
        dsn = psycopg.conninfo.make_conninfo(
            postgres.superuser_dsn, host="localhost", sslmode="require"
        )
        async with await AsyncConnection.connect(dsn) as connection:
            return await (await connection.execute("SELECT 1")).fetchone()

    assert asyncio.run(work()) == (1,)


def test_a_copy_with_a_queue(postgres: Postgres) -> None:
    """What is written goes through a queue and a separate task."""

    async def work(connection: AsyncConnection[TupleRow]) -> object:
        await connection.execute("CREATE TEMP TABLE copied (n int)")
        cursor = connection.cursor()
        writer = psycopg.copy.AsyncQueuedLibpqWriter(cursor)
        async with cursor.copy("COPY copied FROM STDIN", writer=writer) as copy:
            for number in range(1000):
                await copy.write_row([number])
        return await (await connection.execute("SELECT sum(n) FROM copied")).fetchone()

    assert on(postgres, work) == (499500,)


def test_a_cancelled_task_cancels_its_statement(postgres: Postgres) -> None:
    """A CancelledError reaches the server, and the connection can be used again."""

    async def work(connection: AsyncConnection[TupleRow]) -> object:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.execute("SELECT pg_sleep(60)"), 0.2)
        await connection.rollback()
        return await (await connection.execute("SELECT 1")).fetchone()

    assert on(postgres, work) == (1,)


def test_an_error_of_a_statement(postgres: Postgres) -> None:
    """The tuple of errors whose traceback is cut is made when one is raised."""
    with (
        psycopg.connect(postgres.superuser_dsn) as connection,
        pytest.raises(errors.DivisionByZero) as raised,
    ):
        connection.execute("SELECT 1/0")
    assert len(raised.traceback) == 2  # this test and psycopg's execute(), nothing below
    kept = errors._NO_TRACEBACK
    assert kept == (psycopg.Error, KeyboardInterrupt, asyncio.CancelledError)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(errors, "Nothing")  # noqa: B009 - the name is no attribute


def test_types_with_a_default_can_be_named() -> None:
    """Type checkers look at a variable's default, and nothing at run time does."""
    assert typing.get_args(psycopg.Connection[TupleRow]) == (TupleRow,)
    assert typing.get_args(psycopg.AsyncCursor[int]) == (int,)
