"""Spans: what an exporter gets of checkouts, connects and statements, and what it never gets."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    ConnectFailedError,
    Database,
    DeadlineExceededError,
    Settings,
)
from lambda_pg.django.base import Cursor as DjangoCursor
from lambda_pg.sqlalchemy import create_engine
from psycopg import sql
from psycopg.rows import TupleRow
from sqlalchemy import text

from tests.support.context import Context
from tests.support.layer import Admin, Open, kill_backends, settings_for, slot_taken
from tests.support.servers import DATABASE, PoolerFixture, waiting_clients
from tests.support.tracing import Spans, events, seconds
from tests.support.waiting import wait_until

LAYER = Path(__file__).resolve().parents[2] / "layer" / "python"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A program with OpenTelemetry."""
    return Spans(monkeypatch)


@pytest.fixture
def db(spans: Spans, open_database: Open) -> Database[TupleRow]:
    """A database of that program, with a connection open."""
    database = open_database()
    database.execute("SELECT 1")
    spans.take()
    return database


def test_a_first_statement_has_its_checkout_and_its_connect(
    spans: Spans, open_database: Open
) -> None:
    """One below the other; a warm one needs neither."""
    db = open_database()
    db.execute("SELECT n FROM counter WHERE n = %s", [1])
    assert spans.tree() == [
        "SELECT counter",
        "SELECT counter > lambda_pg.checkout",
        "SELECT counter > lambda_pg.checkout > lambda_pg.connect",
    ]
    db.execute("SELECT n FROM counter WHERE n = %s", [2])
    assert spans.tree() == ["SELECT counter"]


def test_the_attributes_are_those_of_the_conventions(
    spans: Spans, open_database: Open, settings: Settings
) -> None:
    """Endpoint and database on each span; text, summary and operation on a statement's."""
    open_database().execute("SELECT n FROM counter WHERE n = %s", [1])
    statement, checkout, connect = spans.take()
    endpoint = {
        "db.system.name": "postgresql",
        "db.namespace": "postgres",
        "server.address": "127.0.0.1",
        "server.port": settings.port,
    }
    assert statement.attributes == endpoint | {
        "db.query.text": "SELECT n FROM counter WHERE n = %s",
        "db.query.summary": "SELECT counter",
        "db.operation.name": "SELECT",
    }
    assert checkout.attributes == endpoint
    peer = {"network.peer.address": "127.0.0.1", "network.peer.port": settings.port}
    assert connect.attributes == endpoint | peer
    kinds = [span.kind.name for span in (statement, checkout, connect)]
    assert kinds == ["CLIENT", "INTERNAL", "CLIENT"]
    assert {span.instrumentation_scope.name for span in (statement, checkout)} == {"lambda_pg"}


def test_an_endpoint_that_only_the_secret_names_is_there(
    new_pooler: PoolerFixture, secrets_environment: None, spans: Spans
) -> None:
    """On the statement that fetched the secret, and on the next one from its beginning."""
    new_pooler.start()
    db = Database(settings_for(new_pooler))
    db.execute("SELECT 1")
    db.execute("SELECT 1")
    db.close()
    named = [span.attributes["db.namespace"] for span in spans.take() if span.name == "SELECT"]
    assert named == [DATABASE, DATABASE]


