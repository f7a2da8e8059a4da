"""The lookup with the layer; environment variables say where it connects to."""

import json
import uuid
from typing import Any

from lambda_pg import Database, DatabaseUnavailableError
from psycopg.rows import dict_row

from benchmarks.lookup import SELECT, User, serve

db = Database.from_env(row_factory=dict_row)


@db.bind_lambda_context
def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """Return one user of the caller, or 503 where the database does not answer in time."""
    try:
        return serve(event, lookup)
    except DatabaseUnavailableError as error:
        print(
            f"database unavailable: {error}\n", end=""
        )  # one write: other processes write there too
        body = json.dumps({"message": "The database is busy; try again."})
        return {"statusCode": 503, "headers": {"Retry-After": "1"}, "body": body}


def lookup(user_id: uuid.UUID, subject: str) -> User | None:
    """Look up a user in one round trip."""
    found = db.execute(SELECT, {"id": user_id}, claims={"sub": subject}, idempotent=True)
    return found.fetchone()
