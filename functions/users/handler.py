"""The sample API: users, each owned by the subject of a verified token.

Row-level security hides the rows of other owners. Each statement names the owner, too: neither
guard relies on the other.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.event_handler.openapi.params import Body, Query
from aws_lambda_powertools.utilities.typing import LambdaContext
from lambda_pg import Database
from lambda_pg.http_api import Answer, Problem, Request, answer_to, change_once
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from users_api.models import Page, User, UserFields
from users_api.refusals import (
    another_version,
    invalid,
    invalid_request,
    unknown_user,
    wrong_route,
)


def parsed(_: str) -> Any:
    """Parse the body of this request, for Powertools."""
    body = current().json()
    if not isinstance(body, dict):  # of a list Powertools would take the first element
        raise invalid({"field": "body", "detail": "must be an object"})
    return body


logger = Logger()
app = APIGatewayHttpResolver(enable_validation=True, json_body_deserializer=parsed)
db = Database.from_env(row_factory=dict_row)

if os.environ.get("API_OPENAPI") == "1":
    from users_api import document

    document.serve(app)

INSERT = """
INSERT INTO users (id, owner, name) VALUES (%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET name = users.name
RETURNING id, name, version, created_at, updated_at
"""

UPDATE = """
UPDATE users SET name = %(name)s, updated_at = now()
WHERE id = %(id)s AND owner = %(owner)s
    AND (%(versions)s::bigint[] IS NULL OR version = ANY (%(versions)s::bigint[]))
RETURNING id, name, version, created_at, updated_at
"""


@app.get("/users/<user_id>")
def get_user(user_id: uuid.UUID) -> Response[Any]:
    """Return one user; another owner's user counts as not found."""
    request = current()
    claims = request.claims
    row = db.execute(
        "SELECT id, name, version, created_at, updated_at FROM users"
        " WHERE id = %(id)s AND owner = %(owner)s",
        {"id": user_id, "owner": claims["sub"]},
        claims=claims,
        idempotent=True,
    ).fetchone()
    if row is None:
        raise unknown_user()
    if request.has_version(row["version"]):
        return reply(Answer.not_modified(row["version"]))
    return reply(shown(200, row))


@app.get("/users")
def list_users(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[uuid.UUID | None, Query()] = None,
) -> Response[Any]:
    """Return a page of the caller's users."""
    claims = current().claims
    rows = db.execute(
        "SELECT id, name, version, created_at, updated_at FROM users"
        " WHERE owner = %(owner)s AND (%(after)s::uuid IS NULL OR id > %(after)s)"
        " ORDER BY id LIMIT %(limit)s",
        {"owner": claims["sub"], "after": after, "limit": limit},
        claims=claims,
        idempotent=True,
    ).fetchall()
    users = [User.model_validate(row) for row in rows]
    page = Page(users=users, next=users[-1].id if len(users) == limit else None)
    return reply(Answer(200, page.model_dump_json().encode()))


@app.post("/users")
def create_user(fields: Annotated[UserFields, Body()]) -> Response[Any]:
    """Create a user that belongs to the caller: once for each Idempotency-Key.

    Without a key it is one round trip. The id is chosen before the statement is sent, so that a
    retry by the layer does not create a second user.
    """
    request = current()
    claims, user_id = request.claims, uuid.uuid4()
    values = (user_id, claims["sub"], fields.name)

    def create(connection: Connection[DictRow]) -> Answer:
        return created(connection.execute(INSERT, values).fetchone())

    if request.require_key() is None:
        row = db.execute(INSERT, values, claims=claims, idempotent=True).fetchone()
        return reply(created(row))
    return reply(change_once(db, request, create))


@app.patch("/users/<user_id>")
def rename_user(user_id: uuid.UUID, fields: Annotated[UserFields, Body()]) -> Response[Any]:
    """Change a user's name, if its version is one of If-Match: once for each Idempotency-Key."""
    request = current()
    mine = {"id": user_id, "owner": request.claims["sub"]}

    def rename(connection: Connection[DictRow]) -> Answer:
        values = {**mine, "name": fields.name, "versions": request.expected_versions()}
        row = connection.execute(UPDATE, values).fetchone()
        if row is None:
            raise unchanged(connection, mine)
        return shown(200, row)

    return reply(change_once(db, request, rename))


@app.not_found
def no_route(_: NotFoundError) -> Response[Any]:
    """Refuse what Powertools has no route for."""
    request = current()
    raise wrong_route(request.method, has_id=bool(request.parameters))


@app.exception_handler(Exception)
def refuse(error: Exception) -> Response[Any]:
    """Answer in problem details; a defect fails the invocation, without values of a statement."""
    if isinstance(error, RequestValidationError):
        error = invalid_request(error)
    return reply(answer_to(error, current().id))


def unchanged(connection: Connection[DictRow], mine: Mapping[str, Any]) -> Problem:
    """Return why an UPDATE has found no row: the user has another version, or is not there."""
    statement = "SELECT FROM users WHERE id = %(id)s AND owner = %(owner)s"
    is_there = connection.execute(statement, mine).fetchone() is not None
    problem: Problem = another_version() if is_there else unknown_user()
    return problem


def created(row: DictRow | None) -> Answer:
    """Show a new user, and where it is."""
    assert row is not None  # noqa: S101 - INSERT returns the row
    return shown(201, row, {"Location": f"/users/{row['id']}"})


def shown(status: int, row: DictRow, headers: Mapping[str, str] | None = None) -> Answer:
    """Show a user with its version as ETag."""
    user = User.model_validate(row)
    return Answer(status, user.model_dump_json().encode(), headers or {}, version=user.version)


def reply(answer: Answer) -> Response[Any]:
    """Hand an answer to Powertools, which sends text as it is."""
    return Response(answer.status, body=answer.content.decode(), headers=answer.headers)


def current() -> Request:
    """Return the request that is being served."""
    request: Request = app.context["request"]
    return request


@logger.inject_lambda_context
@db.bind_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Serve one request of the HTTP API."""
    try:
        request = Request.of(event)
    except Problem as problem:
        return problem.answer(event["requestContext"].get("requestId", "")).response()
    app.context["request"] = request
    return app.resolve(with_hidden_body(event), context)


def with_hidden_body(event: Mapping[str, Any]) -> dict[str, Any]:
    """Hide body and Content-Type from Powertools, which would decode it, and read forms, too."""
    sent = event.get("headers") or {}
    headers = {name: value for name, value in sent.items() if name.lower() != "content-type"}
    return {**event, "headers": headers, "body": "hidden", "isBase64Encoded": False}
