"""Problem details (RFC 9457): every refusal that a function writes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from lambda_pg.http_api.answers import Answer
from lambda_pg.http_api.rules import RULES

CONTENT_TYPE: Final = "application/problem+json"


class Kind(NamedTuple):
    """What all problems of one name share."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "body-too-large": Kind(413, "The body is too large"),
    "database-unavailable": Kind(503, "The database is not available"),
    "encoded-body": Kind(415, "The body is compressed"),
    "idempotency-key-in-use": Kind(409, "The first request is still running"),
    "idempotency-key-missing": Kind(400, "Idempotency-Key is missing"),
    "idempotency-key-reused": Kind(422, "The key belongs to another request"),
    "invalid-fields": Kind(422, "Fields are not valid"),
    "malformed-body": Kind(400, "The body cannot be decoded"),
    "malformed-idempotency-key": Kind(400, "Idempotency-Key is malformed"),
    "malformed-if-match": Kind(400, "If-Match is malformed"),
    "malformed-json": Kind(400, "The body is not valid JSON"),
    "method-not-allowed": Kind(405, "The method is not allowed"),
    "no-subject": Kind(403, "The token names no user"),
    "not-found": Kind(404, "Not found"),
    "not-json": Kind(415, "The body is not declared as JSON"),
    "outcome-unknown": Kind(503, "The outcome is not known"),
    "precondition-failed": Kind(412, "The version has changed"),
    "precondition-required": Kind(428, "If-Match is missing"),
    "too-deep": Kind(400, "The JSON is nested too deeply"),
}
"""By name, the problems of this package, and those that most APIs have. docs/problems.md has a
section for each."""


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """Refuse a request: an answer in problem details.

    `name` is the section of the page of problems, `detail` a sentence for this request, without
    anything internal. `status` and `title` are needed for names that KINDS lacks. `headers` come
    with the answer; `errors` name fields: `[{"field": "name", "detail": "must be ..."}]`.
    """

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        status: int | None = None,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Take the parts of the answer. Raises KeyError for an unknown name without a status."""
        super().__init__(detail)
        known = KINDS[name] if status is None or title is None else Kind(status, title)
        self.name = name
        self.detail = detail
        self.status = known.status if status is None else status
        self.title = known.title if title is None else title
        self.headers: Mapping[str, str] = headers or {}
        self.errors = errors

    def answer(self, request_id: str) -> Answer:
        """Return the answer to the request of this id."""
        body: dict[str, Any] = {
            "type": f"{RULES.problem_types}#{self.name}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": request_id,
        }
        if self.errors is not None:
            body["errors"] = [dict(error) for error in self.errors]
        return Answer(self.status, body, {**self.headers, "Content-Type": CONTENT_TYPE})
