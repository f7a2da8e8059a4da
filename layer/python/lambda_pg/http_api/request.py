"""Requests: what an HTTP API hands to a function, checked where it is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from lambda_pg.http_api import bodies, etags, keys
from lambda_pg.http_api.problems import Problem
from lambda_pg.http_api.rules import RULES, Rules

_SUBJECT: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
"""A UUID as current_subject() of the database has it. UUID() also reads braces, underscores and
digits of other scripts: then a user who can choose such a subject would be another one."""


@dataclass(frozen=True)
class Request:
    """A request of an HTTP API, from an event in payload format 2.0.

    No cookie is ever read. Nothing but Problem is raised for what a client has sent.
    """

    id: str
    """The request's id, which API Gateway logs."""
    api: str
    """The id of the HTTP API."""
    method: str
    path: str
    """The path that was asked for, as `/users/1`."""
    route: str
    """The path of the route that matched, as `/users/{id}`."""
    query: str
    """The query string as it came, without `?`."""
    parameters: Mapping[str, str]
    """The parameters in the path."""
    headers: Mapping[str, str]
    """The headers by names in lower case."""
    body: bytes
    rules: Rules
    verified: Mapping[str, Any] | None
    """The claims of the verified token; None without an authorizer."""

    @classmethod
    def of(cls, event: Mapping[str, Any], rules: Rules = RULES) -> "Request":
        """Read an event. Raises Problem: 413 for a body over the limit, before it is decoded."""
        context = event["requestContext"]
        encoded = bool(event.get("isBase64Encoded"))
        return cls(
            id=context.get("requestId", ""),
            api=context.get("apiId", ""),
            method=context["http"]["method"],
            path=event["rawPath"],
            route=event.get("routeKey", "").partition(" ")[2],
            query=event.get("rawQueryString") or "",
            parameters=event.get("pathParameters") or {},
            headers={name.lower(): value for name, value in (event.get("headers") or {}).items()},
            body=bodies.read_bytes(event.get("body") or "", encoded=encoded, limit=rules.max_body),
            rules=rules,
            verified=((context.get("authorizer") or {}).get("jwt") or {}).get("claims"),
        )

    @property
    def claims(self) -> dict[str, str]:
        """The claims for row-level security: `{"sub": "<uuid>"}`. Raises Problem: 403."""
        subject = (self.verified or {}).get("sub")
        if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
            raise Problem("no-subject", "The token's subject is not a UUID.")
        return {"sub": subject.lower()}

    def uuid(self, name: str) -> UUID:
        """Return a parameter of the path. Raises Problem: 422 unless it is a UUID."""
        try:
            return UUID(self.parameters[name])
        except ValueError:
            errors = [{"field": name, "detail": "must be a UUID"}]
            detail = f"The path's {name} is not a UUID."
            raise Problem("invalid-fields", detail, errors=errors) from None

    def json(self) -> Any:
        """Parse the body. Raises Problem: 415 unless it is declared as JSON, else 400.

        It also refuses NaN, numbers that no float can hold, a name that occurs twice in an object,
        halves of surrogate pairs, and more than 32 levels.
        """
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            detail = "Send the body without Content-Encoding."
            raise Problem("encoded-body", detail, headers={"Accept-Encoding": "identity"})
        if not bodies.is_json(self.headers.get("content-type", "")):
            detail = "Send JSON, with Content-Type: application/json."
            raise Problem("not-json", detail, headers={"Accept": "application/json"})
        return bodies.read_json(self.body)

    @property
    def idempotency_key(self) -> str | None:
        """The characters of Idempotency-Key; None without the header. Raises Problem: 400."""
        value = self.headers.get("idempotency-key")
        try:
            return None if value is None else keys.read_key(value)
        except ValueError:
            detail = "Idempotency-Key must be 1 to 255 visible ASCII characters, quoted or bare."
            raise Problem("malformed-idempotency-key", detail) from None

    def require_key(self) -> str | None:
        """Return the key. Raises Problem: 400, also if a required key is missing."""
        key = self.idempotency_key
        if key is None and self.rules.require_idempotency_key:
            detail = "Send Idempotency-Key with a value that is new for each change."
            raise Problem("idempotency-key-missing", detail)
        return key

    def expected_versions(self) -> list[int] | None:
        """Return the versions in If-Match: only a row that has one of them may be changed.

        None means any version, an empty list no version. Raises Problem: 400, and 428 if the stage
        requires the header and there is none.
        """
        value = self.headers.get("if-match", "").strip()
        if "if-match" not in self.headers and self.rules.require_if_match:
            detail = "Send If-Match with the ETag of the version that you have read."
            raise Problem("precondition-required", detail)
        if "if-match" not in self.headers or value == etags.ANY:
            return None
        try:
            tags = etags.read_tags(value)
        except ValueError:
            detail = 'If-Match must be "*" or a list of quoted entity tags.'
            raise Problem("malformed-if-match", detail) from None
        return [tag.version for tag in tags if tag.version is not None and not tag.weak]

    def has_version(self, version: int) -> bool:
        """Tell whether If-None-Match names a row's version: then the answer is 304.

        A malformed header names none.
        """
        value = self.headers.get("if-none-match", "").strip()
        if value == etags.ANY:
            return True
        try:
            return version in {tag.version for tag in etags.read_tags(value)}
        except ValueError:
            return False
