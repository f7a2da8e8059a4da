"""What the verbs for transactions take and give: modes, claims, results, and psycopg.Rollback."""

import asyncio
import types
from collections import UserDict
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import psycopg
import pytest
from aws_lambda_powertools.utilities.data_classes import (
    APIGatewayProxyEvent,
    APIGatewayProxyEventV2,
)
from lambda_pg import Database
from psycopg import IsolationLevel
from psycopg.rows import TupleRow

from tests.support.layer import Admin, Open, scalar

Connection = psycopg.Connection[TupleRow]
Verb = Callable[..., object]

INSERT: Final = "INSERT INTO counter VALUES (1)"
SHOW: Final = (
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
    " current_setting('transaction_deferrable')"
)


def in_block(db: Database[TupleRow], work: Callable[[Connection], Any], **options: Any) -> Any:
    """Work in the block of transaction()."""
    with db.transaction(**options) as connection:
        return work(connection)


def as_unit(db: Database[TupleRow], work: Callable[[Connection], Any], **options: Any) -> Any:
    """Work in a unit of work."""
    return db.run_transaction(work, **options)


VERBS: Final = pytest.mark.parametrize("verb", [in_block, as_unit])
CLAIMS: Final = pytest.mark.parametrize("claims", [None, {"sub": "a"}])


def shown(connection: Connection) -> object:
    """Return the modes of the transaction."""
    return connection.execute(SHOW).fetchone()


# Modes


@VERBS
@CLAIMS
@pytest.mark.parametrize(
    ("level", "read_only", "deferrable"),
    [
        (None, None, None),
        *((level, None, None) for level in IsolationLevel),
        (None, True, None),
        (None, False, False),
        (None, None, True),
        (IsolationLevel.SERIALIZABLE, True, True),
        (IsolationLevel.REPEATABLE_READ, False, False),
    ],
)
def test_a_transaction_has_the_modes_that_were_asked_for(
    db: Database[TupleRow],
    verb: Verb,
    claims: dict[str, str] | None,
    level: IsolationLevel | None,
    read_only: bool | None,
    deferrable: bool | None,
) -> None:
    """From its first statement on, which the claims come before; None is the server's default."""
    expected = (
        (level or IsolationLevel.READ_COMMITTED).name.lower().replace("_", " "),
        "on" if read_only else "off",
        "on" if deferrable else "off",
    )
    modes = {"isolation_level": level, "read_only": read_only, "deferrable": deferrable}
    assert verb(db, shown, claims=claims, **modes) == expected
    assert verb(db, shown, claims=claims) == ("read committed", "off", "off")
    with db.connection() as connection, connection.transaction():
        assert shown(connection) == ("read committed", "off", "off")


@VERBS
def test_none_leaves_a_mode_to_the_server(db: Database[TupleRow], admin: Admin, verb: Verb) -> None:
    """And False does not."""
    admin.execute("ALTER ROLE layer_test SET default_transaction_read_only = on")
    admin.execute("ALTER ROLE layer_test SET default_transaction_isolation = 'serializable'")
    assert verb(db, shown) == ("serializable", "on", "off")
    assert verb(db, shown, read_only=False) == ("serializable", "off", "off")
    level = IsolationLevel.REPEATABLE_READ
    assert verb(db, shown, isolation_level=level) == ("repeatable read", "on", "off")


@VERBS
@pytest.mark.parametrize("first", ["executemany", "copy", "pipeline", "stream", "savepoint"])
def test_modes_hold_whatever_comes_first(db: Database[TupleRow], verb: Verb, first: str) -> None:
    """Not only where BEGIN shares its round trip with a statement."""

    def work(connection: Connection) -> object:
        cursor = connection.cursor()
        if first == "executemany":
            cursor.executemany("SELECT %s", [[1], [2]])
        elif first == "copy":
            with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                list(copy)
        elif first == "pipeline":
            with connection.pipeline():
                connection.execute("SELECT 1")
        elif first == "stream":
            list(cursor.stream("SELECT 1"))
        else:
            with connection.transaction():
                connection.execute("SELECT 1")
        return shown(connection)

    modes = {"isolation_level": IsolationLevel.REPEATABLE_READ, "read_only": True}
    assert verb(db, work, claims={"sub": "a"}, **modes) == ("repeatable read", "on", "off")


