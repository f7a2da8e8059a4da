"""Refusals of the sample API, beside those that every request can end with."""

from collections.abc import Mapping
from typing import Any, Final

from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from lambda_pg.http_api import Problem

MOST_FAULTS: Final = 20
"""Faults that an answer names: a body can have thousands, each with a long name."""


def invalid(*errors: Mapping[str, str]) -> Problem:
    """Return the refusal of fields or parameters: 422."""
    return Problem("invalid-fields", "Some fields are not valid.", errors=errors)


def invalid_request(error: RequestValidationError) -> Problem:
    """Return the refusal of what Pydantic has found: 422."""
    return invalid(*map(_described, error.errors()[:MOST_FAULTS]))


def _described(fault: Mapping[str, Any]) -> dict[str, str]:
    """Name the field of a fault, without the part of the request that it is in."""
    _, *names = fault["loc"]
    return {"field": ".".join(map(str, names)) or "body", "detail": fault["msg"]}


def unknown_user() -> Problem:
    """Return the refusal of an id: 404, the same for a missing user and for another owner's."""
    return Problem("not-found", "You have no user with this id.")


def another_version() -> Problem:
    """Return the refusal of an edit of an old version: 412."""
    detail = "The user has another version: read it again, and repeat the change if it still fits."
    return Problem("precondition-failed", detail)


def wrong_route(method: str, *, has_id: bool) -> Problem:
    """Return the refusal of what Powertools has no route for: 405, 422, or 404.

    An id with an odd character matches none of its routes, though the method is right.
    """
    allowed = ("GET", "PATCH") if has_id else ("GET", "POST")
    if method in allowed and has_id:
        return invalid({"field": "user_id", "detail": "must be a UUID"})
    if method in allowed:
        return Problem("not-found", "There is nothing at this path.")
    methods = ", ".join(allowed)
    detail = f"{method} is not allowed here; allowed are {methods}."
    return Problem("method-not-allowed", detail, headers={"Allow": methods})
