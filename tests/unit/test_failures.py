"""The table that retries rest on, against messages of real servers, poolers and proxies."""

import re
import socket
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg._failures import (
    CONNECT_AGAIN,
    LOGIN_REFUSED,
    NOT_RUN,
    RESOLVER,
    Failure,
    classify_connect,
    classify_statement,
)
from psycopg import errors

from tests.support.failures import AT, pooler, said

# Captured: PostgreSQL 15 and 17, PgBouncer 1.24.1, libpq 18.
CAPTURED = [
    (AT + 'FATAL:  password authentication failed for user "app"', Failure.LOGIN_REFUSED),
    (AT + "FATAL:  SASL authentication failed", Failure.LOGIN_REFUSED),
    (AT + "FATAL:  sorry, too many clients already", Failure.NOT_RUN),
    (
        AT + "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER "
        "attribute",
        Failure.NOT_RUN,
    ),
    (
        AT + "FATAL:  remaining connection slots are reserved for non-replication superuser "
        "connections",
        Failure.NOT_RUN,
    ),
    (AT + 'FATAL:  too many connections for role "app"', Failure.NOT_RUN),
    (AT + 'FATAL:  too many connections for database "app"', Failure.NOT_RUN),
    (AT + "FATAL:  the database system is starting up", Failure.NOT_RUN),
    (AT + "FATAL:  the database system is shutting down", Failure.NOT_RUN),
    (AT + "FATAL:  the database system is in recovery mode", Failure.NOT_RUN),
    (
        AT + "FATAL:  the database system is not yet accepting connections\n"
        "DETAIL:  Consistent recovery state has not been yet reached.",
        Failure.NOT_RUN,
    ),
    (
        AT + "FATAL:  the database system is not accepting connections\n"
        "DETAIL:  Hot standby mode is disabled.",
        Failure.NOT_RUN,
    ),
    (AT + "FATAL:  terminating connection due to administrator command", Failure.NOT_RUN),
    (AT + "FATAL:  no more connections allowed (max_client_conn)", Failure.NOT_RUN),
    (AT + "FATAL:  client connections exceeded (max_db_client_connections)", Failure.NOT_RUN),
    (AT + "FATAL:  server shutting down", Failure.NOT_RUN),
    (AT + "FATAL:  pgbouncer cannot connect to server", Failure.NOT_RUN),
    (AT + "FATAL:  query_wait_timeout", Failure.NOT_RUN),
    (AT + "FATAL:  client_login_timeout (server down)", Failure.NOT_RUN),
    (
        AT + "FATAL:  server login has been failing, cached error: connect failed "
        "(server_login_retry)",
        Failure.NOT_RUN,
    ),
    (AT + "Connection refused\n\tIs the server running on that host", Failure.NOT_RUN),
    (AT + "could not receive data from server: Connection reset by peer", Failure.NOT_RUN),
    (AT + "could not send data to server: Broken pipe", Failure.NOT_RUN),
    (AT + "Connection timed out", Failure.NOT_RUN),
    (AT + "Network is unreachable", Failure.NOT_RUN),
    (AT + "No route to host", Failure.NOT_RUN),
    (AT + "server closed the connection unexpectedly", Failure.NOT_RUN),
    (AT + "SSL SYSCALL error: EOF detected", Failure.NOT_RUN),
    (AT + "SSL error: unexpected eof while reading", Failure.NOT_RUN),
    (AT + "SSL connection has been closed unexpectedly", Failure.NOT_RUN),
    ("connection timeout expired: no answer from direct db.example:5432", Failure.NOT_RUN),
    ("cannot resolve db.example: Temporary failure in name resolution", Failure.NOT_RUN),
    ("cannot resolve db..example: it is not the name of a host", Failure.FINAL),
    (AT + 'FATAL:  database "nope" does not exist', Failure.FINAL),
    (AT + "FATAL:  no such database: nope", Failure.FINAL),
    (AT + 'FATAL:  role "app" is not permitted to log in', Failure.FINAL),
    (AT + 'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app"', Failure.FINAL),
    (AT + "SSL error: certificate verify failed", Failure.FINAL),
    (AT + 'server certificate for "a" does not match host name "127.0.0.1"', Failure.FINAL),
    ("something that nobody has seen yet", Failure.FINAL),
]

