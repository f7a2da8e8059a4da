"""How a request can fail: status and error object."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psycopg
from lambda_pg import CommitOutcomeUnknownError, DatabaseUnavailableError, DeadlineExceededError
from lambda_pg.text import TooLargeError
from psycopg.errors import Diagnostic

from .keys import KeysUnavailableError

PROTOCOL = "08P01"
"""SQLSTATE of a request that breaks the protocol."""

LIMIT = "54000"
"""SQLSTATE of a request or an answer over a limit."""

LONGEST = 10_000
"""Characters of each text of an error: PostgreSQL quotes values of any size in them."""

_FIELDS = {
    "detail": "message_detail",
    "hint": "message_hint",
    "position": "statement_position",
    "internalPosition": "internal_position",
    "internalQuery": "internal_query",
    "severity": "severity",
    "where": "context",
    "table": "table_name",
    "column": "column_name",
    "schema": "schema_name",
    "dataType": "datatype_name",
    "constraint": "constraint_name",
    "file": "source_file",
    "line": "source_line",
    "routine": "source_function",
}
"""The fields of an error object, and what psycopg's diagnostics call them. All are text."""


class RequestError(Exception):
    """Report a request that cannot be served as it is."""

    def __init__(self, message: str, code: str = PROTOCOL, status: int = 400) -> None:
        """Take a message for the client, without secrets, an SQLSTATE and an HTTP status."""
        super().__init__(message)
        self.code = code
        self.status = status


class Failure(NamedTuple):
    """An error as the client gets it."""

    status: int
    body: dict[str, str | None]
    retry_after: int | None = None


def failure_of(error: Exception) -> Failure:
    """Choose status and error object. The client reads the object only on 400."""
    return next(answer(error) for kind, answer in _ANSWERS if isinstance(error, kind))


def error_object(
    message: str, code: str | None, diagnostic: Diagnostic | None = None
) -> dict[str, str | None]:
    """Build the error object; what is absent is null."""
    details: dict[str, Any] = {
        name: None if diagnostic is None else _clipped(getattr(diagnostic, attribute))
        for name, attribute in _FIELDS.items()
    }
    if diagnostic is None:
        details["severity"] = "ERROR"
    return {"message": _clipped(message), "code": code, **details}


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _of_request(error: RequestError) -> Failure:
    return Failure(error.status, error_object(str(error), error.code))


def _of_size(error: TooLargeError) -> Failure:
    return Failure(507, error_object(str(error), LIMIT))


def _of_commit(error: CommitOutcomeUnknownError) -> Failure:
    return Failure(400, error_object(str(error), "08007"))


def _of_deadline(error: DeadlineExceededError) -> Failure:
    if not error.may_have_run:
        return _unavailable(error.retry_after)
    return Failure(400, error_object("the statement was canceled at the deadline", "57014"))


def _of_outage(error: DatabaseUnavailableError | KeysUnavailableError) -> Failure:
    return _unavailable(error.retry_after)


def _of_database(error: psycopg.Error) -> Failure:
    if error.sqlstate is not None:
        message = error.diag.message_primary or str(error)
        return Failure(400, error_object(message, error.sqlstate, error.diag))
    return _unavailable(1) if isinstance(error, psycopg.OperationalError) else _of_defect(error)


def _of_defect(_: Exception) -> Failure:
    return Failure(500, error_object("internal error: the log of /sql has the reason", "XX000"))


def _unavailable(seconds: float) -> Failure:
    message = (
        "the database or the table of keys cannot be reached: retry after the time in Retry-After"
    )
    return Failure(503, error_object(message, None), max(1, math.ceil(seconds)))


_ANSWERS: tuple[tuple[type[Exception], Callable[[Any], Failure]], ...] = (
    (RequestError, _of_request),
    (TooLargeError, _of_size),
    (CommitOutcomeUnknownError, _of_commit),
    (DeadlineExceededError, _of_deadline),
    (DatabaseUnavailableError, _of_outage),
    (KeysUnavailableError, _of_outage),
    (psycopg.Error, _of_database),
    (Exception, _of_defect),
)
"""The first kind that matches decides."""

encode: Callable[[Mapping[str, str | None]], str] = json.JSONEncoder(ensure_ascii=False).encode
"""Writes an error object."""
