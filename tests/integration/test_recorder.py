"""The wire recorder sees what psycopg sends, and each rule finds what it is there for."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.recorder import (
    CANCEL,
    LEAKING_STATEMENTS,
    PINNING_STATEMENTS,
    Profile,
    Recorder,
    socket_of,
)
from tests.support.servers import PoolerFixture

Connection = psycopg.Connection[Any]


def through(recorder: Recorder, postgres: Postgres) -> str:
    """Build the superuser's address through the recorder, verified."""
    return make_conninfo(
        postgres.superuser_dsn,
        host="127.0.0.1",
        port=recorder.port,
        sslmode="verify-full",
        sslrootcert=str(recorder.ca_file),
    )


@pytest.fixture
def recorder(postgres: Postgres, tmp_path: Path) -> Iterator[Recorder]:
    """A recorder before the server."""
    with Recorder(socket_of(postgres), tmp_path) as recorder:
        yield recorder


@pytest.fixture
def dsn(postgres: Postgres, recorder: Recorder) -> str:
    """The superuser's address through the recorder."""
    return through(recorder, postgres)


@pytest.fixture
def connection(dsn: str) -> Iterator[Connection]:
    """A verified connection in autocommit that prepares nothing."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def rules(recorder: Recorder, profile: Profile = "rds-proxy") -> list[str]:
    """Name the rules that were broken."""
    return [violation.rule for violation in recorder.violations(profile)]


@pytest.mark.parametrize(("rule", "statement"), LEAKING_STATEMENTS)
def test_a_statement_that_leaks_is_seen(
    connection: Connection, recorder: Recorder, rule: str, statement: str
) -> None:
    """It breaks its rule behind RDS Proxy and behind PgBouncer."""
    connection.execute(statement)
    assert rule in rules(recorder)
    assert rule in rules(recorder, "pgbouncer")


@pytest.mark.parametrize(("rule", "statement"), PINNING_STATEMENTS)
def test_a_statement_that_only_pins_is_seen(
    connection: Connection, recorder: Recorder, rule: str, statement: str
) -> None:
    """It breaks its rule behind RDS Proxy alone."""
    connection.execute("CREATE SEQUENCE visits")
    connection.execute(statement)
    connection.execute("DROP SEQUENCE visits")
    assert rules(recorder) == [rule]
    assert rules(recorder, "pgbouncer") == []


def test_a_statement_with_parameters_is_judged_too(
    connection: Connection, recorder: Recorder
) -> None:
    """The extended protocol's Parse holds the SQL."""
    connection.execute("SELECT set_config('a.b', %s, %s)", ["1", False])
    connection.execute("SELECT set_config('a.b', %s, true)", ["1"])
    assert rules(recorder) == ["set_config for the session"]


def test_a_prepared_statement_is_seen(connection: Connection, recorder: Recorder) -> None:
    """A driver that prepares names the statement in the protocol."""
    connection.prepare_threshold = 0
    connection.execute("SELECT %s", [1])
    assert rules(recorder) == ["named prepared statement"]


def test_a_named_cursor_is_seen(connection: Connection, recorder: Recorder) -> None:
    """Psycopg's server-side cursor is a DECLARE."""
    with connection.transaction(), connection.cursor("c") as cursor:
        cursor.execute("SELECT 1")
    assert "cursor" in rules(recorder)


def test_startup_options_are_seen(dsn: str, recorder: Recorder) -> None:
    """They stand in the startup message."""
    psycopg.connect(dsn, options="-c statement_timeout=1000").close()
    assert rules(recorder) == ["startup options"]
    assert rules(recorder, "pgbouncer") == ["startup options"]


def test_a_cancel_request_is_seen(connection: Connection, recorder: Recorder) -> None:
    """It comes on a connection of its own, through TLS."""
    connection.cancel_safe()
    assert rules(recorder) == ["cancel request"]
    assert rules(recorder, "pgbouncer") == []


def test_a_plain_cancel_request_is_seen(recorder: Recorder) -> None:
    """Older libraries send it without TLS, and wait for the end of the connection.

    By hand: psycopg's cancel() would keep the recorder's thread from running meanwhile.
    """
    with socket.create_connection(("127.0.0.1", recorder.port), 10) as wire:
        wire.sendall(struct.pack("!iiii", 16, CANCEL, 1, 1))
        assert wire.recv(1) == b""
    assert rules(recorder) == ["cancel request"]


def test_a_cancel_request_reaches_the_server(connection: Connection) -> None:
    """A running statement ends by it."""
    connection.add_notice_handler(lambda _: connection.cancel_safe())
    block = "DO $$ BEGIN RAISE NOTICE 'now'; PERFORM pg_sleep(20); END $$"
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute(block)


def message(code: bytes, body: bytes) -> bytes:
    """Build a message of the protocol."""
    return code + struct.pack("!i", len(body) + 4) + body


def test_a_named_portal_is_seen(dsn: str, recorder: Recorder) -> None:
    """No driver at hand makes one, so the bytes are written by hand."""
    plain = make_conninfo(dsn, sslmode="disable")
    with psycopg.connect(plain) as connection:
        recorder.clear()
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.setblocking(True)
            wire.sendall(
                message(b"P", b"\0SELECT 1\0\0\0")
                + message(b"B", b"portal\0\0\0\0\0\0\0\0")
                + message(b"C", b"Pportal\0")
                + message(b"S", b"")
            )
            answer = b""
            while not answer.endswith(message(b"Z", b"I")):
                answer += wire.recv(1000)
    assert rules(recorder) == ["named portal", "named portal"]