# The troubleshooting page of RDS Proxy in the RDS User Guide; the first line of RDS itself.
RDS = [
    ('PAM authentication failed for user "app"', Failure.LOGIN_REFUSED),
    ("The password that was provided for the role app is wrong.", Failure.LOGIN_REFUSED),
    (
        (
            "This RDS proxy has no credentials for the role app. Check the credentials for this "
            "role and try again."
        ),
        Failure.LOGIN_REFUSED,
    ),
    (
        "IAM authentication failed for user app. Check the IAM token for this user and try again.",
        Failure.LOGIN_REFUSED,
    ),
    (
        (
            "The IAM authentication failed for the role app. Check the IAM token for this role and "
            "try again."
        ),
        Failure.LOGIN_REFUSED,
    ),
    (
        "The IAM authentication failed because of too many competing requests.",
        Failure.NOT_RUN,
    ),
    ("Timed-out waiting to acquire database connection.", Failure.NOT_RUN),
    ("The maximum number of client connections to the proxy exceeded 100.", Failure.NOT_RUN),
    ("Rate of connection to proxy exceeded 100.", Failure.NOT_RUN),
    ("This RDS Proxy requires TLS connections", Failure.FINAL),
    ("IAM authentication is allowed only with SSL connections.", Failure.FINAL),
    ("RDS supports only IAM or MD5 authentication.", Failure.FINAL),
    (
        "Feature not supported: RDS Proxy currently doesn't support the option options.",
        Failure.FINAL,
    ),
    ('Request returned an error: database "nope" does not exist', Failure.FINAL),
    ("Unknown error.", Failure.FINAL),
]

# lib/supavisor/errors of supabase/supavisor; those without a code from the versions before.
SUPAVISOR = [
    ('password authentication failed for user "postgres"', Failure.LOGIN_REFUSED),
    ("(EMAXCONN) max client connections reached, limit: 200", Failure.NOT_RUN),
    ("(EMAXCLIENTCONN) max client connections reached, limit: 200", Failure.NOT_RUN),
    ("(EMAXPROXYCONN) max proxy connections reached, limit: 200", Failure.NOT_RUN),
    (
        (
            "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to "
            "pool_size: 15"
        ),
        Failure.NOT_RUN,
    ),
    (
        (
            "(EMAXCLIENTSESSION) max clients reached in session mode - max clients are limited to "
            "pool_size: 15"
        ),
        Failure.NOT_RUN,
    ),
    ("Max client connections reached", Failure.NOT_RUN),
    (
        (
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are "
            "limited to pool_size"
        ),
        Failure.NOT_RUN,
    ),
    (
        (
            "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms in "
            "Session mode"
        ),
        Failure.NOT_RUN,
    ),
    ("Unable to check out process from the pool due to timeout", Failure.NOT_RUN),
    (
        "(EDBHANDLEREXITED) connection to database closed. Check logs for more information",
        Failure.NOT_RUN,
    ),
    ("DbHandler exited", Failure.NOT_RUN),
    (
        "(EAUTHQUERY) authentication query failed: connection to database not available",
        Failure.NOT_RUN,
    ),
    ("(EAUTHQUERY) user not found in the database", Failure.FINAL),
    ("Tenant or user not found", Failure.FINAL),
    ("(ENOTFOUND) tenant/user postgres.abcdefgh not found", Failure.FINAL),
    ("(ECIRCUITBREAKER) too many authentication failures", Failure.FINAL),
    ("SSL connection is required", Failure.FINAL),
    ("Address not in tenant allow_list: {10, 0, 0, 1}", Failure.FINAL),
]

# proxy/src of neondatabase/neon: control_plane, auth and compute.
NEON = [
    ("password authentication failed for user 'app'", Failure.LOGIN_REFUSED),
    ("Couldn't connect to compute node", Failure.NOT_RUN),
    ("Control plane request failed", Failure.NOT_RUN),
    ("Console request failed", Failure.NOT_RUN),
    (
        (
            "Failed to acquire permit to connect to the database. Too many database connection "
            "attempts are currently ongoing."
        ),
        Failure.NOT_RUN,
    ),
    ("Too many connections attempts", Failure.NOT_RUN),
    ("Too many connections to this endpoint. Please try again later.", Failure.NOT_RUN),
    ("Control plane request failed: endpoint is disabled", Failure.FINAL),
    ("Control plane request failed: endpoint cannot be found", Failure.FINAL),
    (
        (
            "Control plane request failed: endpoint is temporarily unavailable. Check your quotas "
            "and/or contact our support."
        ),
        Failure.FINAL,
    ),
    ("The endpoint has been disabled. Enable it using the API and retry.", Failure.FINAL),
    ("Your account or project has exceeded the compute time quota.", Failure.FINAL),
    ("Endpoint ID is not specified.", Failure.FINAL),
]

