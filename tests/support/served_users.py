"""The sample function `users` behind an HTTP API, each of whose answers its document must have."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from lambda_pg.http_api import Request, Rules
from lambda_pg.http_api.rules import RULES
from lambda_pg.testing import LambdaContext
from psycopg.conninfo import conninfo_to_dict

from lambda_pg_cdk.local.deployment.deployed import Api, Route
from lambda_pg_cdk.local.http_api.events import HttpRequest, build_event, read_response
from lambda_pg_cdk.local.http_api.routes import find_route
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.functions import load_function
from tests.support.targets import Target

ROUTES = ("ANY /users", "ANY /users/{id}", "GET /openapi.json", "GET /swagger")
API = Api("api", "$default", tuple(Route(key, "users", "2.0", 29.0) for key in ROUTES))


@dataclass(frozen=True)
class Reply:
    """What a client gets."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The name of the problem, of problem details."""
        assert self.headers["content-type"] == "application/problem+json", self
        name: str = self.json()["type"].partition("#")[2]
        return name


class ServedUsers:
    """The function, which gets the events of API Gateway, with the claims of a verified token."""

    def __init__(self, module: ModuleType) -> None:
        """Take the function's module."""
        self.module = module
        self.document: dict[str, Any] | None = None

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        subject: object = None,
        content_type: str = "application/json",
        **headers: str,
    ) -> Reply:
        """Send a request, and compare its answer with the document if there is one.

        `headers` are as in `if_match='"1"'`; an empty Content-Type is none. Bytes are a body as it
        is.
        """
        sent = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if content_type:
            sent.append(("content-type", content_type))
        reply = self._send(method, path, _bytes_of(body), sent, subject)
        if self.document is not None:
            require_documented(self.document, method, path, reply)
        return reply

    def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Sequence[tuple[str, str]],
        subject: object,
    ) -> Reply:
        path, _, query = path.partition("?")
        match = find_route(API.routes, method, path)
        assert match is not None, f"no route for {method} {path}"
        request = HttpRequest(str(uuid.uuid4()), method, path, query, headers, body, "127.0.0.1")
        claims = None if subject is None else {"sub": str(subject)}
        event = build_event(request, API, match, claims)
        answer = read_response(json.dumps(self.module.handler(event, LambdaContext())).encode())
        found = Reply(answer.status, dict(answer.headers), answer.body)
        if found.headers["content-type"] == "application/problem+json":
            assert found.json()["instance"] == request.id
        return found


def _bytes_of(body: object) -> bytes:
    if body is None or isinstance(body, bytes):
        return body or b""
    return json.dumps(body).encode()


def require_documented(document: Mapping[str, Any], method: str, path: str, reply: Reply) -> None:
    """Fail for an answer whose status, type, body or headers the document does not have."""
    found = {re.sub(r"\{\w+\}", "[^/]+", known): known for known in document["paths"]}
    (known,) = [name for rule, name in found.items() if re.fullmatch(rule, path.partition("?")[0])]
    operation = document["paths"][known].get(method.lower())
    if operation is None:
        assert reply.status == 405, reply
        return
    assert str(reply.status) in operation["responses"], reply
    described = operation["responses"][str(reply.status)]
    for name, header in described.get("headers", {}).items():
        value = reply.headers.get(name.lower())
        assert value is not None or not header.get("required"), (name, reply)
        if value is not None:
            kind = header["schema"].get("type")
            _validate(document, header["schema"], int(value) if kind == "integer" else value)
    if described.get("content"):
        schema = described["content"][reply.headers["content-type"]]["schema"]
        _validate(document, schema, reply.json())
    else:
        assert reply.body == b""


def _validate(document: Mapping[str, Any], schema: Mapping[str, Any], value: object) -> None:
    whole = {**schema, "components": document["components"]}
    checker = Draft202012Validator.FORMAT_CHECKER
    Draft202012Validator(whole, format_checker=checker).validate(value)


@contextmanager
def serving(
    postgres: Postgres, target: Target, rules: Rules = RULES, **variables: str
) -> Iterator[ServedUsers]:
    """Load the function with the environment that its stack gives it, for a migrated database.

    `rules` are those of the stage, which a process reads once.
    """
    environment: dict[str, str] = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGDATABASE": str(conninfo_to_dict(target.dsn)["dbname"]),
        "PGUSER": target.login.name,
        "PGPASSWORD": target.login.password or "",
        "PGSSLROOTCERT": str(postgres.ca_file),
        "POWERTOOLS_TRACE_DISABLED": "1",
        "API_OPENAPI": "1",
        **variables,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("lambda_pg.http_api.rules.RULES", rules)
        module = load_function("functions/users")
    vars(module)["Request"] = SimpleNamespace(of=partial(Request.of, rules=rules))
    try:
        users = ServedUsers(module)
        users.document = users.call("GET", "/openapi.json").json()
        yield users
    finally:
        module.db.close()
