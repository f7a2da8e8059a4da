"""Errors of a handler as answers."""

import logging
import math
from typing import Final

import psycopg

from lambda_pg._errors import (
    CommitOutcomeUnknownError,
    DatabaseUnavailableError,
    DeadlineExceededError,
)
from lambda_pg._events import Events
from lambda_pg.http_api.answers import Answer
from lambda_pg.http_api.problems import Problem

_events: Final = Events()


class StatementFailedError(RuntimeError):
    """A statement failed with an unexpected error; the database's log has the statement."""


def answer_to(error: Exception, request_id: str) -> Answer:
    """Return the answer to a request that ended with an error.

    Refusals and outages have an answer. Every other error is a defect and is raised again: the
    invocation fails, and a deployment is rolled back. An SQL error is raised as
    StatementFailedError without the server's message: that can quote values, and Lambda logs it.
    """
    if isinstance(error, Problem):
        return error.answer(request_id)
    if isinstance(error, DatabaseUnavailableError | CommitOutcomeUnknownError):
        _events.report(logging.WARNING, "unavailable", "request %s: %s", request_id, error)
        return _outage(error).answer(request_id)
    if isinstance(error, psycopg.Error):
        raise StatementFailedError(_description(error)) from None
    raise error


def _outage(error: DatabaseUnavailableError | CommitOutcomeUnknownError) -> Problem:
    seconds = error.retry_after if isinstance(error, DatabaseUnavailableError) else 1
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    if isinstance(error, DatabaseUnavailableError) and not _may_have_run(error):
        detail = "The database cannot serve the request now; retry it."
        return Problem("database-unavailable", detail, headers=headers)
    detail = (
        "The database's answer was lost, so the change may have been made or not. With the same"
        " Idempotency-Key, a retry does not make it twice."
    )
    return Problem("outcome-unknown", detail, headers=headers)


def _may_have_run(error: DatabaseUnavailableError) -> bool:
    return isinstance(error, DeadlineExceededError) and error.may_have_run


def _description(error: psycopg.Error) -> str:
    """Name an SQL error without its message."""
    constraint = error.diag.constraint_name
    what = f"{type(error).__name__}, SQLSTATE {error.sqlstate}"
    return what + (f", constraint {constraint}" if constraint else "")