CONNECT = [
    *CAPTURED,
    *((f"{AT}FATAL:  {text}", failure) for text, failure in [*RDS, *SUPAVISOR]),
    *((f"{AT}ERROR:  {text}", failure) for text, failure in NEON),
]


@pytest.mark.parametrize(("text", "expected"), CONNECT)
def test_connect_failures(text: str, expected: Failure) -> None:
    """Each known refusal of a connect is classified; an unknown one is final."""
    assert classify_connect(psycopg.OperationalError(text)) is expected


@pytest.mark.parametrize("pattern", [*LOGIN_REFUSED, *CONNECT_AGAIN])
def test_no_pattern_is_without_its_message(pattern: str) -> None:
    """What the table knows was said by something: each pattern fits one of the messages above."""
    fitting = [failure for text, failure in CONNECT if re.search(pattern, text)]
    assert set(fitting) <= {Failure.NOT_RUN, Failure.LOGIN_REFUSED}
    assert fitting


def test_one_of_several_addresses_may_answer_later() -> None:
    """Each address has its own line in the text; one that may come back is enough."""
    text = f"{AT}ERROR:  Control plane request failed\n{AT}ERROR:  something else"
    assert classify_connect(psycopg.OperationalError(text)) is Failure.NOT_RUN


def test_a_connect_that_timed_out_may_be_tried_again() -> None:
    """A timeout is known by its type, whatever its text."""
    assert classify_connect(errors.ConnectionTimeout("late")) is Failure.NOT_RUN


STATEMENT = [
    (said("ERROR", "40001", "could not serialize access"), Failure.ROLLED_BACK),
    (said("ERROR", "40P01", "deadlock detected"), Failure.ROLLED_BACK),
    # PgBouncer's own, and what a server said to it
    (pooler("08P01", "server shutting down"), Failure.NOT_RUN),
    (pooler("08P01", "query_wait_timeout"), Failure.NOT_RUN),
    (
        pooler("08P01", "server login has been failing, cached error: x (server_login_retry)"),
        Failure.NOT_RUN,
    ),
    (pooler("08P01", "server login failed: wrong password type"), Failure.NOT_RUN),
    (pooler("08P01", "pgbouncer cannot connect to server"), Failure.NOT_RUN),
    (pooler("08P01", "no more connections allowed (max_client_conn)"), Failure.NOT_RUN),
    (pooler("08P01", "sorry, too many clients already"), Failure.NOT_RUN),
    (pooler("08P01", "remaining connection slots are reserved for x"), Failure.NOT_RUN),
    (pooler("08P01", "SASL authentication failed"), Failure.LOGIN_REFUSED),
    (pooler("28P01", 'password authentication failed for user "app"'), Failure.LOGIN_REFUSED),
    (pooler("53300", "sorry, too many clients already"), Failure.NOT_RUN),
    (pooler("57P03", "the database system is starting up"), Failure.NOT_RUN),
    (pooler("08P01", "server conn crashed?"), Failure.LOST),
    (pooler("08P01", "query timeout"), Failure.LOST),
    (pooler("3D000", 'database "nope" does not exist'), Failure.FINAL),
    (pooler("28000", 'role "app" is not permitted to log in'), Failure.FINAL),
    # RDS Proxy and Supavisor
    (pooler("08000", "Timed-out waiting to acquire database connection."), Failure.NOT_RUN),
    (
        said("ERROR", "08000", "Timed-out waiting to acquire database connection."),
        Failure.NOT_RUN,
    ),
    (
        pooler("XX000", "(ECHECKOUTTIMEOUT) Pool checkout timeout. Request was dropped"),
        Failure.NOT_RUN,
    ),
    (
        pooler("XX000", "Unable to check out process from the pool due to timeout"),
        Failure.NOT_RUN,
    ),
    (pooler("XX000", "(EDBHANDLEREXITED) connection to database closed."), Failure.LOST),
    # PostgreSQL
    (said("FATAL", "57P01", "terminating connection due to administrator command"), Failure.LOST),
    (said("ERROR", "57P01", "terminating connection due to administrator command"), Failure.LOST),
    (said("WARNING", "57P02", "terminating connection because of crash"), Failure.LOST),
    (said("FATAL", "57P05", "terminating connection due to idle-session timeout"), Failure.LOST),
    (said("FATAL", "XX000", "could not find the relation map"), Failure.LOST),
    (said("PANIC", "53100", "could not write to file: No space left on device"), Failure.LOST),
    (
        said("FATAL", "25P03", "terminating connection due to idle-in-transaction timeout"),
        Failure.TOO_LONG,
    ),
    (
        said("FATAL", "25P04", "beende Verbindung wegen Zeitüberschreitung der Transaktion"),
        Failure.TOO_LONG,
    ),
    (said("ERROR", "25P03", "raised by hand"), Failure.FINAL),
    (said("ERROR", "25P04", "raised by hand"), Failure.FINAL),
    (pooler("08P01", "idle transaction timeout"), Failure.TOO_LONG),
    (pooler("08P01", "transaction timeout"), Failure.LOST),  # it may have met a COMMIT at work
    (said("ERROR", "08P01", "idle transaction timeout"), Failure.LOST),
    (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.LOST),
    (psycopg.OperationalError("consuming input failed: connection reset"), Failure.LOST),
    (said("ERROR", "25006", "cannot execute INSERT in a read-only transaction"), Failure.NOT_ABLE),
    (said("ERROR", "53100", "could not extend file: No space left on device"), Failure.NOT_ABLE),
    (said("ERROR", "53200", "out of shared memory"), Failure.NOT_ABLE),
    (said("ERROR", "53400", "temporary file size exceeds temp_file_limit"), Failure.FINAL),
    (
        said("ERROR", "55P03", "Abbruch wegen Sperren-Timeout", source="ProcessInterrupts"),
        Failure.NOT_ABLE,
    ),
    (
        said("ERROR", "55P03", "could not obtain lock on row", source="heap_lock_tuple"),
        Failure.FINAL,
    ),
    (said("ERROR", "55P03", "raised by hand", source="exec_stmt_raise"), Failure.FINAL),
    (said("ERROR", "55P03", "from somewhere that does not tell its source"), Failure.FINAL),
    (said("ERROR", "40003", "result is ambiguous"), Failure.LOST),
    (said("ERROR", "23505", "duplicate key value"), Failure.FINAL),
    (said("ERROR", "57014", "canceling statement due to statement timeout"), Failure.FINAL),
    (said("ERROR", "XX000", "cache lookup failed for relation 1"), Failure.FINAL),
]


