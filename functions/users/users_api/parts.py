"""Parts of the OpenAPI document: headers, parameters, and what refusals look like."""

from collections.abc import Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

ETAG: Final[Schema] = {
    "description": "The user's version, for If-Match and If-None-Match",
    "required": True,
    "schema": {"type": "string", "pattern": '^"-?[0-9]+"$'},
}
LOCATION: Final[Schema] = {
    "description": "The path of the new user",
    "required": True,
    "schema": {"type": "string", "pattern": "^/users/[0-9a-f-]{36}$"},
}
REPLAYED: Final[Schema] = {
    "description": "Sent with the stored answer of an earlier request that had the same key",
    "schema": {"const": "true"},
}
RETRY_AFTER: Final[Schema] = {
    "description": "Seconds after which to retry; API Gateway does not send it",
    "schema": {"type": "integer", "minimum": 1},
}

KEY: Final[Schema] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A value that is new for each change. The same request with the same key gets "
    "the first answer for 24 hours, and changes nothing",
    "schema": {
        "type": "string",
        "pattern": r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$',
        "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    },
}
IF_MATCH: Final[Schema] = {
    "name": "If-Match",
    "in": "header",
    "description": "ETags of versions, of which the user must have one; or *",
    "schema": {
        "type": "string",
        "pattern": r'^(\*|(W/)?"[^\u0000-\u0020"\u007f]*"(, ?(W/)?"[^\u0000-\u0020"\u007f]*")*)$',
        "examples": ['"1"'],
    },
}
IF_NONE_MATCH: Final[Schema] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of versions that the client has; for one of them the answer is 304",
    "schema": {"type": "string", "examples": ['"1"']},
}

PROBLEM: Final[Schema] = {
    "title": "Problem",
    "description": "Problem details (RFC 9457)",
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "Where the problem is described"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The id of the request"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                "required": ["field", "detail"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "title", "status", "detail", "instance"],
    "additionalProperties": False,
}
MESSAGE: Final[Schema] = {
    "title": "Message",
    "description": "What API Gateway answers by itself",
    "type": "object",
    "properties": {"message": {"type": ["string", "null"]}},
    "required": ["message"],
}
SCHEMAS: Final[Schema] = {"Problem": PROBLEM, "Message": MESSAGE}

GATEWAY: Final[Mapping[int, str]] = {
    400: "The request is not HTTP",
    401: "The token is missing, has expired, or is not one of the stage's issuer",
    403: "The token lacks the scope",
    413: "The request has more than 10 MB",
    429: "The stage's limit of requests is reached",
    431: "The request line and the headers have more than 10 KB",
    500: "The function has failed",
    503: "The function is at its limit of requests, or took too long",
}
"""Why API Gateway answers by itself."""

EVERYWHERE: Final = (
    "body-too-large",
    "database-unavailable",
    "malformed-body",
    "no-subject",
    "outcome-unknown",
)
"""Problems that each request can end with."""

OF_BODIES: Final = ("encoded-body", "malformed-json", "not-json", "too-deep")
OF_KEYS: Final = (
    "idempotency-key-in-use",
    "idempotency-key-missing",
    "idempotency-key-reused",
    "malformed-idempotency-key",
)
OF_VERSIONS: Final = ("malformed-if-match", "precondition-failed", "precondition-required")

HEADERS: Final[Mapping[int, Schema]] = {
    409: {"Retry-After": {**RETRY_AFTER, "required": True}},
    503: {"Retry-After": RETRY_AFTER},
}
"""Headers of refusals."""
