"""A value that a client sends shows in no log: of the database, the pooler, or the layer."""

import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from lambda_pg import Database
from psycopg import errors, sql
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin, settings_for
from tests.support.servers import PoolerFixture

INSERT = "INSERT INTO {} (email, n) VALUES (%s, %s)"
SLOW = {"log_min_duration_statement": "0"}
"""Has the server log every statement as it logs a slow one."""

DETAILS = {"log_error_verbosity": "default"}
SHOWN = {
    "parameters of slow statements": ({"log_parameter_max_length": "-1"}, r"Parameters: \$1 = '{}"),
    "parameters of failing ones": (
        {"log_parameter_max_length_on_error": "-1"},
        r"CONTEXT:  unnamed portal with parameters: .*'{}",
    ),
    "keys": ({}, r"DETAIL:  Key \(email\)=\({}\) already exists"),
    "rows": ({}, r"DETAIL:  Failing row contains \({}"),
    "lines of COPY": ({}, r"CONTEXT:  COPY values_\w+, line \d+"),
}
"""What the server logs where it is set so, besides DETAILS."""


@pytest.fixture
def canary() -> str:
    """A value that nobody else sends."""
    return f"canary-{secrets.token_hex(8)}"


@pytest.fixture
def table(admin: Admin) -> Iterator[str]:
    """A table whose rows are unique and not too long; anybody may write it."""
    name = f"values_{secrets.token_hex(4)}"
    admin.execute(f"CREATE TABLE {name} (email text UNIQUE CHECK (length(email) < 100), n int)")
    admin.execute(f"GRANT ALL ON {name} TO PUBLIC")
    yield name
    admin.execute(f"DROP TABLE {name}")


def log_of(admin: Admin, role: str, changes: Mapping[str, str]) -> None:
    """Change what the server logs of a role's new connections."""
    for name, value in changes.items():
        admin.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(
                sql.Identifier(role), sql.Identifier(name), sql.Literal(value)
            )
        )


def send(db: Database[TupleRow], table: str, canary: str) -> None:
    """Send the value in every way that binds it: in statements that succeed and that fail."""
    insert = INSERT.format(table)
    claims = {"sub": canary}
    assert db.execute("SELECT %s::text", (canary,), claims=claims).fetchone() == (canary,)
    db.execute(insert, (canary, 1))
    failures: dict[type[psycopg.Error], Callable[[], object]] = {
        errors.UniqueViolation: lambda: db.execute(insert, (canary, 2)),
        errors.CheckViolation: lambda: db.execute(insert, (canary * 10, 3), claims=claims),
        errors.DivisionByZero: lambda: db.execute("SELECT 1 / %s, %s::text", (0, canary)),
        errors.RaiseException: lambda: db.run_transaction(lambda conn: raise_in(conn, canary)),
    }
    for error, fail in failures.items():
        with pytest.raises(error):
            fail()
    with pytest.raises(errors.UniqueViolation), db.transaction() as connection:
        connection.cursor().executemany(insert, [("other", 4), (canary, 5)])
    with (
        pytest.raises(errors.UniqueViolation),
        db.transaction() as connection,
        connection.cursor().copy(f"COPY {table} (email, n) FROM STDIN") as copy,
    ):
        copy.write_row((canary, 6))


def raise_in(connection: psycopg.Connection[TupleRow], canary: str) -> None:
    """Fail in the middle of a unit of work, after the value was bound."""
    connection.execute("SELECT %s::text", (canary,))
    connection.execute("DO $$ BEGIN RAISE EXCEPTION 'refused'; END $$")


def shown(log: Path, canary: str) -> list[str]:
    """Find the lines of a log that show the value."""
    return [line for line in log.read_text(errors="replace").splitlines() if canary in line]


def test_a_bound_value_is_in_no_log_of_the_database_and_the_layer(
    db: Database[TupleRow],
    admin: Admin,
    postgres: Postgres,
    table: str,
    canary: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither as a parameter nor in a key, a row or a line of COPY; the statements are there."""
    log_of(admin, "layer_test", SLOW)
    with caplog.at_level(logging.DEBUG):
        send(db, table, canary)
    assert shown(postgres.log, canary) == []
    assert canary not in caplog.text
    text = postgres.log.read_text()
    assert INSERT.format(table) % ("$1", "$2") in text
    assert f'violates unique constraint "{table}_email_key"' in text


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_left_out_would_be_found(
    db: Database[TupleRow], admin: Admin, postgres: Postgres, table: str, canary: str, what: str
) -> None:
    """Each setting keeps something out of the log."""
    changes, pattern = SHOWN[what]
    log_of(admin, "layer_test", SLOW | DETAILS | changes)
    before = len(postgres.log.read_text())
    send(db, table, canary)
    assert re.search(pattern.replace("{}", canary), postgres.log.read_text()[before:])


def test_a_bound_value_is_in_no_log_of_the_pooler(
    new_pooler: PoolerFixture,
    secrets_environment: None,
    admin: Admin,
    table: str,
    canary: str,
) -> None:
    """Through PgBouncer, which logs more when it is asked to, and the database behind it."""
    log_of(admin, new_pooler.login.name, SLOW)
    with psycopg.connect(new_pooler.postgres.dsn, autocommit=True) as owner:
        owner.execute(
            f"CREATE TABLE {table} (email text UNIQUE CHECK (length(email) < 100), n int)"
        )
        owner.execute(f"GRANT ALL ON {table} TO PUBLIC")
    pooler = new_pooler.start()
    database = Database(settings_for(pooler))
    try:
        with psycopg.connect(pooler.process.admin_dsn, autocommit=True) as console:
            console.execute("SET verbose = 2")
        send(database, table, canary)
    finally:
        database.close()
        with psycopg.connect(new_pooler.postgres.dsn, autocommit=True) as owner:
            owner.execute(f"DROP TABLE {table}")
    assert shown(pooler.process.log, canary) == []
    assert shown(new_pooler.postgres.log, canary) == []
    assert f'violates unique constraint "{table}_email_key"' in new_pooler.postgres.log.read_text()


def test_a_value_that_cannot_be_converted_is_in_the_database_s_log(
    db: Database[TupleRow], postgres: Postgres, canary: str
) -> None:
    """PostgreSQL's message itself has it, which no setting changes: docs/operations.md says so."""
    with pytest.raises(errors.InvalidTextRepresentation):
        db.execute("SELECT %s::uuid", (canary,))
    (line,) = shown(postgres.log, canary)
    assert f'ERROR:  invalid input syntax for type uuid: "{canary}"' in line
