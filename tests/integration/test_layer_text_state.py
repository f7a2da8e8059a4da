"""run_text() leaves nothing in a session, after a success and after an error.

Each test has a control, which runs without the reset and must find the state.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Final

import psycopg
import pytest
from lambda_pg import Database, Settings, _flight
from lambda_pg._pipeline import Command
from lambda_pg.text import Limits, Statement
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import settings_for
from tests.support.servers import DATABASE, PoolerFixture, SecretsService, pooler_in_tmp

LIMITS: Final = Limits(rows=1000, bytes=1_000_000)

STATES: Final = {
    "SET": (["SET lock_timeout = 7777"], "current_setting('lock_timeout') = '7777ms'"),
    "a setting of one's own": (
        ["SELECT set_config('app.mark', 'x', false)"],
        "coalesce(current_setting('app.mark', true), '') = 'x'",
    ),
    "a covered SET": (
        ["SET lock_timeout = 7777", "SET LOCAL lock_timeout TO DEFAULT"],
        "current_setting('lock_timeout') = '7777ms'",
    ),
    "a SET for transactions": (
        ["SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        "current_setting('default_transaction_isolation') = 'serializable'",
    ),
    "SET ROLE": (["SET ROLE text_other"], "current_user = 'text_other'"),
    "a covered SET ROLE": (
        ["SET ROLE text_other", "SET LOCAL ROLE NONE"],
        "current_user = 'text_other'",
    ),
    "SET ROLE NONE": (["SET ROLE NONE"], "current_user <> 'text_own'"),
    "a temporary table": (
        ["CREATE TEMP TABLE left_behind (n int)"],
        "to_regclass('pg_temp.left_behind') IS NOT NULL",
    ),
    "LISTEN": (["LISTEN news"], "EXISTS (SELECT FROM pg_listening_channels())"),
    "a cursor WITH HOLD": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT 1"],
        "EXISTS (SELECT FROM pg_cursors WHERE is_holdable)",
    ),
    "a lock by a cursor WITH HOLD": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT pg_advisory_lock(7)"],
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "an advisory lock": (
        ["SELECT pg_advisory_lock(7)"],
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "an advisory lock of COMMIT": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT pg_advisory_lock(7)"],
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    ),
    "PREPARE": (["PREPARE mine AS SELECT 1"], "EXISTS (SELECT FROM pg_prepared_statements)"),
    "a sequence's value": (
        ["SELECT nextval('text_numbers')"],
        "text_has_lastval()",
    ),
    "a sequence's value of COMMIT": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT nextval('text_numbers')"],
        "text_has_lastval()",
    ),
}
"""Statements that leave state in their session, and what is true while it is there."""

KEPT: Final = ["an advisory lock", "PREPARE", "a sequence's value"]
"""What a rollback does not undo."""

SCHEMA: Final = """
CREATE SEQUENCE text_numbers;
GRANT ALL ON SEQUENCE text_numbers TO PUBLIC;
CREATE TABLE text_late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
GRANT ALL ON text_late TO PUBLIC;
INSERT INTO text_late VALUES (1);
CREATE FUNCTION text_has_lastval() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM lastval(); RETURN true;
EXCEPTION WHEN object_not_in_prerequisite_state THEN RETURN false; END $$;
CREATE ROLE text_other;
CREATE ROLE text_own;
GRANT text_other, text_own TO {login};
ALTER ROLE {login} SET role = text_own
"""
DROPPED: Final = """
DROP FUNCTION text_has_lastval; DROP TABLE text_late; DROP SEQUENCE text_numbers;
DROP ROLE text_other; DROP ROLE text_own; ALTER ROLE {login} RESET role
"""


@pytest.fixture(scope="module")
def module_pooler(
    postgres: Postgres, secrets_service: SecretsService, pgbouncer_binary: PgBouncerBinary
) -> Iterator[PoolerFixture]:
    """A pooler with one server connection: the next client gets what the last one left."""
    with pooler_in_tmp(pgbouncer_binary, postgres, secrets_service) as pooler:
        yield pooler.start(MAX_DB_CONNECTIONS="1", DEFAULT_POOL_SIZE="1")


@pytest.fixture(scope="module", autouse=True)
def schema(module_pooler: PoolerFixture) -> Iterator[None]:
    """What the statements need. A setting of the login's role names another role."""
    dsn = make_conninfo(module_pooler.postgres.superuser_dsn, dbname=DATABASE)
    login = module_pooler.login.name
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(SCHEMA.format(login=login).encode())
    yield
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(DROPPED.format(login=login).encode())


