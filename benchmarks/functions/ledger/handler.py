"""Accounts and transfers."""

from typing import Any

from lambda_pg import Database

db = Database.from_env()


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer."""
    return {"statusCode": 200, "body": str(db.execute("SELECT 1").fetchone())}
