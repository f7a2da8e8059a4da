"""A function of another app: it reads one row through the pooler.

Invoke it with {"id": …, "sub": …}: the id of a user and the subject that owns it.
"""

import json
from typing import Any

from lambda_pg import Database, DatabaseUnavailableError

db = Database.from_env()


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer 200 with the user's name, 404 if there is none, or 503 with a Retry-After."""
    try:
        row = db.execute(
            "SELECT name FROM users WHERE id = %s",
            (event["id"],),
            claims={"sub": event["sub"]},
            idempotent=True,
        ).fetchone()
    except DatabaseUnavailableError as error:
        later = {"Retry-After": str(max(1, round(error.retry_after)))}
        return answer(503, {"message": "try again"}, later)
    return answer(200, {"name": row[0]}) if row else answer(404, {"message": "no such user"})


def answer(
    status: int, body: dict[str, str], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Build a response for an HTTP API."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}
