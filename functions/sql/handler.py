"""`POST /sql`: the database over HTTP, for clients without TCP sockets."""

import os
from typing import Any

from sql_http.environment import open_service

service = open_service(os.environ)


def handler(event: dict[str, Any], context: object) -> Any:
    """Answer a request of the HTTP query protocol."""
    return service.answer(event, context)
