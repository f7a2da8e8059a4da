"""Events of an HTTP API in payload format 2.0, as API Gateway hands them to a function."""

import base64
from collections.abc import Mapping
from typing import Any

SUBJECT = "6f2b1c1e-3f0e-4d5a-9f0b-1a2b3c4d5e6f"


def http_event(
    route: str = "POST /notes",
    body: str | bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    claims: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Build the event of a request to a route; a body of bytes comes as base64.

    `claims` are those of the verified token; without them they name SUBJECT. `more` replaces parts.
    """
    method, _, path = route.partition(" ")
    for name, value in (parameters or {}).items():
        path = path.replace(f"{{{name}}}", value)
    token = {"sub": SUBJECT} if claims is None else claims
    encoded = isinstance(body, bytes)
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", **(headers or {})},
        "requestContext": {
            "requestId": "request-1",
            "http": {"method": method, "path": path},
            "authorizer": {"jwt": {"claims": token, "scopes": None}},
        },
        "pathParameters": parameters,
        "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
        "isBase64Encoded": encoded,
        **more,
    }
