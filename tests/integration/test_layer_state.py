"""What a handler sets on its session or its connection is gone in the next invocation."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import Database
from psycopg.adapt import Loader
from psycopg.rows import TupleRow, dict_row

from tests.support.clocks import Clock
from tests.support.context import Context
from tests.support.layer import Admin, scalar

Connection = psycopg.Connection[TupleRow]
Action = Callable[[Connection], object]

STATES: Final = {
    "SET": ("SET statement_timeout = '7s'", "current_setting('statement_timeout') = '7s'"),
    "set_config": (
        "SELECT set_config('app.mark', 'x', false)",
        "coalesce(current_setting('app.mark', true), '') = 'x'",
    ),
    "temporary table": (
        "CREATE TEMP TABLE left_behind (n int)",
        "to_regclass('pg_temp.left_behind') IS NOT NULL",
    ),
    "LISTEN": ("LISTEN news", "EXISTS (SELECT FROM pg_listening_channels())"),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "PREPARE": ("PREPARE mine AS SELECT 1", "EXISTS (SELECT FROM pg_prepared_statements)"),
    "WITH HOLD": (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "EXISTS (SELECT FROM pg_cursors WHERE is_holdable)",
    ),
}
"""A statement that leaves state in its session, and what is true while it is there."""


def through_connection(db: Database[TupleRow], action: Action) -> None:
    """Act in the block of connection()."""
    with db.connection() as connection:
        action(connection)


def through_transaction(db: Database[TupleRow], action: Action) -> None:
    """Act in the block of transaction()."""
    with db.transaction() as connection:
        action(connection)


def through_run_transaction(db: Database[TupleRow], action: Action) -> None:
    """Act in a unit of work."""
    db.run_transaction(action)


def through_getconn(db: Database[TupleRow], action: Action) -> None:
    """Act between getconn() and putconn()."""
    connection = db.getconn()
    action(connection)
    db.putconn(connection)


LENDERS: Final = [
    through_connection,
    through_transaction,
    through_run_transaction,
    through_getconn,
]


def invoke(db: Database[TupleRow], action: Callable[[], object], request_id: str = "") -> object:
    """Call something as the handler of one invocation."""

    @db.bind_lambda_context
    def handler(event: object, context: Context) -> object:
        return action()

    return handler(None, Context(30, request_id))


def there(db: Database[TupleRow], condition: str) -> tuple[object, object]:
    """Tell whether a session has the state, and which backend's it is."""
    row = db.execute(f"SELECT {condition}, pg_backend_pid()").fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("lender", LENDERS)
def test_state_that_a_caller_sets_ends_with_the_invocation(
    db: Database[TupleRow], name: str, lender: Callable[[Database[TupleRow], Action], None]
) -> None:
    """It is there until the handler returns, and then gone from the same backend."""
    statement, condition = STATES[name]

    def set_and_look() -> tuple[object, object]:
        lender(db, lambda connection: connection.execute(statement))
        return there(db, condition)

    before = invoke(db, set_and_look)
    after = invoke(db, lambda: there(db, condition))
    assert isinstance(before, tuple)
    assert before[0] is True
    assert after == (False, before[1])


@pytest.mark.parametrize("claims", [None, {"sub": "a"}])
@pytest.mark.parametrize("name", STATES)
def test_state_that_execute_sets_ends_with_the_invocation(
    db: Database[TupleRow], name: str, claims: dict[str, str] | None
) -> None:
    """Its text tells, so a connection that nobody held is reset too."""
    statement, condition = STATES[name]

    def set_and_look() -> tuple[object, object]:
        db.execute(statement, claims=claims)
        return there(db, condition)

    before = invoke(db, set_and_look)
    after = invoke(db, lambda: there(db, condition))
    assert isinstance(before, tuple)
    assert before[0] is True
    assert after == (False, before[1])


def prepare(connection: Connection) -> None:
    """Let psycopg prepare one statement."""
    connection.prepare_threshold = 100
    connection.execute("SELECT 1", prepare=True)


def prepare_everything(connection: Connection) -> None:
    """Let psycopg prepare whatever it sends."""
    connection.prepare_threshold = 0
    connection.execute("SELECT 2")


def prepare_many(connection: Connection) -> None:
    """Let psycopg prepare what it sends several times."""
    connection.prepare_threshold = 0
    connection.cursor().executemany("SELECT %s::int", [(1,), (2,)])


@pytest.mark.parametrize("action", [prepare, prepare_everything, prepare_many])
@pytest.mark.parametrize("lender", LENDERS)
def test_statements_that_psycopg_prepared_are_gone_and_can_be_prepared_again(
    db: Database[TupleRow],
    action: Action,
    lender: Callable[[Database[TupleRow], Action], None],
) -> None:
    """The server and psycopg forget them together, or the second run would fail."""
    _, condition = STATES["PREPARE"]
    pid = invoke(db, lambda: scalar(db, "SELECT pg_backend_pid()"))
    for _ in range(2):
        invoke(db, lambda: lender(db, action))
        assert invoke(db, lambda: there(db, condition)) == (False, pid)


