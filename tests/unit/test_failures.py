"""The table that retries rest on, against messages captured from real servers."""

import psycopg
import pytest
from lambda_pg._failures import Failure, classify_connect, classify_statement
from psycopg import errors

# Captured: PostgreSQL 15 and 17, PgBouncer 1.24.1, libpq 18.
CONNECT = [
    (
        'connection failed: FATAL:  password authentication failed for user "app"',
        Failure.LOGIN_REFUSED,
    ),
    ("connection failed: FATAL:  SASL authentication failed", Failure.LOGIN_REFUSED),
    ("connection failed: FATAL:  sorry, too many clients already", Failure.NOT_RUN),
    ("connection failed: FATAL:  remaining connection slots are reserved for", Failure.NOT_RUN),
    ("connection failed: FATAL:  no more connections allowed (max_client_conn)", Failure.NOT_RUN),
    ("connection failed: FATAL:  the database system is starting up", Failure.NOT_RUN),
    ("connection failed: FATAL:  the database system is shutting down", Failure.NOT_RUN),
    ("connection failed: Connection refused\n\tIs the server running", Failure.NOT_RUN),
    ("connection failed: server closed the connection unexpectedly", Failure.NOT_RUN),
    ("connection failed: SSL SYSCALL error: EOF detected", Failure.NOT_RUN),
    ('connection failed: FATAL:  database "nope" does not exist', Failure.FINAL),
    ("connection failed: SSL error: certificate verify failed", Failure.FINAL),
    ('server certificate for "a" does not match host name "127.0.0.1"', Failure.FINAL),
    ("something that nobody has seen yet", Failure.FINAL),
]


@pytest.mark.parametrize(("text", "expected"), CONNECT)
def test_connect_failures(text: str, expected: Failure) -> None:
    """Each captured refusal of a connect is classified; an unknown one is final."""
    assert classify_connect(psycopg.OperationalError(text)) is expected


def test_a_connect_that_timed_out_may_be_tried_again() -> None:
    """A timeout is told by its type, whatever its text."""
    assert classify_connect(errors.ConnectionTimeout("late")) is Failure.NOT_RUN


STATEMENT = [
    (errors.SerializationFailure("could not serialize access"), Failure.ROLLED_BACK),
    (errors.DeadlockDetected("deadlock detected"), Failure.ROLLED_BACK),
    (errors.ProtocolViolation("FATAL:  server shutting down"), Failure.NOT_RUN),
    (errors.ProtocolViolation("FATAL:  query_wait_timeout"), Failure.NOT_RUN),
    (
        errors.ProtocolViolation("FATAL:  server login has been failing, cached error: x"),
        Failure.NOT_RUN,
    ),
    (errors.ProtocolViolation("SASL authentication failed"), Failure.LOGIN_REFUSED),
    (errors.TooManyConnections("sorry, too many clients already"), Failure.NOT_RUN),
    (errors.AdminShutdown("terminating connection due to administrator command"), Failure.LOST),
    (errors.InvalidPassword("password authentication failed"), Failure.LOGIN_REFUSED),
    (errors.ProtocolViolation("server conn crashed?"), Failure.LOST),
    (errors.CrashShutdown("terminating connection because of crash"), Failure.LOST),
    (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.LOST),
    (psycopg.OperationalError("consuming input failed: connection reset"), Failure.LOST),
    (errors.UniqueViolation("duplicate key"), Failure.FINAL),
    (errors.QueryCanceled("canceling statement due to statement timeout"), Failure.FINAL),
]


@pytest.mark.parametrize(("error", "expected"), STATEMENT)
def test_statement_failures(error: psycopg.Error, expected: Failure) -> None:
    """What certainly did not run is told apart from what may have."""
    assert classify_statement(error, broken=True) is expected


@pytest.mark.parametrize("text", ["server closed the connection", "too many parameters"])
def test_an_error_on_a_connection_that_lives_is_not_a_loss(text: str) -> None:
    """Errors of libpq's own have no SQLSTATE either, and say nothing of the connection."""
    error = psycopg.OperationalError(text)
    assert classify_statement(error, broken=False) is Failure.FINAL


@pytest.mark.parametrize(
    "text", ["server shutting down", "password authentication failed", "query_wait_timeout"]
)
@pytest.mark.parametrize(
    "kind", [errors.RaiseException, errors.UniqueViolation, errors.InvalidTextRepresentation]
)
def test_a_callers_text_in_an_sql_error_does_not_count(
    kind: type[psycopg.Error], text: str
) -> None:
    """A value that quotes a pooler's message does not make its statement repeatable."""
    assert classify_statement(kind(text), broken=False) is Failure.FINAL
