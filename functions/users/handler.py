"""The sample API: users, each owned by the subject of a verified token."""

import uuid
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import ForbiddenError, NotFoundError
from aws_lambda_powertools.event_handler.openapi.params import Body, Query
from aws_lambda_powertools.utilities.typing import LambdaContext
from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg import Connection, Error
from psycopg.rows import DictRow, dict_row
from pydantic import BaseModel, ConfigDict, StringConstraints

logger = Logger()
app = APIGatewayHttpResolver(enable_validation=True)
db = Database.from_env(row_factory=dict_row)

Name = Annotated[
    str,
    # PostgreSQL's text cannot hold NUL.
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*$"),
]


class UserFields(BaseModel):
    """The fields of a user that a client may set; others are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    name: Name


class User(BaseModel):
    """A user as the API shows it."""

    id: uuid.UUID
    name: str
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    """Users ordered by id; `next` is the `after` of the next page."""

    users: list[User]
    next: uuid.UUID | None


class StatementFailedError(RuntimeError):
    """A statement failed with an unexpected error; the database's log has the statement."""


class UnknownUserError(LookupError):
    """The caller has no such user. Not a NotFoundError, which means an unknown route."""


@app.get("/users/<user_id>")
def get_user(user_id: uuid.UUID) -> User:
    """Return one user; another owner's user counts as not found."""
    row = db.execute(
        "SELECT id, name, created_at, updated_at FROM users WHERE id = %s",
        (user_id,),
        claims=subject(),
        idempotent=True,
    ).fetchone()
    return found(row)


@app.get("/users")
def list_users(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[uuid.UUID | None, Query()] = None,
) -> Page:
    """Return a page of the caller's users."""
    rows = db.execute(
        "SELECT id, name, created_at, updated_at FROM users"
        " WHERE %(after)s::uuid IS NULL OR id > %(after)s ORDER BY id LIMIT %(limit)s",
        {"after": after, "limit": limit},
        claims=subject(),
        idempotent=True,
    ).fetchall()
    users = [User.model_validate(row) for row in rows]
    return Page(users=users, next=users[-1].id if len(users) == limit else None)


@app.post("/users")
def create_user(fields: Annotated[UserFields, Body()]) -> Response[User]:
    """Create a user that belongs to the caller.

    The id is chosen before the statement is sent, so that a retry does not create a second user.
    """
    claims = subject()
    row = db.execute(
        "INSERT INTO users (id, owner, name) VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        " RETURNING id, name, created_at, updated_at",
        (uuid.uuid4(), claims["sub"], fields.name),
        claims=claims,
        idempotent=True,
    ).fetchone()
    user = found(row)
    return Response(
        HTTPStatus.CREATED.value,
        content_type="application/json",
        body=user,
        headers={"Location": f"/users/{user.id}"},
    )


@app.patch("/users/<user_id>")
def rename_user(user_id: uuid.UUID, fields: Annotated[UserFields, Body()]) -> User:
    """Change a user's name; rerun as a whole after a serialization failure or a drain."""

    def rename(connection: Connection[DictRow]) -> DictRow | None:
        connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
        return connection.execute(
            "UPDATE users SET name = %s, updated_at = now() WHERE id = %s"
            " RETURNING id, name, created_at, updated_at",
            (fields.name, user_id),
        ).fetchone()

    return found(db.run_transaction(rename, claims=subject()))


@app.exception_handler(DatabaseUnavailableError)
def unavailable(error: DatabaseUnavailableError) -> Response[dict[str, str]]:
    """Answer 503 at once, with the time after which to retry.

    A rename may be repeated. An earlier attempt of a POST may have created its user: a client that
    must not create a second one lists its users before it posts again.
    """
    logger.warning("database unavailable", error=type(error).__name__, reason=str(error))
    return refusal("The database is busy; try again.", error.retry_after)


@app.exception_handler(CommitOutcomeUnknownError)
def unknown_outcome(error: CommitOutcomeUnknownError) -> Response[dict[str, str]]:
    """Answer 503: a rename whose outcome is unknown can be repeated."""
    logger.warning("outcome unknown", reason=str(error))
    return refusal("The answer of the database was lost; try again.", 1)


@app.exception_handler(Error)
def failed(error: Error) -> Response[dict[str, str]]:
    """Fail the invocation, without the server's message, which can quote values: Lambda logs it."""
    constraint = error.diag.constraint_name
    what = f"{type(error).__name__}, SQLSTATE {error.sqlstate}"
    raise StatementFailedError(
        what + (f", constraint {constraint}" if constraint else "")
    ) from None


@app.exception_handler(UnknownUserError)
def unknown_user(_: UnknownUserError) -> Response[dict[str, str]]:
    """Answer 404, the same for a missing user and for another owner's."""
    return message(HTTPStatus.NOT_FOUND, "no such user", {})


@app.not_found
def wrong_method(_: NotFoundError) -> Response[dict[str, str]]:
    """Answer 405: the API routes only known paths here, so the method is wrong."""
    allowed = "GET, PATCH" if app.current_event.path_parameters else "GET, POST"
    return message(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed", {"Allow": allowed})


def subject() -> dict[str, str]:
    """Return the claims for row-level security: the subject of the verified token."""
    authorizer = app.current_event.request_context.authorizer
    claims = authorizer.jwt_claim if authorizer else {}
    try:
        return {"sub": str(uuid.UUID(claims["sub"]))}
    except (KeyError, TypeError, ValueError):
        raise ForbiddenError("the token's subject is not a UUID") from None


def found(row: DictRow | None) -> User:
    """Return the row as a user; raise UnknownUserError if there is none."""
    if row is None:
        raise UnknownUserError
    return User.model_validate(row)


def refusal(text: str, retry_after: float) -> Response[dict[str, str]]:
    """Answer 503 with a Retry-After in whole seconds."""
    seconds = str(max(1, round(retry_after)))
    return message(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": seconds})


def message(status: HTTPStatus, text: str, headers: Mapping[str, str]) -> Response[dict[str, str]]:
    """Answer with a message and nothing else."""
    return Response(
        status.value,
        content_type="application/json",
        body={"message": text},
        headers={**headers},
    )


@logger.inject_lambda_context
@db.bind_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Serve one request of the HTTP API."""
    return app.resolve(event, context)
