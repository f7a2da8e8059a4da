"""Shared by the functions of the storm, which differ only in how they connect: one lookup."""

import json
import os
import uuid
from collections.abc import Callable
from typing import Any

SELECT = "SELECT id, name, created_at, updated_at FROM users WHERE id = %(id)s"
SET_CLAIMS = (
    "SELECT set_config('request.jwt.claims', %(claims)s, true),"
    " set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)"
)

User = dict[str, Any]
Lookup = Callable[[uuid.UUID, str], User | None]
"""Finds a user by its id, for the subject of a verified token."""


def serve(event: dict[str, Any], lookup: Lookup) -> dict[str, Any]:
    """Answer an API's event with one user of the caller."""
    subject = event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"]
    user = lookup(uuid.UUID(event["pathParameters"]["id"]), subject)
    if user is None:
        return {"statusCode": 404, "body": json.dumps({"message": "no such user"})}
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps(user, default=str),
    }


def claims_of(subject: str) -> str:
    """Write the claims for row-level security."""
    return json.dumps({"sub": subject})


def patience() -> int:
    """Return the seconds that each function may wait: the layer's checkout timeout."""
    return int(os.environ["LAMBDA_PG_CHECKOUT_TIMEOUT"])
