"""Requests: headers and body, checked before anything is sent to the database."""

import base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from lambda_pg.text import Statement
from psycopg import IsolationLevel

from .errors import LIMIT, RequestError
from .parameters import as_texts, read_json

CONNECTION_STRING = "neon-connection-string"
RAW = "neon-raw-text-output"
ARRAYS = "neon-array-mode"
ISOLATION_LEVEL = "neon-batch-isolation-level"
READ_ONLY = "neon-batch-read-only"
DEFERRABLE = "neon-batch-deferrable"

_LEVELS = {
    "ReadUncommitted": IsolationLevel.READ_UNCOMMITTED,
    "ReadCommitted": IsolationLevel.READ_COMMITTED,
    "RepeatableRead": IsolationLevel.REPEATABLE_READ,
    "Serializable": IsolationLevel.SERIALIZABLE,
}


_NAMES = {level: name for name, level in _LEVELS.items()}


def level_name(level: IsolationLevel) -> str:
    """Return a level's name in the protocol."""
    return _NAMES[level]


class Modes(NamedTuple):
    """What the headers ask for."""

    raw: bool
    arrays: bool
    isolation_level: IsolationLevel | None
    read_only: bool
    deferrable: bool


class Request(NamedTuple):
    """The statements of a request, one or those of a batch."""

    statements: list[Statement]
    arrays: list[bool]
    """For each statement whether its rows are arrays."""
    is_batch: bool


def headers_of(event: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers by names in lower case."""
    headers: Mapping[str, str] = event.get("headers") or {}
    return {name.lower(): value for name, value in headers.items()}


def read_modes(headers: Mapping[str, str]) -> Modes:
    """Read the headers that say how to run and answer. Raises RequestError."""
    level = headers.get(ISOLATION_LEVEL)
    if level is not None and level not in _LEVELS:
        raise RequestError("invalid isolation level")
    return _modes(
        headers.get(RAW) == "true",
        headers.get(ARRAYS) == "true",
        level,
        headers.get(READ_ONLY) == "true",
        headers.get(DEFERRABLE) == "true",
    )


@lru_cache
def _modes(raw: bool, arrays: bool, level: str | None, read_only: bool, deferrable: bool) -> Modes:
    isolation_level = None if level is None else _LEVELS[level]
    return Modes(raw, arrays, isolation_level, read_only, deferrable)


def read_body(event: Mapping[str, Any], max_bytes: int) -> str:
    """Return the body's text. Raises RequestError, 413 for more than `max_bytes`."""
    body: str = event.get("body") or ""
    if len(body) > 2 * max_bytes:  # base64 of max_bytes is shorter
        raise _too_large(max_bytes)
    try:
        content = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
        text = content.decode()
    except ValueError:  # its arguments hold the body
        raise RequestError("the body is not UTF-8") from None
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    return text


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body has more than {max_bytes} bytes, the limit", LIMIT, 413)


def read_request(body: str, *, arrays: bool, max_statements: int) -> Request:
    """Read the queries of a body; `arrays` is the header's mode. Raises RequestError."""
    document = read_json(body)
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    if "queries" not in document:
        statement, mode = _query(document, arrays)
        return Request([statement], [mode], is_batch=False)
    batch = document["queries"]
    if not isinstance(batch, list):
        raise RequestError("the field queries must be an array")
    if len(batch) > max_statements:
        message = f"the batch has {len(batch)} statements; at most {max_statements} are allowed"
        raise RequestError(message, LIMIT)
    queries = [_query(each, arrays) for each in batch]
    return Request([each for each, _ in queries], [mode for _, mode in queries], is_batch=True)


def _query(document: Any, arrays: bool) -> tuple[Statement, bool]:
    """Return a statement, and whether its rows are arrays; `arrays` if it does not say so."""
    text = document.get("query") if isinstance(document, dict) else None
    if text.__class__ is not str:
        raise RequestError("each query must be a JSON object with a field query that is a text")
    params = document.get("params")
    params = [] if params is None else params
    mode = document.get("arrayMode")
    if not isinstance(params, list):
        raise RequestError("the field params must be an array")
    if mode is not None and not isinstance(mode, bool):
        raise RequestError("the field arrayMode must be true or false")
    return Statement(text, as_texts(params)), arrays if mode is None else mode
