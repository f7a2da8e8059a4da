"""Handlers in the tests of those who write them: contexts, calls and clocks as they come there."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import boto3
import psycopg
import pytest
from freezegun import freeze_time
from lambda_pg import (
    CredentialsError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
)
from lambda_pg.testing import LambdaContext, Server
from moto import mock_aws
from psycopg.rows import TupleRow

from tests.support.layer import scalar

pytest_plugins = ["lambda_pg.testing"]

ANSWER = "SELECT 1"
LONG = "SELECT pg_sleep(60)"


@pytest.fixture
def db(lambda_pg_environment: None) -> Iterator[Database[TupleRow]]:
    """What a handler's module makes."""
    database = Database.from_env()
    yield database
    database.close()


# --- what a handler is called with


@pytest.mark.parametrize(
    "context",
    [None, MagicMock(), Mock(), SimpleNamespace(aws_request_id="1"), {}, object()],
    ids=["None", "MagicMock", "Mock", "no method", "dict", "object"],
)
def test_a_context_without_a_remaining_time_works_and_says_so_once(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture, context: object
) -> None:
    """There is no deadline then; one line says what is missing and where to find it."""
    deadlines = []

    @db.bind_lambda_context
    def handler(event: object, context: object) -> object:
        deadlines.append(db._invocations.deadline)
        return scalar(db, ANSWER)

    with caplog.at_level(logging.WARNING, "lambda_pg"):
        assert [handler({}, context), handler({}, context)] == [1, 1]
    assert deadlines == [float("inf")] * 2
    (record,) = caplog.records
    assert getattr(record, "event", None) == "no_deadline"
    assert "get_remaining_time_in_millis" in record.message
    assert "lambda_pg.testing" in record.message
    assert "\n" not in record.message


def test_a_mock_that_knows_its_remaining_time_bounds_the_waits(db: Database[TupleRow]) -> None:
    """As Lambda's own context does."""
    context = MagicMock()
    context.get_remaining_time_in_millis.return_value = 400

    @db.bind_lambda_context
    def handler(event: object, context: object) -> object:
        return scalar(db, LONG)

    with pytest.raises(DeadlineExceededError):
        handler(MagicMock(), context)


class Service:
    """A class of a user's, whose method is the handler."""

    handle: Callable[..., object]


Call = Callable[[Callable[..., object], object], object]


def as_method(bound: Callable[..., object]) -> Callable[..., object]:
    """Make the bound handler a method, and return it as an instance has it."""
    kind = type("Service", (), {"handle": bound})
    handle: Callable[..., object] = kind().handle
    return handle


@pytest.mark.parametrize(
    "call",
    [
        lambda handler, context: handler({}, context),
        lambda handler, context: handler(event={}, context=context),
        lambda handler, context: handler(context=context, event={}),
        lambda handler, context: handler({}, context=context),
        lambda handler, context: handler(MagicMock(), context),
    ],
    ids=["positions", "keywords", "keywords the other way", "both", "an event that is a mock"],
)
@pytest.mark.parametrize("method", [False, True], ids=["function", "method"])
def test_the_context_is_found_however_the_handler_is_called(
    db: Database[TupleRow], caplog: pytest.LogCaptureFixture, call: Call, method: bool
) -> None:
    """By position, by keyword, or behind the instance of a method: its time bounds the waits."""

    def work() -> object:
        assert 0 < db._invocations.deadline - time.monotonic() <= 30
        return scalar(db, ANSWER)

    if method:

        @db.bind_lambda_context
        def handle(self: object, event: object, context: object) -> object:
            return work()

        bound: Callable[..., object] = as_method(handle)
    else:

        @db.bind_lambda_context
        def handler(event: object, context: object) -> object:
            return work()

        bound = handler
    assert call(bound, LambdaContext()) == 1
    assert not caplog.records


def test_a_keyword_of_another_name_is_found_too(db: Database[TupleRow]) -> None:
    """A handler may call its arguments what it likes."""

    @db.bind_lambda_context
    def handler(message: object, *, lambda_context: object) -> float:
        return db._invocations.deadline

    assert handler({}, lambda_context=LambdaContext()) <= time.monotonic() + 30


def test_an_async_handler_is_refused_where_it_is_bound(db: Database[TupleRow]) -> None:
    """Lambda would answer with a coroutine, and nothing would have run."""

    async def handler(event: object, context: object) -> None: ...

    with pytest.raises(TypeError, match="handler is an async def, which Lambda's runtime"):
        db.bind_lambda_context(handler)


# --- a clock that stands still


FROZEN = pytest.mark.parametrize("moment", ["2020-01-01", "2040-01-01"])


@FROZEN
def test_a_handler_works_while_time_stands_still(
    db: Database[TupleRow], lambda_context: LambdaContext, moment: str
) -> None:
    """Before, behind and after: the context's fixture was made while the clock still ran."""

    @db.bind_lambda_context
    def handler(event: object, context: object) -> tuple[object, str]:
        return scalar(db, ANSWER), time.strftime("%Y-%m-%d")

    assert handler({}, lambda_context)[0] == 1
    with freeze_time(moment) as frozen:
        assert handler({}, lambda_context) == (1, moment)
        frozen.tick(3600)
        assert handler({}, lambda_context) == (1, moment)
    assert handler({}, lambda_context)[0] == 1


@FROZEN
def test_a_deadline_ends_a_statement_while_time_stands_still(
    db: Database[TupleRow], moment: str
) -> None:
    """One that was set before and one that is set then."""
    with db.deadline(30), freeze_time(moment):
        assert scalar(db, ANSWER) == 1
        with db.deadline(0.4), pytest.raises(DeadlineExceededError):
            db.execute(LONG)
        assert scalar(db, ANSWER) == 1


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_a_database_that_is_away_is_told_while_time_stands_still(answers: bool) -> None:
    """The checkout timeout ends the tries, whether connects are refused or get no answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener, freeze_time("2026-01-01"):
        port = listener.getsockname()[1]
        if not answers:
            listener.close()
        settings = Settings(host="127.0.0.1", port=port, user="app", checkout_timeout=0.5)
        with pytest.raises(DatabaseUnavailableError):
            Database(settings).execute(ANSWER)


# --- AWS


def secret_of(server: Server) -> str:
    """Write the secret of a server's superuser, as RDS does."""
    login = psycopg.conninfo.conninfo_to_dict(server.url)
    names = {"user": "username", "password": "password", "host": "host", "port": "port"}
    return json.dumps({names[name]: login[name] for name in names} | {"dbname": login["dbname"]})


def test_a_handler_with_a_secret_works_inside_moto_s_mock(
    lambda_pg_environment: None, lambda_pg_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is the one that the test has put there."""
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        secret = secret_of(lambda_pg_server)
        arn = client.create_secret(Name="app", SecretString=secret)["ARN"]
        monkeypatch.setenv("LAMBDA_PG_SECRET_ARN", arn)
        monkeypatch.delenv("DATABASE_URL")
        db = Database.from_env()
        assert scalar(db, "SELECT current_user") == "postgres"
        db.close()


def test_a_handler_that_was_imported_too_early_asks_nobody_on_aws(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the shell's settings: under the fixture it is refused, and told why."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HTTP"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "real")
    arn = "arn:aws:secretsmanager:eu-west-1:000000000000:secret:real"
    db = Database(Settings.from_env({"LAMBDA_PG_SECRET_ARN": arn, "PGHOST": "production.internal"}))
    request.getfixturevalue("lambda_pg_environment")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked AWS"))
    with pytest.raises(CredentialsError, match="Import the handler inside the test"):
        db.execute(ANSWER)