VALUES = {
    "a parameter that is no number": ("SELECT %s::int", ["canary"]),
    "a literal that is no number": ("SELECT 'canary'::int", None),
    "a composed literal": (sql.SQL("SELECT {}::int").format("canary"), None),
    "a literal in dollars": ("SELECT $$canary$$::int", None),
    "bytes": (b"SELECT 'canary'::int", None),
    "a comment": ("SELECT 'x'::int /* canary */ -- canary", None),
    "a literal without an end": ("SELECT 'x'::int, 'canary", None),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("verb", ["execute", "claims", "connection", "transaction", "stream"])
def test_no_value_and_no_error_text_is_in_a_span(
    spans: Spans, db: Database[TupleRow], kind: str, verb: str
) -> None:
    """The server quotes the value that it refuses; a span says only the SQLSTATE."""
    query, params = VALUES[kind]
    run: Any = {
        "execute": lambda: db.execute(query, params),  # type: ignore[arg-type]
        "claims": lambda: db.execute(query, params, claims={"sub": "canary"}),  # type: ignore[arg-type]
        "connection": lambda: in_block(db.connection(), query, params),
        "transaction": lambda: in_block(db.transaction(), query, params),
        "stream": lambda: streamed(db, query, params),
    }[verb]
    with pytest.raises(psycopg.Error) as raised:
        run()
    assert raised.value.sqlstate in {"22P02", "42601"}
    found = spans.take()
    assert "canary" not in "".join(span.to_json() for span in found)
    (failed,) = [span for span in found if "db.response.status_code" in span.attributes]
    assert failed.name == "SELECT"
    assert failed.status.status_code.name == "ERROR"
    assert failed.attributes["error.type"] == raised.value.sqlstate
    assert failed.attributes["db.response.status_code"] == raised.value.sqlstate


def in_block(block: Any, query: Any, params: Any) -> None:
    """Execute one statement on a connection."""
    with block as connection:
        connection.execute(query, params)


def streamed(db: Database[TupleRow], query: Any, params: Any) -> None:
    """Read one statement's rows as they come."""
    with db.connection() as connection:
        list(connection.cursor().stream(query, params))


def test_a_retried_statement_is_one_span(
    spans: Spans, db: Database[TupleRow], admin: Admin
) -> None:
    """Its events tell of the retry."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    tries = iter([query, "SELECT 1"])
    original = db._pool.take

    def take() -> Any:
        connection = original()
        if connection is not None and next(tries) == query:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        return connection

    db._pool.take = take  # type: ignore[method-assign]
    db.execute("SELECT 2", idempotent=True)
    statement, checkout, connect = spans.take()
    assert events(statement) == ["lambda_pg.retry"]
    assert statement.status.status_code.name == "UNSET"
    assert checkout.parent.span_id == statement.context.span_id
    assert connect.parent.span_id == checkout.context.span_id


def test_a_replaced_connection_is_an_event_of_the_checkout(
    spans: Spans, db: Database[TupleRow], admin: Admin
) -> None:
    """As it is a line of the log."""
    kill_backends(admin)
    db.execute("SELECT 1")
    _, checkout, _ = spans.take()
    assert events(checkout) == ["lambda_pg.replaced"]


def test_a_wait_for_a_slot_is_in_the_checkout(spans: Spans, db: Database[TupleRow]) -> None:
    """With an event, so that it is not taken for a slow connect; and its end by the timeout."""
    with slot_taken(db), pytest.raises(CheckoutTimeoutError):
        db.execute("SELECT 1")
    statement, checkout = [span for span in spans.take() if span.parent or span.name == "SELECT"]
    assert events(checkout) == ["lambda_pg.wait_for_slot"]
    for span in (statement, checkout):
        assert span.attributes["error.type"] == "CheckoutTimeoutError"


def test_a_failed_connect_is_a_failed_span(spans: Spans, open_database: Open) -> None:
    """Of psycopg's class, or with the SQLSTATE that a second connect has asked for."""
    db = open_database(dbname="nowhere")
    with pytest.raises(ConnectFailedError):
        db.execute("SELECT 1")
    found = spans.take()
    assert [span.name for span in found].count("lambda_pg.connect") in {1, 2}
    assert all(span.attributes["error.type"] for span in found if span.name == "lambda_pg.connect")
    assert {span.status.status_code.name for span in found} == {"ERROR"}


def test_a_transaction_s_statements_and_its_commit_are_spans(
    spans: Spans, db: Database[TupleRow]
) -> None:
    """Also the rollback of one that fails."""
    with db.transaction() as connection:
        connection.execute("INSERT INTO counter VALUES (%s)", [1])
    assert spans.tree() == ["lambda_pg.checkout", "INSERT counter", "COMMIT"]
    with suppress(ZeroDivisionError), db.transaction() as connection:
        connection.execute("DELETE FROM counter")
        raise ZeroDivisionError
    assert spans.tree() == ["lambda_pg.checkout", "DELETE counter", "ROLLBACK"]
    db.run_transaction(lambda conn: conn.execute("UPDATE counter SET n = 2").rowcount)
    assert spans.tree() == ["lambda_pg.checkout", "UPDATE counter", "COMMIT"]


def test_every_way_to_send_a_statement_makes_a_span(spans: Spans, db: Database[TupleRow]) -> None:
    """Cursors of all kinds, as Django's, and what psycopg sends around them."""
    with db.connection() as connection, connection.transaction(), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO counter VALUES (%s)", [(1,), (2,)])
        list(cursor.stream("SELECT n FROM counter"))
        with cursor.copy("COPY counter FROM STDIN") as copy:
            copy.write_row([3])
        with connection.cursor("named") as named:
            named.execute("SELECT n FROM counter")
            named.fetchall()
        connection.cursor_factory = DjangoCursor
        connection.execute("SELECT 7")
    found = spans.take()
    assert [span.name for span in found] == [
        "lambda_pg.checkout",
        "BEGIN",
        "BATCH INSERT counter",
        "SELECT counter",
        "COPY counter",
        "SELECT counter",
        "FETCH",
        "CLOSE",
        "SELECT",
        "COMMIT",
    ]
    batch = found[2].attributes
    assert (batch["db.operation.batch.size"], batch["db.operation.name"]) == (2, "BATCH INSERT")
    assert all(span.attributes["db.namespace"] == "postgres" for span in found)


def test_an_abandoned_stream_ends_its_span(spans: Spans, db: Database[TupleRow]) -> None:
    """And leaves no span open as the current one of its thread."""
    with db.connection() as connection:
        rows = connection.cursor().stream("SELECT n FROM generate_series(1, 9) n")
        next(rows)
        rows.close()  # type: ignore[attr-defined]  # a generator
    from opentelemetry import trace  # noqa: PLC0415 - loaded by the fixture

    assert "SELECT generate_series" in spans.tree()
    assert not trace.get_current_span().get_span_context().is_valid


def test_sqlalchemy_s_statements_make_spans(spans: Spans, db: Database[TupleRow]) -> None:
    """With the BEGIN that psycopg sends before the first of them."""
    with create_engine(db).begin() as connection:
        spans.take()
        connection.execute(text("SELECT n FROM counter"))
    names = spans.tree()
    assert names[0] == "SELECT counter"
    assert "COMMIT" in names


@pytest.fixture
def narrow(new_pooler: PoolerFixture, secrets_environment: None) -> PoolerFixture:
    """A pooler with one server connection."""
    return new_pooler.start(MAX_DB_CONNECTIONS="1", DEFAULT_POOL_SIZE="1", QUERY_WAIT_TIMEOUT="5")


@pytest.mark.parametrize("verb", ["claims", "transaction"])
def test_the_wait_for_a_server_connection_is_a_span(
    spans: Spans, narrow: PoolerFixture, verb: str
) -> None:
    """BEGIN is answered when PgBouncer has a server connection, and before the statement is."""
    db = Database(settings_for(narrow))
    db.execute("SELECT 1")
    with narrow.connect() as holder, ThreadPoolExecutor(1) as threads:
        holder.autocommit = False
        holder.execute("SELECT 1")  # has the one server connection until it commits
        asked = threads.submit(ask, db, verb)
        wait_until(lambda: waiting_clients(narrow) == 1)
        time.sleep(0.5)  # the wait that the span has to show
        holder.commit()
        asked.result()
    spans_of = {span.name: span for span in spans.take()}
    begin, statement = spans_of["BEGIN"], spans_of["SELECT pg_sleep"]
    assert begin.parent.span_id == statement.context.span_id
    assert seconds(begin) >= 0.5
    assert (statement.end_time - begin.end_time) / 1e9 >= 0.1  # BEGIN's answer may be read late
    assert begin.attributes["db.operation.name"] == "BEGIN"
    db.close()


def ask(db: Database[TupleRow], verb: str) -> None:
    """Run a statement of 0.2 s in a transaction."""
    query = "SELECT FROM pg_sleep(0.2)"
    if verb == "claims":
        db.execute(query, claims={"sub": "a"})
    else:
        with db.transaction() as connection:
            connection.execute(query)


def test_a_refused_batch_ends_the_span_of_its_wait(spans: Spans, narrow: PoolerFixture) -> None:
    """The deadline ends the wait for a server connection: both spans are there, and failed."""
    db = Database(settings_for(narrow))
    db.execute("SELECT 1")
    with narrow.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT 1")
        with pytest.raises(DeadlineExceededError), db.deadline(0.5):
            db.execute("SELECT 1", claims={"sub": "a"})
        holder.rollback()
    failed = [span.name for span in spans.take() if span.status.status_code.name == "ERROR"]
    assert sorted(failed) == ["BEGIN", "SELECT"]
    db.close()


def test_a_program_that_loads_the_api_late_gets_spans(spans: Spans, open_database: Open) -> None:
    """At the latest from the next invocation on."""
    with spans.without_api():
        db = open_database()
        db.execute("SELECT 1")
        assert spans.take() == []
        db.close()
    handler = db.bind_lambda_context(lambda _, __: db.execute("SELECT 1").fetchone())
    assert handler({}, Context(20)) == (1,)
    assert spans.tree()[0] == "SELECT"
    handler({}, Context(20))
    assert spans.tree() == ["SELECT"]


PROGRAM = """
import sys
{first}
from lambda_pg import Database, Settings
db = Database(Settings(host="db.internal"))
db.bind_lambda_context(lambda event, context: None)({{}}, type("Context", (), {{
    "get_remaining_time_in_millis": lambda self: 1000}})())
print([name for name in ("lambda_pg._tracing", "opentelemetry") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("first", "loaded"),
    [
        ("", "[]"),
        ("import opentelemetry.trace", "['lambda_pg._tracing', 'opentelemetry']"),
    ],
)
def test_nothing_is_loaded_for_a_program_that_does_not_trace(first: str, loaded: str) -> None:
    """Though OpenTelemetry is installed."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LAYER)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == loaded
