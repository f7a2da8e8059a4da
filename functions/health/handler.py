"""Up or down, from a check of the database that is at most 5 seconds old."""

import json
import time
from typing import Any

import psycopg
from lambda_pg import Database

FRESH = 5.0
"""Seconds for which a result is reused, so that many health checks cause no load."""

db = Database.from_env()
latest: tuple[float, bool] = (0.0, False)


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer 200 (up) or 503 (down), without a cause that would help an attacker."""
    if event["requestContext"]["http"]["method"] != "GET":
        return answer(405, {"message": "Method Not Allowed"}, {"Allow": "GET"})
    if is_up():
        return answer(200, {"status": "up"}, {})
    return answer(503, {"status": "down"}, {"Retry-After": str(round(FRESH))})


def is_up() -> bool:
    """Tell whether the database answered within the last seconds."""
    global latest  # noqa: PLW0603 - an environment serves one request at a time
    looked_at, up = latest
    if not 0 <= time.time() - looked_at < FRESH:
        up = answers()
        latest = (time.time(), up)
    return up


def answers() -> bool:
    """Ask the database one question."""
    try:
        db.execute("SELECT 1", idempotent=True)
    except psycopg.Error as error:
        print(json.dumps({"level": "WARNING", "message": "down", "reason": str(error)}))
        return False
    return True


def answer(status: int, body: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
    """Build the response in payload format 2.0."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}
