"""Type adapters: what `configure` registers lasts, what a caller registers elsewhere does not."""

import enum
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    ConnectFailedError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    StatementRefusedError,
)
from psycopg.rows import TupleRow
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import set_json_loads

from tests.support.layer import (
    APPLICATION,
    Admin,
    Open,
    kill_backends,
    scalar,
    settings_for,
    slot_taken,
)
from tests.support.servers import PoolerFixture

Connection = psycopg.Connection[Any]


class Mood(enum.Enum):
    """A type of the database, as Python has it."""

    sad = "sad"
    glad = "glad"


@pytest.fixture
def mood(admin: Admin) -> Iterator[None]:
    """A type that the layer's user may use."""
    admin.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    yield
    admin.execute("DROP TYPE mood")


def register_mood(connection: Connection) -> None:
    """Ask the server for the type and register it, as psycopg's documentation has it."""
    info = EnumInfo.fetch(connection, "mood")
    assert info is not None
    register_enum(info, connection, Mood)


def list_moods(connection: Connection) -> object:
    """Read an array of the type."""
    row = connection.execute("SELECT ARRAY['sad'::mood]").fetchone()
    return row and row[0]


class Counted:
    """A `configure` that counts its calls."""

    def __init__(self, configure: Callable[[Connection], object] = register_mood) -> None:
        """Take what it does."""
        self.calls = 0
        self._configure = configure

    def __call__(self, connection: Connection) -> None:
        """Do it."""
        self.calls += 1
        self._configure(connection)


def test_every_verb_has_what_configure_registered_once(mood: None, open_database: Open) -> None:
    """One call for a connection, whatever verb uses it, and however often it was returned."""
    configure = Counted()
    db = open_database(configure=configure)
    for _ in range(2):
        assert scalar(db, "SELECT 'glad'::mood") is Mood.glad
        with db.connection() as connection:
            assert connection.execute("SELECT 'sad'::mood").fetchone() == (Mood.sad,)
        with db.transaction() as connection:
            assert connection.execute("SELECT %s::mood", [Mood.sad]).fetchone() == (Mood.sad,)
        assert db.run_transaction(list_moods) == [Mood.sad]
        assert db.execute("SELECT 'sad'::mood", claims={"sub": "a"}).fetchone() == (Mood.sad,)
    assert configure.calls == 1


def test_each_new_connection_is_configured(mood: None, admin: Admin, open_database: Open) -> None:
    """The second slot's, and the one that replaces a lost connection."""
    configure = Counted()
    db = open_database(configure=configure, slots=2)
    with slot_taken(db):
        assert scalar(db, "SELECT 'glad'::mood") is Mood.glad
    assert configure.calls == 2
    assert kill_backends(admin) == 2
    assert scalar(db, "SELECT 'glad'::mood") is Mood.glad
    assert configure.calls == 3