@pytest.mark.parametrize("lender", LENDERS)
def test_a_cursor_that_outlives_its_transaction_does_not_outlive_the_invocation(
    db: Database[TupleRow], lender: Callable[[Database[TupleRow], Action], None]
) -> None:
    """A named cursor WITH HOLD that was never closed keeps its rows until it is reset."""
    kept: list[psycopg.ServerCursor[TupleRow]] = []

    def declare(connection: Connection) -> None:
        cursor = connection.cursor("kept", withhold=True)
        kept.append(cursor)
        cursor.execute("SELECT generate_series(1, 10)")
        assert cursor.fetchone() == (1,)

    _, condition = STATES["WITH HOLD"]

    def declare_and_look() -> tuple[object, object]:
        lender(db, declare)
        return there(db, condition)

    before = invoke(db, declare_and_look)
    after = invoke(db, lambda: there(db, condition))
    assert isinstance(before, tuple)
    assert before[0] is True
    assert after == (False, before[1])
    db.close()
    kept[0].close()


def test_outside_of_invocations_each_checkout_is_a_new_one(db: Database[TupleRow]) -> None:
    """A script has no invocation that could own what it sets."""
    statement, condition = STATES["SET"]
    db.execute(statement)
    assert there(db, condition)[0] is False


def test_state_stays_through_a_long_pause_of_its_invocation(
    db: Database[TupleRow], clock: Clock
) -> None:
    """The round trip that an idle connection is asked for does not reset what is in use."""
    clock.govern(db)
    statement, condition = STATES["SET"]

    def set_wait_and_look() -> object:
        db.execute(statement)
        clock.shift += 60
        return there(db, condition)[0]

    assert invoke(db, set_wait_and_look) is True
    assert invoke(db, lambda: there(db, condition)[0]) is False


class Upper(Loader):
    """Reads texts in capitals."""

    def load(self, data: Any) -> str:
        """Read one."""
        return bytes(data).decode().upper()


def test_what_a_handler_sets_on_the_connection_is_gone(db: Database[TupleRow]) -> None:
    """Adapters, handlers, factories and the options of its transactions are as new."""
    notices: list[object] = []

    def set_all(connection: Connection) -> None:
        connection.adapters.register_loader("text", Upper)
        connection.add_notice_handler(notices.append)
        connection.add_notify_handler(notices.append)
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.read_only = True
        connection.deferrable = True
        connection.autocommit = False
        connection.row_factory = dict_row  # type: ignore[assignment]  # what a handler might do
        connection.server_cursor_factory = psycopg.ServerCursor

    def look(connection: Connection) -> None:
        assert connection.execute("SELECT 'a'::text").fetchone() == ("a",)
        with connection.transaction():
            row = connection.execute(
                "SELECT current_setting('transaction_isolation'),"
                " current_setting('transaction_read_only')"
            ).fetchone()
        assert row == ("read committed", "off")
        connection.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
        assert connection.autocommit

    through_connection(db, set_all)
    through_connection(db, look)
    assert scalar(db, "SELECT 'a'::text") == "a"
    assert not notices


def test_notifications_that_nobody_read_are_gone(db: Database[TupleRow]) -> None:
    """They belong to the invocation that listened."""

    def listen(connection: Connection) -> None:
        connection.execute("LISTEN news")
        connection.execute("NOTIFY news, 'old'")
        connection.execute("SELECT 1")

    def read(connection: Connection) -> list[str]:
        return [notify.payload for notify in connection.notifies(timeout=0.05)]

    def listen_and_read(connection: Connection) -> list[str]:
        listen(connection)
        return read(connection)

    with db.connection() as connection:
        assert listen_and_read(connection) == ["old"]
    through_connection(db, listen)
    with db.connection() as connection:
        assert read(connection) == []


# What is left open


def the_leak(caplog: pytest.LogCaptureFixture) -> str:
    """Return what was logged about the one leak of request-1."""
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.name == "lambda_pg"
    assert (record.__dict__["event"], record.__dict__["aws_request_id"]) == ("leak", "request-1")
    return record.getMessage()