@pytest.mark.parametrize(("error", "expected"), STATEMENT, ids=lambda value: str(value)[:60])
def test_statement_failures(error: psycopg.Error, expected: Failure) -> None:
    """What certainly did not run differs from what may have run."""
    assert classify_statement(error, broken=True) is expected


@pytest.mark.parametrize(("sqlstate", "pattern"), NOT_RUN)
def test_no_refusal_is_without_its_message(sqlstate: str, pattern: str) -> None:
    """Each entry of the table fits one of the messages above."""
    texts = [str(error) for error, _ in STATEMENT if error.sqlstate == sqlstate]
    assert any(re.search(pattern, text) for text in texts)


@pytest.mark.parametrize("text", ["server closed the connection", "too many parameters"])
def test_an_error_on_a_connection_that_lives_is_not_a_loss(text: str) -> None:
    """Errors of libpq's own have no SQLSTATE either, and say nothing of the connection."""
    error = psycopg.OperationalError(text)
    assert classify_statement(error, broken=False) is Failure.FINAL


REFUSALS = [
    "server shutting down",
    "query_wait_timeout",
    "password authentication failed",
    "(ECHECKOUTTIMEOUT) Pool checkout timeout",
    "sorry, too many clients already",
]


@pytest.mark.parametrize("text", REFUSALS)
@pytest.mark.parametrize("sqlstate", ["P0001", "23505", "22P02", "08P01", "57P01", "XX000"])
def test_what_a_statement_says_does_not_count(sqlstate: str, text: str) -> None:
    """An error from within a statement makes it no more repeatable by quoting a pooler's message.

    A function may raise whatever it likes, a foreign server's refusal has its own SQLSTATE here,
    and a procedure may have committed before that.
    """
    assert classify_statement(said("ERROR", sqlstate, text), broken=False) is Failure.FINAL


