"""Two Databases in one handler: through the pooler and past it, bound together or one alone."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import psycopg
import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from lambda_pg import Database, DatabaseUnavailableError, DeadlineExceededError
from psycopg.rows import TupleRow

from tests.support.context import Context
from tests.support.layer import scalar, settings_for
from tests.support.servers import PoolerFixture

Pair = tuple[Database[TupleRow], Database[TupleRow]]
Handler = Callable[[object, Context], object]


@pytest.fixture
def pooler(kept_pooler: PoolerFixture) -> PoolerFixture:
    """The pooler of this module: a test that ends it starts it again."""
    return kept_pooler


@pytest.fixture
def open_pair(pooler: PoolerFixture, secrets_environment: None) -> Iterator[Callable[[], Pair]]:
    """Make one database through the pooler and one past it, with one secret, as a handler does."""
    with ExitStack() as opened:

        def make() -> Pair:
            settings = settings_for(pooler)
            pooled = Database(replace(settings, metrics=True))
            direct = Database(
                replace(
                    settings,
                    port=pooler.postgres.port,
                    profile="direct",
                    ca_pem=None,
                    sslrootcert=pooler.postgres.ca_file,
                    metrics=True,
                )
            )
            opened.callback(pooled.close)
            opened.callback(direct.close)
            return pooled, direct

        yield make


@pytest.fixture
def pair(open_pair: Callable[[], Pair]) -> Pair:
    """One pair."""
    return open_pair()


def pooled_outside(pair: Pair, handler: Handler) -> Handler:
    """Bind the direct one first."""
    return pair[0].bind_lambda_context(pair[1].bind_lambda_context(handler))


def direct_outside(pair: Pair, handler: Handler) -> Handler:
    """Bind the pooled one first."""
    return pair[1].bind_lambda_context(pair[0].bind_lambda_context(handler))


BOTH_ORDERS = pytest.mark.parametrize("bind", [pooled_outside, direct_outside])


@BOTH_ORDERS
@pytest.mark.parametrize("slow", [0, 1])
def test_the_deadline_holds_for_both(
    pair: Pair, bind: Callable[[Pair, Handler], Handler], slow: int
) -> None:
    """Whichever is waited for; the next invocation has its own."""

    def handler(event: object, context: Context) -> None:
        assert [scalar(db, "SELECT 1") for db in pair] == [1, 1]
        pair[slow].execute("SELECT pg_sleep(60)")

    bound = bind(pair, handler)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        bound(None, Context(2))
    assert time.monotonic() - began < 10
    served = bind(pair, lambda _event, _context: [scalar(db, "SELECT 1") for db in pair])
    assert served(None, Context(30)) == [1, 1]
    assert [db._invocations.deadline for db in pair] == [float("inf")] * 2


@BOTH_ORDERS
def test_a_leak_of_each_is_reported_once(
    pair: Pair, bind: Callable[[Pair, Handler], Handler], caplog: pytest.LogCaptureFixture
) -> None:
    """With the request's id, and each in its own numbers; nothing stays open."""

    def handler(event: object, context: Context) -> list[psycopg.Connection[TupleRow]]:
        return [db.getconn() for db in pair]

    with caplog.at_level(logging.WARNING, "lambda_pg"):
        left = bind(pair, handler)(None, Context(30, "the-request"))
    told = [record for record in caplog.records if record.__dict__.get("event") == "leak"]
    assert [record.__dict__["aws_request_id"] for record in told] == ["the-request"] * 2
    assert isinstance(left, list)
    assert all(connection.closed for connection in left)
    for db in pair:
        assert (db.stats()["leaks"], db.stats()["pool_size"]) == (1, 0)
        assert scalar(db, "SELECT 1") == 1