def direct(pooler: PoolerFixture) -> Settings:
    """Say where the server itself is."""
    return replace(
        settings_for(pooler),
        port=pooler.postgres.port,
        profile="direct",
        ca_pem=None,
        sslrootcert=pooler.postgres.ca_file,
    )


@pytest.fixture(params=[direct, settings_for])
def settings(
    request: pytest.FixtureRequest, kept_pooler: PoolerFixture, secrets_environment: None
) -> Settings:
    """Past the pooler, and through it."""
    found: Settings = request.param(kept_pooler)
    return found


@pytest.fixture
def db(settings: Settings) -> Iterator[Database[TupleRow]]:
    """The Database that runs the statements of one client."""
    with closing(Database(settings)) as database:
        yield database


def run(db: Database[TupleRow], *statements: str) -> object:
    """Run the statements; return the process that has answered the first of them."""
    asked = ["SELECT pg_backend_pid()", *statements]
    return db.run_text([Statement(each) for each in asked], limits=LIMITS)[0].rows[0][0]


def fail(db: Database[TupleRow], last: str, *statements: str) -> None:
    """Run the statements with one at the end that fails, or whose COMMIT does."""
    with pytest.raises((psycopg.errors.DivisionByZero, psycopg.errors.UniqueViolation)):
        run(db, *statements, last)


def there(settings: Settings, db: Database[TupleRow], condition: str) -> tuple[object, object]:
    """Tell whether the next client has the state, and its process.

    Behind the pooler it is another client; past it, it has the same connection.
    """
    if settings.profile == "direct":
        row = db.execute(f"SELECT {condition}, pg_backend_pid()::text").fetchone()
    else:
        with closing(Database(settings)) as other:
            row = other.execute(f"SELECT {condition}, pg_backend_pid()::text").fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.fixture
def without_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what ends the state."""
    monkeypatch.setattr(_flight, "RESET", ())
    monkeypatch.setattr(_flight, "KEPT_BY_ROLLBACK", ())
    monkeypatch.setattr(_flight, "UNLOCK", "NULL")
    monkeypatch.setattr(_flight, "DISCARD", ())


LAST_ERROR: Final = ["SELECT 1/0", "INSERT INTO text_late VALUES (1)"]
"""An error of a statement, and one of COMMIT."""


@pytest.mark.parametrize("name", STATES)
def test_no_state_stays_after_success(
    settings: Settings, db: Database[TupleRow], name: str
) -> None:
    """Neither for another client behind the pooler nor for the next use of a connection."""
    statements, condition = STATES[name]
    process = run(db, *statements)
    assert there(settings, db, condition) == (False, process)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("last", LAST_ERROR)
def test_no_state_stays_after_an_error(
    settings: Settings, db: Database[TupleRow], name: str, last: str
) -> None:
    """Also what a rollback does not undo."""
    statements, condition = STATES[name]
    process = run(db)
    fail(db, last, *statements)
    assert there(settings, db, condition) == (False, process)


@pytest.mark.parametrize("name", STATES)
def test_without_the_reset_state_stays(
    settings: Settings, db: Database[TupleRow], name: str, without_reset: None
) -> None:
    """The control of the test after success."""
    statements, condition = STATES[name]
    process = run(db, *statements)
    assert there(settings, db, condition) == (True, process)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("last", LAST_ERROR)
def test_without_the_reset_some_state_stays_after_an_error(
    settings: Settings, db: Database[TupleRow], name: str, last: str, without_reset: None
) -> None:
    """The control of the test after an error: a plain ROLLBACK is not enough."""
    statements, condition = STATES[name]
    process = run(db)
    fail(db, last, *statements)
    assert there(settings, db, condition) == (True, process)


@pytest.mark.parametrize(
    "name", ["a cursor WITH HOLD", "an advisory lock of COMMIT", "a sequence's value of COMMIT"]
)
def test_commit_does_not_run_the_queries_of_cursors(
    settings: Settings, db: Database[TupleRow], name: str
) -> None:
    """COMMIT would keep the first cursor's rows and locks, and then fail with the second one."""
    statements, condition = STATES[name]
    process = run(db)
    with suppress(psycopg.errors.DivisionByZero):
        run(db, *statements, "DECLARE bad CURSOR WITH HOLD FOR SELECT 1/(n - 1) FROM text_late")
    assert there(settings, db, condition) == (False, process)