@pytest.mark.parametrize("verb", ["connection", "transaction", "getconn"])
def test_a_connection_that_a_handler_keeps_is_closed_and_reported(
    db: Database[TupleRow], admin: Admin, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    """What was open on it is rolled back, and the next invocation finds a working pool."""
    kept: list[Connection] = []

    def keep() -> object:
        taken = getattr(db, verb)()
        connection = taken if verb == "getconn" else taken.__enter__()
        del taken  # it must not matter that nobody refers to the block any more
        kept.append(connection)
        connection.execute("SAVEPOINT mine" if verb == "transaction" else "BEGIN")
        connection.execute("INSERT INTO counter VALUES (1)")
        return connection.info.backend_pid

    pid = invoke(db, keep, "request-1")
    assert "checked out" in the_leak(caplog)
    assert db.stats()["leaks"] == 1
    with pytest.raises(psycopg.OperationalError, match="closed"):
        kept[0].execute("SELECT 1")
    assert invoke(db, lambda: scalar(db, "SELECT pg_backend_pid()")) != pid
    assert admin.execute("SELECT count(*) FROM counter").fetchone() == (0,)
    assert db.stats()["pool_size"] == 1
    if verb == "getconn":
        db.putconn(kept[0])  # late, by somebody who does not know
        assert db.stats()["pool_size"] == db.stats()["pool_available"] == 1


def test_a_connection_is_taken_back_from_a_handler_that_fails(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    """The handler's own error comes through."""

    def keep_and_fail() -> None:
        db.connection().__enter__()  # what a careless handler does
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        invoke(db, keep_and_fail, "request-1")
    the_leak(caplog)
    assert scalar(db, "SELECT 1") == 1


def test_a_transaction_left_open_is_rolled_back_and_reported(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    """The connection comes back in time, but what it did was never committed."""

    def leave_open(connection: Connection) -> None:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO counter VALUES (1)")

    invoke(db, lambda: through_connection(db, leave_open), "request-1")
    assert "transaction" in the_leak(caplog)
    assert db.stats()["leaks"] == 1
    assert scalar(db, "SELECT count(*) FROM counter") == 0


@pytest.mark.parametrize(
    "query", ["BEGIN", "START TRANSACTION", "INSERT INTO counter VALUES (1); BEGIN"]
)
def test_a_statement_that_leaves_a_transaction_open_is_an_error(
    db: Database[TupleRow], query: str
) -> None:
    """The next statement would not be in it: better not to pretend."""
    with pytest.raises(psycopg.ProgrammingError, match="rolled back"):
        db.execute(query)
    db.execute("INSERT INTO counter VALUES (2)")
    assert scalar(db, "SELECT count(*) FROM counter WHERE n = 2") == 1
    assert db.stats()["connections_num"] == 1


def test_a_write_in_a_transaction_that_was_left_open_is_not_lost_in_silence(
    db: Database[TupleRow],
) -> None:
    """Code that goes around the layer to a pooled connection gets an error."""
    cursor = db.execute("SELECT 1")
    cursor._conn.execute("BEGIN")
    with pytest.raises(psycopg.ProgrammingError, match="rolled back"):
        db.execute("INSERT INTO counter VALUES (1)")
    assert scalar(db, "SELECT count(*) FROM counter") == 0
    db.execute("INSERT INTO counter VALUES (2)")
    assert scalar(db, "SELECT n FROM counter") == 2


def test_a_cursor_left_open_is_closed_with_its_transaction(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    """A named cursor without a transaction of its own to end it."""
    kept: list[psycopg.ServerCursor[TupleRow]] = []

    def declare(connection: Connection) -> object:
        connection.autocommit = False
        cursor = connection.cursor("kept")
        kept.append(cursor)
        cursor.execute("SELECT generate_series(1, 10)")
        assert cursor.fetchone() == (1,)
        return connection.info.backend_pid

    invoke(db, lambda: through_connection(db, declare), "request-1")
    the_leak(caplog)
    count = "(SELECT count(*) FROM pg_cursors WHERE name = 'kept')"
    assert there(db, count)[0] == 0
    db.close()
    kept[0].close()


def test_a_stream_left_open_ends_its_connection_and_is_reported(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows are still on their way: nothing else could be sent on that connection."""
    kept: list[Iterator[TupleRow]] = []

    def stream(connection: Connection) -> None:
        rows = connection.cursor().stream("SELECT generate_series(1, 100000)")
        kept.append(rows)
        assert next(rows) == (1,)

    invoke(db, lambda: through_connection(db, stream), "request-1")
    assert "stream" in the_leak(caplog)
    assert invoke(db, lambda: scalar(db, "SELECT 1")) == 1
    assert db.stats()["pool_size"] == 1
    kept.clear()


def test_what_is_left_in_order_is_not_reported(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that ends what it begins hears nothing."""

    def in_order() -> None:
        with db.connection() as connection, connection.transaction():
            connection.execute("INSERT INTO counter VALUES (1)")
        with db.transaction() as connection:
            connection.execute("INSERT INTO counter VALUES (1)")

    invoke(db, in_order)
    assert not caplog.records
    assert db.stats()["leaks"] == 0
