"""The sample's second revision: versions that every writer counts up, and names that fit."""

import json
import logging
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from lambda_pg._connection import SET_CLAIMS
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import CheckViolation

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.run import migrate
from lambda_pg_cdk.migrations.upgrade import BASE, SAMPLE, Branch
from tests.support.targets import TIMEOUTS, Target, new_target

ADA = uuid.uuid4()
UNFIT = ("A", "x" * 51, "x" * 200)
CONSTRAINT = "SELECT convalidated FROM pg_constraint WHERE conname = 'users_name_fits'"
VALIDATE = "ALTER TABLE users VALIDATE CONSTRAINT users_name_fits"

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def target(postgres: Postgres) -> Iterator[Target]:
    """Give a new database that belongs to the master user, and remove it afterwards."""
    with new_target(postgres) as made:
        yield made


@pytest.fixture
def before(target: Target, tmp_path: Path) -> Target:
    """Give it the sample's first revision only."""
    shutil.copy2(SAMPLE.folder / "0001_users.py", tmp_path)
    connection = psycopg.connect(target.dsn, autocommit=True)
    branches = [BASE, Branch(tmp_path, SAMPLE.prefix)]
    migrate(connection, lambda: target.login, TIMEOUTS, branches, patience=30)
    return target


@pytest.fixture
def admin(target: Target, postgres: Postgres) -> Iterator[Connection]:
    """A superuser's connection to the database."""
    name = str(conninfo_to_dict(target.dsn)["dbname"])
    dsn = make_conninfo(postgres.superuser_dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def as_ada(target: Target) -> Connection:
    """Log in as the application, with Ada's claims."""
    connection = target.connect()
    connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), [json.dumps({"sub": str(ADA)})])
    return connection


def insert(target: Target, *names: str) -> None:
    """Insert users of Ada's, as the older function does."""
    with as_ada(target) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO users (owner, name) VALUES (%s, %s)", [(ADA, name) for name in names]
        )


def test_rows_that_fit_make_the_constraint_valid(
    before: Target, admin: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has version 1, and nothing is said."""
    insert(before, "Ad", "x" * 50)
    assert before.migrate().applied[0] == "users_0002"
    assert admin.execute(CONSTRAINT).fetchone() == (True,)
    assert admin.execute("SELECT DISTINCT version FROM users").fetchall() == [(1,)]
    assert not caplog.records


def test_rows_that_do_not_fit_stay_readable(
    before: Target, admin: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The person who deploys gets their number, though row-level security hides them all."""
    insert(before, "Ada", *UNFIT)
    with caplog.at_level(logging.WARNING, "migrate"):
        before.migrate()
    (record,) = caplog.records
    assert record.message.startswith("table users: 3 rows have a name that is not 2 to 50")
    assert admin.execute(CONSTRAINT).fetchone() == (False,)
    with as_ada(before) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM users")}
    assert names == {"Ada", *UNFIT}


def test_a_row_that_does_not_fit_can_only_be_mended(before: Target, admin: Connection) -> None:
    """Then the owner's remedy of the warning works."""
    insert(before, "A")
    before.migrate()
    with pytest.raises(CheckViolation), as_ada(before) as connection:
        connection.execute("UPDATE users SET updated_at = now()")
    with pytest.raises(CheckViolation):
        admin.execute(VALIDATE)
    with as_ada(before) as connection:
        connection.execute("UPDATE users SET name = 'Ada'")
    with psycopg.connect(before.dsn) as owner:
        owner.execute(VALIDATE)
    assert admin.execute(CONSTRAINT).fetchone() == (True,)


@pytest.mark.parametrize("name", ["", "A", "x" * 51, " Ada", "Ada\t", "   "])
def test_a_name_that_does_not_fit_is_never_written(target: Target, name: str) -> None:
    """Whichever client writes it: the older function, too, which accepts some of them."""
    target.migrate()
    with pytest.raises(CheckViolation):
        insert(target, name)
    insert(target, "Ada")
    with pytest.raises(CheckViolation), as_ada(target) as connection:
        connection.execute("UPDATE users SET name = %s", [name])


def test_each_update_counts_the_version_up(target: Target, admin: Connection) -> None:
    """Of every writer, whatever it writes into the column; an INSERT that finds the row, too."""
    target.migrate()
    insert(target, "Ada")
    writers = ("SET name = 'Bea'", "SET version = 40", "SET name = name", "SET version = 1")
    for update in writers:
        with as_ada(target) as connection:
            connection.execute(f"UPDATE users {update}".encode())
    admin.execute("UPDATE users SET updated_at = now()")
    again = (
        "INSERT INTO users (id, owner, name) SELECT id, owner, 'Cleo' FROM users"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING version"
    )
    with as_ada(target) as connection:
        assert connection.execute(again).fetchone() == (len(writers) + 3,)


def test_the_rows_stay_hidden_from_the_owner(before: Target) -> None:
    """For its count the migration looks past row-level security, and then no longer."""
    insert(before, "A")
    before.migrate()
    with psycopg.connect(before.dsn) as owner:
        assert owner.execute("SELECT count(*) FROM users").fetchone() == (0,)
