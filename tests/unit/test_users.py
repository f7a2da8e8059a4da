"""What the sample function `users` says of a statement that failed: to Lambda's log, no value."""

import json
from types import ModuleType
from typing import Any

import pytest
from psycopg import errors

from tests.support.canary import CANARY, assert_nowhere
from tests.support.context import Context
from tests.support.functions import load_function

SUBJECT = "6f2b1c1e-3f0e-4d5a-9f0b-1a2b3c4d5e6f"
EVENT = {
    "version": "2.0",
    "rawPath": "/users",
    "rawQueryString": "",
    "headers": {"content-type": "application/json"},
    "requestContext": {
        "http": {"method": "POST", "path": "/users"},
        "stage": "$default",
        "authorizer": {"jwt": {"claims": {"sub": SUBJECT}, "scopes": None}},
    },
    "body": json.dumps({"name": CANARY}),
    "isBase64Encoded": False,
}


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the function's module, with no database behind it."""
    for name, value in {
        "PGHOST": "database.test",
        "PGUSER": "app",
        "PGPASSWORD": "password",
        "POWERTOOLS_TRACE_DISABLED": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return load_function("functions/users")


def test_an_error_of_a_statement_leaves_without_its_values(
    users: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The invocation fails, so that a deployment goes back, and Lambda logs what failed."""

    def refuse(*_: Any, **__: Any) -> None:
        raise errors.UniqueViolation(f"duplicate key\nDETAIL:  Key (name)=({CANARY}) exists.")

    monkeypatch.setattr(users.db, "execute", refuse)
    context = Context(3)
    for name in ("function_name", "memory_limit_in_mb", "invoked_function_arn"):
        setattr(context, name, "users")
    with pytest.raises(users.StatementFailedError, match="UniqueViolation, SQLSTATE 23505") as seen:
        users.handler(EVENT, context)
    assert_nowhere(seen.value)
