"""`POST /sql`: the database over HTTP, for clients without TCP sockets."""

import json
import os
from typing import Any

if os.environ.get("LAMBDA_PG_AUTH") != "iam":
    # The first trust level's secret is fetched while psycopg is imported: docs/decisions/0006.
    secrets = json.loads(os.environ["SQL_ROLES"])
    os.environ.setdefault("LAMBDA_PG_SECRET_ARN", next(iter(secrets.values())))

from sql_http.environment import open_service

service = open_service(os.environ)


def handler(event: dict[str, Any], context: object) -> Any:
    """Answer a request of the HTTP query protocol."""
    return service.answer(event, context)