@VERBS
def test_a_read_only_transaction_writes_nothing(db: Database[TupleRow], verb: Verb) -> None:
    """The server's error says so."""
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        verb(db, lambda connection: connection.execute(INSERT), read_only=True)
    verb(db, lambda connection: connection.execute(INSERT))
    assert scalar(db, "SELECT count(*) FROM counter") == 1


def test_a_unit_of_work_that_is_rerun_has_its_modes_again(db: Database[TupleRow]) -> None:
    """Each run begins with them."""
    seen: list[object] = []

    def work(connection: Connection) -> None:
        seen.append(shown(connection))
        if len(seen) == 1:
            connection.execute("DO $$ BEGIN RAISE 'again' USING ERRCODE = '40001'; END $$")

    db.run_transaction(work, isolation_level=IsolationLevel.SERIALIZABLE)
    assert seen == [("serializable", "off", "off")] * 2


@VERBS
def test_a_level_that_does_not_exist_is_refused(db: Database[TupleRow], verb: Verb) -> None:
    """Before anything is checked out."""
    with pytest.raises(ValueError, match="not a valid IsolationLevel"):
        verb(db, shown, isolation_level="serialisable")
    assert db.stats()["requests_num"] == 0


# Results


async def coroutine(connection: Connection) -> None:
    """Insert where nobody waits for it."""
    connection.execute(INSERT)


def late(connection: Connection) -> Generator[int, None, None]:
    """Insert when somebody asks for the first item."""
    connection.execute(INSERT)
    yield 1


async def late_async(connection: Connection) -> AsyncIterator[int]:
    """Insert when somebody awaits the first item."""
    connection.execute(INSERT)
    yield 1


def inserted_before(connection: Connection) -> object:
    """Insert, and leave the rest to a coroutine."""
    connection.execute(INSERT)
    return coroutine(connection)


def stream(connection: Connection) -> object:
    """Insert, and leave the reading to the caller."""
    connection.execute(INSERT)
    return connection.cursor().stream("SELECT 1")


def expression(connection: Connection) -> object:
    """Insert, and leave the second insert to the caller."""
    connection.execute(INSERT)
    return (connection.execute(INSERT) for _ in range(2))


class Promise:
    """Something to await that is none of Python's own."""

    def __await__(self) -> Iterator[None]:
        """Never come to an end."""
        yield


def promise(connection: Connection) -> Promise:
    """Insert, and return something to await."""
    connection.execute(INSERT)
    return Promise()


def future(connection: Connection) -> object:
    """Insert, and return a future."""
    connection.execute(INSERT)
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


@CLAIMS
@pytest.mark.parametrize(
    "work",
    [coroutine, late, late_async, inserted_before, stream, expression, promise, future],
)
def test_work_that_is_not_done_is_refused(
    db: Database[TupleRow], work: Callable[[Connection], object], claims: dict[str, str] | None
) -> None:
    """Nothing stays committed, nothing warns, and the connection is in order."""
    with pytest.raises(TypeError, match="Do the work in a plain function"):
        db.run_transaction(work, claims=claims)
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    stats = db.stats()
    assert (stats["connections_num"], stats["leaks"]) == (1, 0)


@pytest.mark.parametrize("result", [None, 1, "a", [1], {}, iter([1]), range(3), object()])
def test_any_other_result_is_returned(db: Database[TupleRow], result: object) -> None:
    """As it is."""

    def work(connection: Connection) -> object:
        connection.execute(INSERT)
        return result

    assert db.run_transaction(work) is result
    assert scalar(db, "SELECT count(*) FROM counter") == 1


def test_a_cursor_is_a_result(db: Database[TupleRow]) -> None:
    """Its rows are here already."""
    cursor = db.run_transaction(lambda c: c.execute("SELECT generate_series(1, 2)"))
    assert cursor.fetchall() == [(1,), (2,)]


# psycopg.Rollback


def roll_back(connection: Connection) -> None:
    """Insert, and think better of it."""
    connection.execute(INSERT)
    raise psycopg.Rollback


@VERBS
@CLAIMS
def test_rollback_ends_at_the_verb(
    db: Database[TupleRow], verb: Verb, claims: dict[str, str] | None
) -> None:
    """Everything is undone, and nothing is raised, as psycopg's own block does."""
    assert verb(db, roll_back, claims=claims) is None
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    stats = db.stats()
    assert (stats["connections_num"], stats["leaks"]) == (1, 0)