CLEAN: list[Callable[[Connection], object]] = [
    lambda c: c.execute("SELECT %s", ["SET x = 1; LISTEN a"]),
    lambda c: c.execute("SELECT 'it''s; LISTEN a', E'\\'; SET x = 1', $a$; DISCARD ALL$a$"),
    lambda c: c.execute("/* ; SET a = 1 */ SELECT 1 -- ; DISCARD ALL"),
    lambda c: c.execute("SELECT 1 AS reset, 2 AS load, 3 AS listen"),
    lambda c: c.execute("BEGIN; SET LOCAL statement_timeout = 1000; COMMIT"),
    lambda c: c.execute("BEGIN; SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED; COMMIT"),
    lambda c: c.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; COMMIT"),
    lambda c: c.execute("BEGIN; SELECT set_config('a.b', 'c', true); COMMIT"),
    lambda c: c.execute("BEGIN; SELECT pg_advisory_xact_lock(1); COMMIT"),
    lambda c: c.execute("NOTIFY news"),
    lambda c: c.execute("SELECT length(%s)", ["x" * 100_000]),
    lambda c: c.cursor(binary=True).executemany("SELECT %s", [[1], [2]]),
]


def test_a_clean_session_breaks_no_rule(connection: Connection, recorder: Recorder) -> None:
    """Literals, comments and all that ends with its transaction are let be."""
    for use in CLEAN:
        use(connection)
    with connection.cursor().copy("COPY (SELECT generate_series(1, 9)) TO STDOUT") as copy:
        assert len(list(copy)) == 9
    connection.close()
    assert rules(recorder) == []


def test_round_trips_are_counted(connection: Connection, recorder: Recorder) -> None:
    """A login counts for none, a pipeline for one, a transaction block for three."""
    assert recorder.round_trips() == 0
    connection.execute("SELECT 1")
    assert recorder.round_trips() == 1
    recorder.clear()
    with connection.pipeline():
        for _ in range(5):
            connection.execute("SELECT %s", [1])
    assert recorder.round_trips() == 1
    recorder.clear()
    with connection.transaction():
        connection.execute("SELECT 1")
    assert recorder.round_trips() == 3
    assert recorder.queries == ["BEGIN", "SELECT 1", "COMMIT"]


def test_bulk_crosses_whole(connection: Connection) -> None:
    """Several megabytes of rows and of COPY arrive as they were sent."""
    text = "lambda" * 500_000
    assert connection.execute("SELECT %s || 'x'", [text]).fetchone() == (f"{text}x",)
    connection.execute("CREATE TABLE bulk (n int)")
    with connection.cursor().copy("COPY bulk FROM STDIN") as copy:
        for n in range(200_000):
            copy.write_row([n])
    assert connection.execute("SELECT count(*) FROM bulk").fetchone() == (200_000,)
    connection.execute("DROP TABLE bulk")


def test_something_is_done_at_a_statement(
    connection: Connection, recorder: Recorder, postgres: Postgres
) -> None:
    """It is done once, before the server has the statement, which is kept back on request."""
    done: list[str] = []
    with recorder.at("SELECT 2", lambda: done.append("2")):
        for n in (1, 2, 2):
            connection.execute(f"SELECT {n}")
    connection.execute("CREATE TABLE kept_back (n int)")
    with (
        recorder.at("INSERT", lambda: done.append("3"), deliver=False),
        pytest.raises(psycopg.OperationalError),
    ):
        connection.execute("INSERT INTO kept_back VALUES (1)")
    assert done == ["2", "3"]
    with psycopg.connect(postgres.superuser_dsn) as other:
        assert other.execute("SELECT count(*) FROM kept_back").fetchone() == (0,)
        other.execute("DROP TABLE kept_back")


def test_an_error_of_an_action_is_not_lost(postgres: Postgres, tmp_path: Path) -> None:
    """What an action raises ends the connection, and the recorder with that error."""

    def run() -> None:
        with Recorder(socket_of(postgres), tmp_path) as recorder:
            dsn = through(recorder, postgres)
            with psycopg.connect(dsn) as connection, recorder.at("SELECT 1", lambda: 1 // 0):
                connection.execute("SELECT 1")

    with pytest.raises(ZeroDivisionError):
        run()


def test_a_pooler_can_stand_behind_it(pooler: PoolerFixture, tmp_path: Path) -> None:
    """The way on is TLS, verified against the pooler's authority."""
    address = ("127.0.0.1", pooler.port)
    with Recorder(address, tmp_path, server_ca=pooler.ca_file) as recorder:
        dsn = make_conninfo(pooler.dsn(), port=recorder.port, sslrootcert=str(recorder.ca_file))
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert recorder.round_trips() == 1


def test_a_server_that_refuses_tls_is_not_left_connected(tmp_path: Path) -> None:
    """Both sides are closed at once, not when the recorder ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with Recorder(listener.getsockname(), tmp_path) as recorder:
            client = socket.create_connection(("127.0.0.1", recorder.port), 20)
            with client:
                client.sendall(struct.pack("!ii", 8, 3 << 16))
                server, _ = listener.accept()
                with server:
                    server.settimeout(20)
                    assert len(server.recv(8)) == 8
                    server.sendall(b"N")
                    assert server.recv(1) == b""
                assert client.recv(1) == b""
