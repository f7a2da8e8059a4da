"""What run_text() checks before it sends anything."""

import time

import psycopg
import pytest
from lambda_pg._connection import Modes
from lambda_pg._flight import Order, order
from lambda_pg._profiles import RDS_PROXY
from lambda_pg._statements import first_words
from lambda_pg.text import Limits, Statement
from psycopg import IsolationLevel

LIMITS = Limits(rows=1, bytes=1)


def ordered(*queries: str, modes: Modes | None = None, idempotent: bool = False) -> Order:
    """Order statements without parameters."""
    statements = [Statement(query) for query in queries]
    return order(statements, LIMITS, None, modes or Modes(), idempotent=idempotent)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", []),
        ("-- SELECT 1", []),
        ("SELECT 1", ["select", "1"]),
        (";;/* a /* b */ */ ((Values (1)))", ["values", "1", ")"]),
        ("ROLLBACK WORK TO a", ["rollback", "work", "to"]),
        ('"copy" x', ['"copy"', "x"]),
    ],
)
def test_the_first_words_of_a_statement(query: str, words: list[str]) -> None:
    """Without comments and parentheses."""
    assert first_words(query) == words


@pytest.mark.parametrize(
    ("modes", "text"),
    [
        (Modes(), b"BEGIN"),
        (
            Modes(IsolationLevel.REPEATABLE_READ, True, False),
            b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE",
        ),
        (
            Modes(IsolationLevel.SERIALIZABLE, False, True),
            b"BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE DEFERRABLE",
        ),
    ],
)
def test_begin_has_the_options(modes: Modes, text: bytes) -> None:
    """Those that were given."""
    assert ordered(modes=modes).begin.text == text


@pytest.mark.parametrize(
    ("queries", "asks"),
    [
        ([], False),
        (["SELECT 1", "(VALUES (1))", "table t", "show all", "explain select 1", ""], False),
        (["SELECT 1", "INSERT INTO t VALUES (1)"], True),
        (["WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a"], True),
        (["CALL p()"], True),
    ],
)
def test_only_what_may_write_asks_for_its_id(queries: list[str], asks: bool) -> None:
    """It costs a packet; the outcome of reads and idempotent calls is not looked up."""
    assert ordered(*queries).asks is asks
    assert not ordered(*queries, idempotent=True).asks
    assert not ordered(*queries, modes=Modes(read_only=True)).asks


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("SELECT 1", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("SELECT set_config('a.b', 'c', false)", False),
        ("SELECT set_config('a.b', 'c', true)", True),
        ("SELECT pg_advisory_lock(1)", False),
        ("CALL p()", False),
        ("DISCARD ALL", False),
        ("SAVEPOINT a", False),
    ],
)
def test_what_rds_proxy_would_pin_for_is_not_plain(query: str, plain: bool) -> None:
    """Nor is what may hide such a statement."""
    assert ordered("SELECT 1", query).is_plain(RDS_PROXY) is plain


@pytest.mark.parametrize(
    "query",
    [
        "\n\t; COMMIT",
        "/* a /* b */ */\fEND",
        "-- a\rROLLBACK AND CHAIN",
        "PREPARE/**/TRANSACTION 'a'",
        "PREPARE -- a\n TRANSACTION 'a'",
    ],
)
def test_the_end_of_the_transaction_is_refused(query: str) -> None:
    """After it, nothing of the flight could end what stays in the session."""
    with pytest.raises(psycopg.errors.InvalidTransactionTermination):
        ordered(query)


@pytest.mark.parametrize("blank", ["\n", " ", ";", "\r\n", "; ", "*/"])
def test_a_long_statement_of_blanks_is_read_in_no_time(blank: str) -> None:
    """A search that looks at each of them again for each takes a minute."""
    began = time.perf_counter()
    ordered("SELECT 1" + blank * 40_000)
    assert time.perf_counter() - began < 5.0


def test_a_long_statement_is_not_looked_at() -> None:
    """RDS Proxy pins on it anyway; 100 KB of calls that nest took 20 s."""
    count = 5_000
    nested = "SELECT " + "set_config('a.b'," * count + "''" + ",true)" * count
    began = time.perf_counter()
    assert not ordered(nested).is_plain(RDS_PROXY)
    assert time.perf_counter() - began < 5.0


def test_a_refused_statement_stays_refused() -> None:
    """Although its text is remembered."""
    for _ in range(2):
        with pytest.raises(psycopg.errors.InvalidTransactionTermination):
            ordered("COMMIT")
