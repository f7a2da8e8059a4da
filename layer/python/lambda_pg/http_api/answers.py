"""Answers: status, headers and JSON, as an HTTP API takes them from a function."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any, Final
from uuid import UUID

from lambda_pg.http_api.etags import etag


@dataclass(frozen=True)
class Answer:
    """An answer to a request.

    `body` is what JSON can encode, with UUIDs and dates; bytes are sent unchanged, None is no body.
    `version` is the row's, and becomes the header ETag. `headers` holds all headers, Content-Type
    included.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    version: int | None = None

    def __post_init__(self) -> None:
        """Complete the headers."""
        given = {name.lower() for name in self.headers}
        headers: dict[str, str] = {}
        if self.body is not None and "content-type" not in given:
            headers["Content-Type"] = "application/json"
        if self.version is not None and "etag" not in given:
            headers["ETag"] = etag(self.version)
        object.__setattr__(self, "headers", {**headers, **self.headers})

    @classmethod
    def not_modified(cls, version: int) -> "Answer":
        """Return the answer 304 to a client that has this version already."""
        return cls(304, version=version)

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return _encode(self.body).encode()

    def response(self) -> dict[str, Any]:
        """Return the answer in payload format 2.0; bytes that are not UTF-8 as base64."""
        content = self.content
        try:
            body, encoded = content.decode(), False
        except UnicodeDecodeError:
            body, encoded = base64.b64encode(content).decode(), True
        return {
            "statusCode": self.status,
            "headers": dict(self.headers),
            "body": body,
            "isBase64Encoded": encoded,
        }


def _plain(value: object) -> str:
    """Write what JSON has no type for."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(
        f"the body holds a value of type {type(value).__name__}, which JSON does not have: return "
        "a text or a number instead"
    )


_encode: Final = json.JSONEncoder(default=_plain, ensure_ascii=False, allow_nan=False).encode
