"""What the sample function `users` refuses, without a database: each refusal is problem details."""

import json
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from lambda_pg import CommitOutcomeUnknownError, DatabaseUnavailableError
from lambda_pg.http_api import StatementFailedError
from lambda_pg.testing import LambdaContext
from psycopg import errors

from tests.support.canary import CANARY, assert_nowhere
from tests.support.functions import load_function
from tests.support.served_users import ServedUsers

SUBJECT = "6f2b1c1e-3f0e-4d5a-9f0b-1a2b3c4d5e6f"
PATH = f"/users/{uuid.UUID(int=7)}"
NAMED = {"name": "Ada"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the function's module, with a database that fails the test when it is used."""
    for name, value in {
        "PGHOST": "database.test",
        "PGUSER": "app",
        "PGPASSWORD": "password",
        "POWERTOOLS_TRACE_DISABLED": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "API_OPENAPI": "1",
    }.items():
        monkeypatch.setenv(name, value)
    module = load_function("functions/users")
    for verb in ("execute", "run_transaction"):
        monkeypatch.setattr(module.db, verb, raising(AssertionError("the database was asked")))
    return module


@pytest.fixture
def users(module: ModuleType) -> ServedUsers:
    """The function behind an API; each answer is compared with its document."""
    users = ServedUsers(module)
    users.document = users.call("GET", "/openapi.json").json()
    return users


def raising(error: Exception) -> Callable[..., None]:
    """Return what raises an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": None}, "name"),
        ({"name": "A"}, "name"),
        ({"name": " A "}, "name"),
        ({"name": "x" * 51}, "name"),
        ({"name": "Ada\0"}, "name"),
        ({"name": 55}, "name"),
        ({"name": ["Ada"]}, "name"),
        ({"name": "Ada", "owner": SUBJECT}, "owner"),
        ({"name": "Ada", "version": 7}, "version"),
        ([], "body"),
        ([NAMED], "body"),
        ("Ada", "body"),
        (b"null", "body"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/users"), ("PATCH", PATH)])
def test_an_invalid_body_is_422_and_names_the_field(
    users: ServedUsers, method: str, path: str, body: object, field: str
) -> None:
    """The list of one valid object, too, of which Powertools would take that one."""
    reply = users.call(method, path, body, subject=SUBJECT)
    assert (reply.status, reply.problem) == (422, "invalid-fields")
    assert [each["field"] for each in reply.json()["errors"]] == [field]


def test_an_answer_names_a_few_faults(users: ServedUsers) -> None:
    """Else a body of 64 KB would get an answer of 600 KB."""
    reply = users.call("POST", "/users", dict.fromkeys(map(str, range(5000)), 1), subject=SUBJECT)
    assert reply.status == 422
    assert len(reply.json()["errors"]) == 20


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=1&limit=2", "after=x"])
def test_an_invalid_query_is_422_and_names_the_parameter(users: ServedUsers, query: str) -> None:
    """So does a wrong query string."""
    reply = users.call("GET", f"/users?{query}", subject=SUBJECT)
    assert (reply.status, reply.problem) == (422, "invalid-fields")
    assert reply.json()["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize("text", ["7", 'a"b', "%22", "é", "a#b", f"{uuid.UUID(int=7)}x"])
def test_an_id_that_is_no_uuid_is_422(users: ServedUsers, method: str, text: str) -> None:
    """Also where it has a character that Powertools matches in no path: the method is right."""
    reply = users.call(method, f"/users/{text}", NAMED, subject=SUBJECT)
    assert (reply.status, reply.problem) == (422, "invalid-fields")
    assert [each["field"] for each in reply.json()["errors"]] == ["user_id"]


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"{not json", 400, "malformed-json"),
        (b"", 400, "malformed-json"),
        (b'{"name": NaN}', 400, "malformed-json"),
        (b'{"name": "Ada", "name": "Eve"}', 400, "malformed-json"),
        (b'{"name": "\\ud800"}', 400, "malformed-json"),
        (b'{"name": "\xff"}', 400, "malformed-json"),
        (b"[" * 33 + b"]" * 33, 400, "too-deep"),
        (b"[" * 65_536, 400, "too-deep"),
        (b" " * 65_537, 413, "body-too-large"),
    ],
)
def test_a_body_that_is_no_json_is_refused(
    users: ServedUsers, body: bytes, status: int, name: str
) -> None:
    """Before a field is looked at."""
    reply = users.call("POST", "/users", body, subject=SUBJECT)
    assert (reply.status, reply.problem) == (status, name)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
def test_a_body_of_another_type_is_415(users: ServedUsers, content_type: str) -> None:
    """A page of another site can send these without asking; Powertools would read the forms."""
    for body in (b"name=Ada", json.dumps(NAMED).encode()):
        reply = users.call("POST", "/users", body, subject=SUBJECT, content_type=content_type)
        assert (reply.status, reply.problem) == (415, "not-json")


def test_a_compressed_body_is_415(users: ServedUsers) -> None:
    """Nobody would see how long it becomes."""
    reply = users.call("POST", "/users", NAMED, subject=SUBJECT, content_encoding="gzip")
    assert (reply.status, reply.problem) == (415, "encoded-body")


@pytest.mark.parametrize("subject", [None, "", "somebody", f"{SUBJECT}x", "[a b]"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/users"), ("POST", "/users"), ("GET", PATH), ("PATCH", PATH)]
)
def test_a_token_without_a_uuid_is_403(
    users: ServedUsers, method: str, path: str, subject: object
) -> None:
    """So is an event without a token: then the route has lost its authorizer. No cookie counts."""
    reply = users.call(method, path, NAMED, subject=subject, cookie=f"sub={SUBJECT}")
    assert (reply.status, reply.problem) == (403, "no-subject")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *((method, "/users", "GET, POST") for method in ("DELETE", "HEAD", "PATCH", "TRACE")),
        *((method, PATH, "GET, PATCH") for method in ("DELETE", "OPTIONS", "POST", "PUT")),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(
    users: ServedUsers, method: str, path: str, allowed: str
) -> None:
    """Whatever the body is."""
    reply = users.call(method, path, b"x", subject=SUBJECT, content_type="text/plain")
    assert (reply.status, reply.problem) == (405, "method-not-allowed")
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize("key", ["", " ", '"', '"a', "a b", "a" * 256, "é", 'a"b"é'])
def test_a_malformed_key_is_400(users: ServedUsers, key: str) -> None:
    """Nothing is done without the key that the client wanted."""
    for method, path in (("POST", "/users"), ("PATCH", PATH)):
        reply = users.call(method, path, NAMED, subject=SUBJECT, idempotency_key=key)
        assert (reply.status, reply.problem) == (400, "malformed-idempotency-key")


def test_a_body_that_is_no_base64_is_400(users: ServedUsers, module: ModuleType) -> None:
    """API Gateway does not send it; a caller of the function might."""
    context = {"requestId": "r1", "http": {"method": "POST"}}
    event = {"rawPath": "/users", "requestContext": context, "headers": {}, "body": "?"}
    answer = module.handler({**event, "isBase64Encoded": True}, LambdaContext())
    assert (answer["statusCode"], json.loads(answer["body"])["instance"]) == (400, "r1")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (DatabaseUnavailableError("the pool is at its limit", retry_after=2.2), "unavailable"),
        (CommitOutcomeUnknownError(CANARY), "outcome-unknown"),
    ],
)
def test_an_outage_is_503_and_says_when_to_retry(
    users: ServedUsers, monkeypatch: pytest.MonkeyPatch, error: Exception, name: str
) -> None:
    """With nothing of the error."""
    monkeypatch.setattr(users.module.db, "execute", raising(error))
    monkeypatch.setattr(users.module.db, "run_transaction", raising(error))
    for method, path in (("POST", "/users"), ("PATCH", PATH), ("GET", PATH), ("GET", "/users")):
        reply = users.call(method, path, NAMED, subject=SUBJECT)
        assert (reply.status, reply.problem.endswith(name)) == (503, True)
        assert int(reply.headers["retry-after"]) >= 1
        assert str(error).encode() not in reply.body


def test_an_error_of_a_statement_leaves_without_its_values(
    users: ServedUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The invocation fails, so that a deployment goes back, and Lambda logs what failed."""
    error = errors.UniqueViolation(f"duplicate key\nDETAIL:  Key (name)=({CANARY}) exists.")
    monkeypatch.setattr(users.module.db, "execute", raising(error))
    with pytest.raises(StatementFailedError, match="UniqueViolation, SQLSTATE 23505") as seen:
        users.call("POST", "/users", {"name": CANARY}, subject=SUBJECT)
    assert_nowhere(seen.value)