@BOTH_ORDERS
def test_what_both_count_adds_up(
    pair: Pair, bind: Callable[[Pair, Handler], Handler], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of metrics each, for one function: CloudWatch adds them, and nothing is double."""

    def handler(event: object, context: Context) -> None:
        for db, count in zip(pair, (2, 3), strict=True):
            for _ in range(count):
                db.execute("SELECT 1")

    bound = bind(pair, handler)
    for invocation in ("first", "second"):
        bound(None, Context(30, invocation))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sorted(line["Checkouts"] for line in lines) == [2, 3]
        assert {line["AwsRequestId"] for line in lines} == {invocation}
        connects = [line["Connects"] for line in lines if "Connects" in line]
        assert connects == ([1, 1] if invocation == "first" else [])


def test_one_bound_twice_by_two_handlers_counts_once(
    pair: Pair, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A bound handler that calls another one is one invocation, with one end and one deadline."""
    pooled, direct = pair

    @direct.bind_lambda_context
    @pooled.bind_lambda_context
    def inner(event: object, context: Context) -> object:
        direct.getconn()
        return scalar(pooled, "SELECT 7")

    @pooled.bind_lambda_context
    def outer(event: object, context: Context) -> object:
        answer = inner(event, context)
        with pytest.raises(DeadlineExceededError):
            pooled.execute("SELECT pg_sleep(20)")
        return answer

    with caplog.at_level(logging.WARNING, "lambda_pg"):
        assert outer(None, Context(3)) == 7
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["Checkouts"] for line in lines] == [1, 2]
    assert sum(line.get("Leaks", 0) for line in lines) == 1
    assert [record.__dict__["event"] for record in caplog.records].count("leak") == 1


def test_one_that_is_not_bound_is_left_alone(pair: Pair) -> None:
    """It has no deadline, its connections stay in hand, and the bound one's end is its own."""
    bound, free = pair
    for db in pair:
        db.execute("SELECT 1")

    @bound.bind_lambda_context
    def handler(event: object, context: Context) -> tuple[psycopg.Connection[TupleRow], object]:
        return bound.getconn(), scalar(free, "SELECT 1 FROM pg_sleep(1.5)")

    leaked, row = handler(None, Context(1.5))  # 1 s for what is bound
    assert row == 1
    assert leaked.closed
    assert (bound.stats()["leaks"], free.stats()["leaks"]) == (1, 0)
    connection = free.getconn()
    bound.bind_lambda_context(lambda _event, _context: None)(None, Context(30))
    assert connection.execute("SELECT 7").fetchone() == (7,)
    free.putconn(connection)


def test_a_failure_of_one_does_not_stop_the_other(pair: Pair, pooler: PoolerFixture) -> None:
    """Each has its own breaker, budget and slots."""
    pooled, direct = pair
    for db in pair:
        db.execute("SELECT 1")
    pooler.process.kill()

    @pooled.bind_lambda_context
    @direct.bind_lambda_context
    def handler(event: object, context: Context) -> object:
        with pytest.raises(DatabaseUnavailableError):
            pooled.execute("SELECT 1", idempotent=True)
        return scalar(direct, "SELECT 7")

    for _ in range(4):
        assert handler(None, Context(2)) == 7
    pooler.start()
    assert direct.stats()["requests_errors"] == 0


def test_a_snapshot_has_neither_s_connections_nor_secrets(
    monkeypatch: pytest.MonkeyPatch, open_pair: Callable[[], Pair]
) -> None:
    """Both forget before it and after it, and both are served then."""
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    monkeypatch.setattr(snapshot_restore_py, "_before_snapshot_registry", [])
    monkeypatch.setattr(snapshot_restore_py, "_after_restore_registry", [])
    pair = open_pair()
    for db in pair:
        db.execute("SELECT 1")
    run_before_snapshot()
    for db in pair:
        assert db.stats()["pool_size"] == 0
        assert db._credentials._cached is None
    run_after_restore()
    assert [scalar(db, "SELECT 1") for db in pair] == [1, 1]


def test_closing_or_forgetting_one_leaves_the_other(pair: Pair) -> None:
    """Nothing is shared between them."""
    pooled, direct = pair
    for db in pair:
        db.execute("SELECT 1")
    pooled.close()
    pooled.forget()
    assert (pooled.stats()["pool_size"], direct.stats()["pool_size"]) == (0, 1)
    assert direct._credentials._cached is not None
    assert [scalar(db, "SELECT 1") for db in pair] == [1, 1]
    assert (pooled.stats()["connections_num"], direct.stats()["connections_num"]) == (2, 1)
