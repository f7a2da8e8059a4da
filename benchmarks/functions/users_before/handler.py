"""POST and PATCH of the sample API as they were: without keys, versions and problem details.

The table `users_before` has the columns and the CHECK of that time, and no trigger.
"""

import uuid
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import ForbiddenError, NotFoundError
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext
from lambda_pg import Database
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from pydantic import BaseModel, ConfigDict, StringConstraints

logger = Logger()
app = APIGatewayHttpResolver(enable_validation=True)
db = Database.from_env(row_factory=dict_row)

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*$"),
]


class UserFields(BaseModel):
    """The fields of a user that a client may set."""

    model_config = ConfigDict(extra="forbid")

    name: Name


class User(BaseModel):
    """A user as the API showed it."""

    id: uuid.UUID
    name: str
    created_at: datetime
    updated_at: datetime


@app.post("/users")
def create_user(fields: Annotated[UserFields, Body()]) -> Response[User]:
    """Create a user that belongs to the caller."""
    claims = subject()
    row = db.execute(
        "INSERT INTO users_before (id, owner, name) VALUES (%s, %s, %s)"
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
    """Change a user's name."""

    def rename(connection: Connection[DictRow]) -> DictRow | None:
        connection.execute("SELECT FROM users_before WHERE id = %s FOR UPDATE", (user_id,))
        return connection.execute(
            "UPDATE users_before SET name = %s, updated_at = now() WHERE id = %s"
            " RETURNING id, name, created_at, updated_at",
            (fields.name, user_id),
        ).fetchone()

    return found(db.run_transaction(rename, claims=subject()))


def subject() -> dict[str, str]:
    """Return the claims for row-level security: the subject of the verified token."""
    authorizer = app.current_event.request_context.authorizer
    claims = authorizer.jwt_claim if authorizer else {}
    try:
        return {"sub": str(uuid.UUID(claims["sub"]))}
    except (KeyError, TypeError, ValueError):
        raise ForbiddenError("the token's subject is not a UUID") from None


def found(row: DictRow | None) -> User:
    """Return the row as a user. Raises NotFoundError if there is none."""
    if row is None:
        raise NotFoundError("no such user")
    return User.model_validate(row)


@logger.inject_lambda_context
@db.bind_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Serve one request of the HTTP API."""
    return app.resolve(event, context)