@VERBS
def test_rollback_ends_at_the_innermost_block(db: Database[TupleRow], verb: Verb) -> None:
    """With psycopg's block inside, the outer one commits."""

    def work(connection: Connection) -> None:
        connection.execute(INSERT)
        with connection.transaction():
            roll_back(connection)

    verb(db, work)
    assert scalar(db, "SELECT count(*) FROM counter") == 1


@VERBS
def test_rollback_that_names_another_block_goes_on(db: Database[TupleRow], verb: Verb) -> None:
    """It is not for this one."""

    def work(connection: Connection) -> None:
        with connection.transaction() as inner:
            connection.execute(INSERT)
        raise psycopg.Rollback(inner)

    with pytest.raises(psycopg.Rollback):
        verb(db, work)
    assert scalar(db, "SELECT count(*) FROM counter") == 0


def test_rollback_passes_where_there_is_no_transaction(db: Database[TupleRow]) -> None:
    """As it passes psycopg's connection."""
    with pytest.raises(psycopg.Rollback), db.connection() as connection:
        roll_back(connection)
    assert scalar(db, "SELECT count(*) FROM counter") == 1


@VERBS
def test_rollback_of_a_lost_transaction_is_done(
    db: Database[TupleRow], admin: Admin, verb: Verb
) -> None:
    """Nothing of it can have stayed."""

    def work(connection: Connection) -> None:
        connection.execute(INSERT)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with suppress(psycopg.OperationalError):
            connection.execute("SELECT 1")
        raise psycopg.Rollback

    assert verb(db, work) is None
    assert scalar(db, "SELECT count(*) FROM counter") == 0


# Claims

TOKEN: Final = {"sub": "a", "groups": ["b"], "nested": {"c": [1, None]}}

V1: Final = APIGatewayProxyEvent(
    {"requestContext": {"authorizer": {"claims": TOKEN, "scopes": ["x"]}}}
).request_context.authorizer
V2: Final = APIGatewayProxyEventV2(
    {"requestContext": {"authorizer": {"jwt": {"claims": TOKEN, "scopes": ["x"]}}}}
).request_context.authorizer

MAPPINGS: Final[dict[str, tuple[Mapping[str, Any] | None, object]]] = {
    "dict": (TOKEN, TOKEN),
    "MappingProxyType": (types.MappingProxyType(TOKEN), TOKEN),
    "nested": ({"a": types.MappingProxyType({"b": UserDict(TOKEN)})}, {"a": {"b": TOKEN}}),
    "in a list": ({"a": [types.MappingProxyType(TOKEN)]}, {"a": [TOKEN]}),
    "UserDict": (UserDict(TOKEN), TOKEN),
    "Powertools": (V1, {"claims": TOKEN, "scopes": ["x"]}),
    "Powertools' claims": (V1.claims, TOKEN),
    "Powertools for HTTP APIs": (V2, {"jwt": {"claims": TOKEN, "scopes": ["x"]}}),
    "Powertools' claims for HTTP APIs": (V2.jwt_claim if V2 else None, TOKEN),
    "empty": (types.MappingProxyType({}), {}),
}
"""Claims, and what a policy reads."""

READ: Final = "SELECT current_setting('request.jwt.claims')::jsonb"


def by_execute(db: Database[TupleRow], _: object, *, claims: Any) -> Any:
    """Read with one statement."""
    return db.execute(READ, claims=claims).fetchone()


@pytest.mark.parametrize("verb", [by_execute, in_block, as_unit])
@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_can_be_claims(db: Database[TupleRow], verb: Verb, name: str) -> None:
    """At the top and inside."""
    claims, expected = MAPPINGS[name]

    def work(connection: Connection) -> object:
        return connection.execute(READ).fetchone()

    assert verb(db, work, claims=claims) == (expected,)


@pytest.mark.parametrize("verb", [by_execute, in_block, as_unit])
def test_claims_that_json_cannot_hold_are_refused(open_database: Open, verb: Verb) -> None:
    """By their type, not by their value, and before anything is checked out."""
    db = open_database()
    with pytest.raises(TypeError, match="type set, which JSON cannot encode"):
        verb(db, shown, claims={"sub": {"secret"}})
    assert db.stats()["requests_num"] == 0