def test_configure_works_through_a_pooler(
    new_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """Its reads are statements like any other."""
    new_pooler.start()

    def configure(connection: Connection) -> None:
        assert connection.execute("SELECT 7").fetchone() == (7,)
        set_json_loads(lambda text: ["read", json.loads(text)], connection)

    db = Database(settings_for(new_pooler), configure=configure)
    assert scalar(db, "SELECT '{}'::jsonb") == ["read", {}]
    db.close()


def test_an_adapter_of_a_block_ends_with_it(mood: None, open_database: Open) -> None:
    """It hides what configure registered inside the block, and only there."""
    db = open_database(configure=register_mood)
    with db.connection() as connection:
        connection.adapters.register_loader("mood", psycopg.adapters.get_loader(25, 0))  # type: ignore[arg-type]
        assert connection.execute("SELECT 'sad'::mood").fetchone() == ("sad",)
    assert scalar(db, "SELECT 'sad'::mood") is Mood.sad
    with db.connection() as connection:
        assert connection.execute("SELECT 'sad'::mood").fetchone() == (Mood.sad,)


def test_a_global_adapter_reaches_no_open_connection_and_each_new_one(
    mood: None, admin: Admin, open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two warm slots answer alike, whichever verb has used them before."""
    monkeypatch.setattr(psycopg, "adapters", psycopg.adapt.AdaptersMap(psycopg.adapters))
    db = open_database(slots=2)
    query = "SELECT 'sad'::mood"

    def ask_both() -> list[object]:
        with db.connection() as connection:
            row = connection.execute(query).fetchone()
            return [row and row[0], scalar(db, query)]

    assert ask_both() == ["sad", "sad"]
    info = EnumInfo.fetch(admin, "mood")
    assert info is not None
    register_enum(info, psycopg.adapters, Mood)
    assert ask_both() == ["sad", "sad"]
    assert kill_backends(admin) == 2
    assert ask_both() == [Mood.sad, Mood.sad]


def test_the_checkout_timeout_bounds_configure(open_database: Open) -> None:
    """The connection is closed, its slot is free, and the error does not blame a statement."""
    slow = Counted(lambda connection: connection.execute("SELECT pg_sleep(60)"))
    db = open_database(configure=slow, checkout_timeout=1.0)
    began = time.monotonic()
    with pytest.raises(CheckoutTimeoutError, match="configure was still running"):
        db.execute("SELECT 1")
    assert time.monotonic() - began < 30
    assert db.stats()["pool_size"] == 0
    assert (db.stats()["connections_num"], db.stats()["connections_errors"]) == (1, 1)


def test_the_deadline_bounds_configure(open_database: Open) -> None:
    """The caller's statement was not sent, and the error says so."""
    db = open_database(configure=lambda connection: connection.execute("SELECT pg_sleep(60)"))
    with pytest.raises(DeadlineExceededError) as raised, db.deadline(1.0):
        db.execute("UPDATE counter SET n = n + 1")
    assert not raised.value.may_have_run


def test_a_connection_lost_in_configure_is_replaced(
    admin: Admin, open_database: Open, mood: None
) -> None:
    """Nothing of the caller's has run: the checkout goes on with another connection."""
    lost = iter([True])

    def configure(connection: Connection) -> None:
        if next(lost, False):
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        register_mood(connection)

    db = open_database(configure=configure)
    assert scalar(db, "SELECT 'sad'::mood") is Mood.sad
    assert db.stats()["retries"] == 1


def test_a_lost_connection_that_configure_hides_is_replaced(open_database: Open) -> None:
    """A handler never gets it."""
    lost = iter([True])

    def configure(connection: Connection) -> None:
        if next(lost, False):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert scalar(open_database(configure=configure), "SELECT 1") == 1


def missing_table(connection: Connection) -> None:
    """Read what is not there."""
    connection.execute("SELECT * FROM nowhere")


def own_fault(_: Connection) -> None:
    """Fail without the database."""
    raise KeyError("mood")


def cancelled(connection: Connection) -> None:
    """Let the server end a statement, which is an OperationalError of psycopg's."""
    connection.execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)")


def left_open(connection: Connection) -> None:
    """Begin and go."""
    connection.execute("BEGIN")


def sets(connection: Connection) -> None:
    """Set what a pool would not keep."""
    connection.execute("SET timezone = 'UTC'")


@pytest.mark.parametrize(
    ("configure", "error", "text"),
    [
        (missing_table, psycopg.errors.UndefinedTable, "nowhere"),
        (own_fault, KeyError, "mood"),
        (cancelled, ConnectFailedError, "configure failed on a new connection: canceling"),
        (left_open, psycopg.ProgrammingError, "left a transaction open"),
        (sets, psycopg.ProgrammingError, "session state: only type adapters are kept"),
    ],
)
def test_a_failing_configure_says_so_and_costs_no_slot(
    open_database: Open,
    admin: Admin,
    configure: Callable[[Connection], object],
    error: type[Exception],
    text: str,
) -> None:
    """Each request tries again, no connection stays open, and a mended configure serves."""
    mended = False

    def act(connection: Connection) -> None:
        if not mended:
            configure(connection)

    db = open_database(configure=act)
    for _ in range(2):
        with pytest.raises(error, match=text):
            db.execute("SELECT 1")
    assert db.stats()["pool_size"] == 0
    mended = True
    assert scalar(db, "SELECT 1") == 1
    open_ones = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'active'",
        [APPLICATION],
    )
    assert open_ones.fetchone() == (1,)


def test_configure_may_not_set_anything_through_a_pooler(
    new_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """It would reach other clients: refused as in strict mode, which is off otherwise."""
    new_pooler.start()
    db = Database(settings_for(new_pooler), configure=sets)
    with pytest.raises(StatementRefusedError):
        db.execute("SELECT 1")
    db.close()


def test_a_server_that_is_away_in_configure_ends_with_the_window(
    open_database: Open,
) -> None:
    """An error that may pass is retried until the checkout timeout, then told as unavailable."""

    def configure(connection: Connection) -> None:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    db: Database[TupleRow] = open_database(configure=configure, checkout_timeout=1.0)
    with pytest.raises(DatabaseUnavailableError):
        db.execute("SELECT 1")
    assert db.stats()["retries"] > 0