AGAIN = {Failure.NOT_RUN, Failure.LOGIN_REFUSED, Failure.ROLLED_BACK, Failure.NOT_ABLE}
PATTERNS = "|".join([*LOGIN_REFUSED, *CONNECT_AGAIN, *(text for _, text in NOT_RUN if text)])
UNKNOWN_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(
    lambda text: not re.search(PATTERNS, text)
)
SQLSTATE = st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=5, max_size=5)
KNOWN_STATES = {
    *("25P03", "25P04"),
    *("40001", "40003", "40P01", "08007", "28P01", "25006", "53000", "53100", "53200", "55P03"),
    *(known for known, text in NOT_RUN if not text),
}
SEVERITY = st.sampled_from(["ERROR", "FATAL", "PANIC", "FEHLER", ""])


@given(text=UNKNOWN_TEXT)
def test_an_unknown_connect_failure_is_final(text: str) -> None:
    """Whatever the table does not know is not tried again."""
    assert classify_connect(psycopg.OperationalError(text)) is Failure.FINAL


@given(
    text=UNKNOWN_TEXT,
    sqlstate=(SQLSTATE | st.sampled_from(["08P01", "08000", "XX000"])).filter(
        lambda state: state not in KNOWN_STATES
    ),
    severity=SEVERITY,
    server=st.booleans(),
    broken=st.booleans(),
)
def test_an_unknown_statement_failure_is_never_repeated(
    text: str, sqlstate: str, severity: str, server: bool, broken: bool
) -> None:
    """No SQLSTATE, severity or text outside the table tells that a statement did not run."""
    failure = classify_statement(said(severity, sqlstate, text, server=server), broken=broken)
    assert failure not in AGAIN
    assert broken or failure is Failure.FINAL


@given(text=st.text(), sqlstate=SQLSTATE)
def test_no_error_from_within_a_statement_is_repeated(text: str, sqlstate: str) -> None:
    """Only the SQLSTATE is believed of an ERROR, whatever its text says."""
    failure = classify_statement(said("ERROR", sqlstate, text), broken=False)
    assert failure is classify_statement(said("ERROR", sqlstate, ""), broken=False)
    assert failure not in {Failure.NOT_RUN, Failure.LOGIN_REFUSED}


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "failures.md").read_text()
DECISIONS = {
    "final": Failure.FINAL,
    "login": Failure.LOGIN_REFUSED,
    "not able now": Failure.NOT_ABLE,
    "not run": Failure.NOT_RUN,
    "rolled back": Failure.ROLLED_BACK,
    "too long": Failure.TOO_LONG,
    "unknown": Failure.LOST,
}
STATE_ROWS = {
    row[0]: (DECISIONS[row[1]], DECISIONS[row[2]], row[3])
    for row in re.findall(
        r"(?m)^\| `([0-9A-Z]{2,5})` \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE
    )
}
KNOWN = sorted(code for code in errors._sqlcodes if re.fullmatch("[0-9A-Z]{5}", code))


def _row(sqlstate: str) -> tuple[Failure, Failure, str]:
    """Return the longest entry of the documented table that fits."""
    fitting = [key for key in STATE_ROWS if sqlstate.startswith(key)]
    assert fitting, f"docs/failures.md lacks {sqlstate}"
    return STATE_ROWS[max(fitting, key=len)]


@pytest.mark.parametrize("sqlstate", KNOWN)
def test_every_sqlstate_is_decided_as_documented(sqlstate: str) -> None:
    """Each SQLSTATE that psycopg knows has one decision for ERROR and one for FATAL."""
    on_error, on_fatal, reason = _row(sqlstate)
    answered = said("ERROR", sqlstate, "", source="ProcessInterrupts")
    ended = said("FATAL", sqlstate, "")
    assert classify_statement(answered, broken=False) is on_error
    assert classify_statement(ended, broken=True) is on_fatal
    assert reason.strip()


def test_the_documented_table_has_no_class_that_is_not_there() -> None:
    """Each entry of the page is a class or an SQLSTATE that psycopg knows."""
    assert len(KNOWN) > 200
    assert not [key for key in STATE_ROWS if not any(code.startswith(key) for code in KNOWN)]


def test_every_error_of_the_resolver_is_decided_as_documented() -> None:
    """Each EAI_ constant of this system is in the table, and the page says the same."""
    rows = re.findall(r"(?m)^\| `(EAI_[A-Z]+)` \| ([^|]+) \| [^|]+ \|$", PAGE)
    assert {name: DECISIONS[decision] for name, decision in rows} == RESOLVER
    here = {name for name in dir(socket) if name.startswith("EAI_")} - {"EAI_MAX"}
    assert here <= set(RESOLVER)