@pytest.mark.parametrize("end", ["COMMIT", "COMMIT AND CHAIN"])
def test_an_end_that_the_text_did_not_show_is_the_error(
    db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The error that follows from it would say that nothing was committed."""
    monkeypatch.setattr(_flight, "ends_transaction", lambda _: False)
    _flight._known.cache_clear()
    with pytest.raises(psycopg.errors.InvalidTransactionTermination, match="may be committed"):
        run(db, end)
    _flight._known.cache_clear()


def test_a_reset_before_commit_would_not_be_enough(
    kept_pooler: PoolerFixture, secrets_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RESET ALL passes over a value that SET LOCAL … TO DEFAULT covers until COMMIT."""
    monkeypatch.setattr(_flight, "KEPT_BY_ROLLBACK", (*_flight.KEPT_BY_ROLLBACK, *_flight.RESET))
    monkeypatch.setattr(_flight, "RESET", ())
    settings = settings_for(kept_pooler)
    with closing(Database(settings)) as db:
        run(db, *STATES["SET"][0])
        assert there(settings, db, STATES["SET"][1])[0] is False
        run(db, *STATES["a covered SET"][0])
        assert there(settings, db, STATES["a covered SET"][1])[0] is True


@pytest.mark.parametrize("last", ["SELECT 1", "SELECT 1/0"])
def test_where_the_reset_fails_the_server_connection_ends(
    settings: Settings, db: Database[TupleRow], monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """A caller may make it fail, by a cancel from another request; no client gets the state."""
    broken = Command(b"SELECT 1/0")
    monkeypatch.setattr(_flight, "RESET", (broken, *_flight.RESET))
    monkeypatch.setattr(_flight, "DISCARD", (broken,))
    statements, condition = STATES["an advisory lock"]
    process = run(db)
    with suppress(psycopg.errors.DivisionByZero):
        assert run(db, *statements, "SET lock_timeout = 7777", last)
    has_state, other = there(settings, db, condition)
    assert has_state is False
    assert other != process
    assert there(settings, db, STATES["SET"][1])[0] is False


def test_prepared_statements_of_other_clients_of_the_pooler_work(
    kept_pooler: PoolerFixture, secrets_environment: None
) -> None:
    """PgBouncer keeps a list of what is prepared on a server connection, and the reset is known."""
    attack = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"
    with (
        closing(Database(settings_for(kept_pooler))) as db,
        kept_pooler.connect() as client,
    ):
        client.prepare_threshold = 0
        for _ in range(2):
            for statements in (["SELECT 1"], [attack], ["PREPARE mine AS SELECT 1"]):
                process = client.execute("SELECT pg_backend_pid()::text").fetchone()
                assert process == (run(db, *statements),)
                assert client.execute("SELECT pg_backend_pid()::text").fetchone() == process
            process = client.execute("SELECT pg_backend_pid()::text").fetchone()
            fail(db, "SELECT 1/0", attack)
            assert client.execute("SELECT pg_backend_pid()::text").fetchone() == process


def test_the_name_and_the_encoding_of_the_client_stay(
    settings: Settings, db: Database[TupleRow]
) -> None:
    """RESET ALL would give the client those of the pooler's login."""
    query = "SELECT current_setting('application_name'), current_setting('client_encoding')"
    before = db.execute(query).fetchone()
    run(db, "SET client_encoding = 'LATIN1'", "SET application_name = 'mine'")
    assert db.execute(query).fetchone() == before == (settings.application_name, "UTF8")
    fail(db, "SELECT 1/0", "SELECT 1")
    assert db.execute(query).fetchone() == before


def test_a_deferrable_transaction_is_reset_too(settings: Settings, db: Database[TupleRow]) -> None:
    """The reset begins with another isolation level, which only its first statement can choose."""
    for last in ("SELECT 1", "SELECT 1/0"):
        with suppress(psycopg.errors.DivisionByZero):
            db.run_text(
                [Statement("SET lock_timeout = 7777"), Statement(last)],
                limits=LIMITS,
                isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
                read_only=True,
                deferrable=True,
            )
        assert there(settings, db, STATES["SET"][1])[0] is False
    assert db.stats()["connections_num"] == 1
