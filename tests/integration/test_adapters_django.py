"""Django over the layer's pool: a project whose queries pass PgBouncer, and migrate directly."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import (
    IntegrityError,
    NotSupportedError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from lambda_pg import DatabaseUnavailableError, DeadlineExceededError, StatementRefusedError
from lambda_pg.django import database

from lambda_pg_cdk.local import processes
from tests.support.context import Context
from tests.support.django_project import entry_model, fresh_connections
from tests.support.recorder import Recorder
from tests.support.servers import DATABASE, PoolerFixture

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
def pooler(kept_pooler: PoolerFixture) -> PoolerFixture:
    """The pooler of this module; what a test changes of its login ends with `admin`."""
    return kept_pooler


@pytest.fixture
def admin(pooler: PoolerFixture) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the project's database; the login has a schema of its own."""
    name = pooler.login.name
    with psycopg.connect(pooler.postgres.superuser_dsn, dbname=DATABASE, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        yield admin
        admin.execute(f"DROP SCHEMA {name} CASCADE")
        admin.execute(f"ALTER ROLE {name} RESET ALL")
        admin.execute(f"ALTER ROLE {name} NOCREATEDB")


@pytest.fixture
def recorder(pooler: PoolerFixture, tmp_path: Path) -> Iterator[Recorder]:
    """What is between the project and PgBouncer."""
    with Recorder(("127.0.0.1", pooler.port), tmp_path, server_ca=pooler.ca_file) as recorder:
        yield recorder


@pytest.fixture
def project(
    pooler: PoolerFixture,
    admin: psycopg.Connection[Any],
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """The project with the environment of a function, strict, and nothing migrated yet."""
    roots = tmp_path / "roots.pem"
    roots.write_text(recorder.ca_file.read_text() + pooler.postgres.ca_file.read_text())
    login = f"{pooler.login.name}:{pooler.login.password}@127.0.0.1"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{login}:{recorder.port}/{DATABASE}")
    monkeypatch.setenv("DIRECT_URL", f"postgresql://{login}:{pooler.postgres.port}/{DATABASE}")
    monkeypatch.setenv("PGSSLROOTCERT", str(roots))
    monkeypatch.setenv("LAMBDA_PG_PROFILE", "rds-proxy")
    monkeypatch.setenv("LAMBDA_PG_STRICT", "1")
    model = entry_model()
    with fresh_connections():
        yield model


@pytest.fixture
def model(project: Any, recorder: Recorder) -> Any:
    """The model, with its table migrated through the direct URL."""
    call_command("migrate", database="direct", verbosity=0)
    assert not recorder.queries
    return project


def invoke(handler: Callable[[], Any]) -> Any:
    """Run something as an invocation of a handler that is bound to Lambda's context."""
    bound = database().bind_lambda_context(lambda _event, _context: handler())
    return bound({}, Context(5))


def test_the_orm_works_through_a_pooler(model: Any, recorder: Recorder) -> None:
    """Rows go in and come out as Django knows them, and nothing that pins is sent."""
    model.objects.create(account="ann", amount=1, booked_at=WHEN, details={"by": ["card"]})
    model.objects.bulk_create(
        model(account="bob", amount=amount, booked_at=WHEN) for amount in range(3)
    )
    entry = model.objects.get(account="ann")
    assert (entry.amount, entry.booked_at, entry.details) == (1, WHEN, {"by": ["card"]})
    assert model.objects.filter(details__by__contains="card").count() == 1
    assert model.objects.filter(booked_at__date=WHEN.date()).count() == 4
    with connection.cursor() as cursor:
        cursor.execute("COMMENT ON TABLE ledger_entry IS %s", ["Django fills in parameters"])
        cursor.callproc("upper", ["a"])
        assert cursor.fetchone() == ("A",)
    assert not recorder.violations("rds-proxy")


def test_server_side_cursors_are_for_direct_connections(model: Any, recorder: Recorder) -> None:
    """iterator() reads through a pooler without the cursor that would pin or break there."""
    model.objects.create(account="ann", amount=1, booked_at=WHEN)
    assert [entry.amount for entry in model.objects.iterator(chunk_size=1)] == [1]
    assert not any("DECLARE" in query for query in recorder.queries)
    directly = model.objects.using("direct").iterator(chunk_size=1)
    assert [entry.amount for entry in directly] == [1]
    assert connections["direct"]._named_cursor_idx == 1


def test_atomic_blocks_hold(model: Any) -> None:
    """A savepoint that fails leaves its transaction intact; a block that raises leaves nothing."""
    with transaction.atomic():
        model.objects.create(account="ann", amount=1, booked_at=WHEN)
        with pytest.raises(IntegrityError), transaction.atomic():
            model.objects.create(account="ann", amount=1, booked_at=WHEN)
        model.objects.create(account="ann", amount=2, booked_at=WHEN)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        model.objects.create(account="ann", amount=3 // 0, booked_at=WHEN)
    assert set(model.objects.values_list("amount", flat=True)) == {1, 2}


def test_closing_puts_the_connection_back(model: Any) -> None:
    """Every request of Django's gets the same connection, and the layer gets it in between."""
    for amount in range(3):
        request_started.send(sender=None)
        model.objects.create(account="ann", amount=amount, booked_at=WHEN, details={"a": 1})
        request_finished.send(sender=None)
    row = database().execute("SELECT details, count(*) FROM ledger_entry GROUP BY 1").fetchone()
    assert row == ({"a": 1}, 3)  # in psycopg's own types: Django's adapters are gone
    assert database().stats()["connections_num"] == 1


def test_a_connection_that_a_handler_leaves_open_costs_the_next_one_nothing(model: Any) -> None:
    """The layer closes and reports it; Django notices, and takes another one."""
    for number in range(3):
        assert invoke(model.objects.count) == 0
        assert database().stats()["leaks"] == number + 1


def test_a_handler_that_closes_leaves_nothing(model: Any) -> None:
    """With close_all() at its end the connection stays in the pool from one to the next."""

    def handler() -> int:
        try:
            return int(model.objects.count())
        finally:
            connections.close_all()

    assert [invoke(handler) for _ in range(3)] == [0, 0, 0]
    assert (database().stats()["leaks"], database().stats()["connections_num"]) == (0, 1)


def test_an_atomic_block_of_a_generator_does_not_commit_half(model: Any) -> None:
    """Its transaction ended with its invocation: it fails where it goes on; the next is served."""

    def work() -> Iterator[None]:
        with transaction.atomic():
            model.objects.create(account="ann", amount=1, booked_at=WHEN)
            yield
            model.objects.create(account="ann", amount=2, booked_at=WHEN)

    working = work()
    invoke(lambda: next(working))
    with pytest.raises(OperationalError, match="its invocation has ended"):
        invoke(lambda: next(working))
    assert invoke(model.objects.count) == 0


def test_an_atomic_block_that_ends_in_another_invocation_does_not_end_in_silence(
    model: Any,
) -> None:
    """Also where all that is left for it to do is to commit."""

    def work() -> Iterator[None]:
        with transaction.atomic():
            model.objects.create(account="ann", amount=1, booked_at=WHEN)
            yield

    working = work()
    invoke(lambda: next(working))
    with pytest.raises(OperationalError, match="its invocation has ended"):
        invoke(lambda: next(working))
    assert invoke(model.objects.count) == 0


@pytest.mark.parametrize("end", ["commit", "statement"])
def test_uncommitted_work_is_missed_once(model: Any, end: str) -> None:
    """Where the application commits by itself, one request hears that its work was rolled back."""

    def leave() -> None:
        transaction.set_autocommit(False)
        model.objects.create(account="ann", amount=1, booked_at=WHEN)

    invoke(leave)
    with pytest.raises(OperationalError, match="its invocation has ended"):
        invoke(transaction.commit if end == "commit" else model.objects.count)
    assert invoke(model.objects.count) == 0
    assert transaction.get_autocommit()


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_what_ends_a_kept_connection_of_django(model: Any, end: str) -> None:
    """A rollback or a close succeeds: it is what has happened."""

    def leave() -> None:
        transaction.set_autocommit(False)
        model.objects.create(account="ann", amount=1, booked_at=WHEN)

    invoke(leave)
    invoke(transaction.rollback if end == "rollback" else connection.close)
    assert invoke(model.objects.count) == 0


def test_a_cursor_of_django_that_was_kept_says_so(model: Any) -> None:
    """It belongs to a connection that is gone, while Django has another one."""
    cursor = invoke(connection.cursor)
    assert invoke(model.objects.count) == 0
    with pytest.raises(OperationalError, match="its invocation has ended"):
        cursor.execute("SELECT 1")


def test_an_unreachable_database_is_django_s_operational_error(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cause is the layer's error, with the seconds after which to try again."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql://a:b@127.0.0.1:{processes.free_port()}/c")
    monkeypatch.setenv("LAMBDA_PG_CHECKOUT_TIMEOUT", "0.2")
    with pytest.raises(OperationalError) as failed:
        project.objects.count()
    assert isinstance(failed.value.__cause__, DatabaseUnavailableError)
    assert failed.value.__cause__.retry_after > 0


def test_the_deadline_ends_a_statement_of_django(model: Any) -> None:
    """The cause is the layer's error; after a close() the next statement is served."""
    began = time.monotonic()
    with (
        database().deadline(0.3),
        pytest.raises(OperationalError) as failed,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_sleep(30)")
    assert time.monotonic() - began < 5
    assert isinstance(failed.value.__cause__, DeadlineExceededError)
    assert model.objects.count() == 0


def test_strict_mode_holds_for_django(project: Any, recorder: Recorder) -> None:
    """A statement that would leak is refused before it is sent, as Django's own error."""
    with connection.cursor() as cursor, pytest.raises(NotSupportedError) as refused:
        cursor.execute("SET work_mem = '8MB'")
    assert isinstance(refused.value.__cause__, StatementRefusedError)
    assert not recorder.queries


def test_the_servers_other_time_zone_is_refused_through_a_pooler(
    project: Any, pooler: PoolerFixture, admin: psycopg.Connection[Any]
) -> None:
    """Django would read every timestamp wrongly; the error says what to set, and stays."""
    admin.execute(f"ALTER ROLE {pooler.login.name} SET timezone TO 'Asia/Tokyo'")
    pooler.renew()  # PgBouncer tells clients what its first server connection had
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match="SET timezone TO 'UTC'"):
            project.objects.count()
    assert database().stats()["pool_available"] == 1


def test_the_servers_other_time_zone_is_set_on_a_direct_connection(
    project: Any, pooler: PoolerFixture, admin: psycopg.Connection[Any]
) -> None:
    """There it is Django's own affair, and timestamps are right."""
    admin.execute(f"ALTER ROLE {pooler.login.name} SET timezone TO 'Asia/Tokyo'")
    call_command("migrate", database="direct", verbosity=0)
    model = project.objects.using("direct")
    model.create(account="ann", amount=1, booked_at=WHEN)
    assert model.get().booked_at == WHEN


def test_utc_by_another_name_is_utc(
    project: Any, pooler: PoolerFixture, admin: psycopg.Connection[Any], recorder: Recorder
) -> None:
    """Nothing is sent where the server says Etc/UTC, as Debian's does."""
    admin.execute(f"ALTER ROLE {pooler.login.name} SET timezone TO 'Etc/UTC'")
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        assert cursor.fetchone()[0].tzinfo == UTC
    assert recorder.queries == ["SELECT now()"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST", "db.internal"),
        ("USER", "app"),
        ("PASSWORD", "canary"),
        ("CONN_MAX_AGE", 60),
        ("OPTIONS", {"pool": True}),
        ("OPTIONS", {"assume_role": "app"}),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    project: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    """The error names them; where they belong stands in it, and no password."""
    monkeypatch.setitem(connection.settings_dict, name, value)
    expected = next(iter(value)) if isinstance(value, dict) else name
    with pytest.raises(ImproperlyConfigured, match=expected) as refused:
        connection.ensure_connection()
    assert "DATABASE_URL" in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_test_database_is_another_one(
    model: Any, pooler: PoolerFixture, admin: psycopg.Connection[Any]
) -> None:
    """`manage.py test` never touches the database that the environment names."""
    admin.execute(f"ALTER ROLE {pooler.login.name} CREATEDB")
    directly = connections["direct"]
    model.objects.using("direct").create(account="ann", amount=1, booked_at=WHEN)
    name = directly.settings_dict["NAME"]
    test_name = directly.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        assert model.objects.using("direct").count() == 0
        with directly.cursor() as cursor:
            cursor.execute("SELECT current_database()")
            assert cursor.fetchone() == (test_name,)
    finally:
        directly.creation.destroy_test_db(name, verbosity=0)
    assert model.objects.using("direct").count() == 1
    databases = {row[0] for row in admin.execute("SELECT datname FROM pg_database")}
    assert test_name not in databases
