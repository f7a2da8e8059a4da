"""The line in the log for each request: no header, no parameter, no text of a statement."""

import time
import traceback
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from pathlib import PurePath

from .statements import digests

SHOWN = 20
"""Hashes of a batch's statements in one line."""


_GOOD = '"sqlstate": null, "status": 200, "reason": null}'


class Record:
    """What is known of a request so far. A dataclass would cost a cold start 0.5 ms."""

    def __init__(self, request_id: str | None = None) -> None:
        """Start the clock; `request_id` is the invocation's."""
        self.began = time.perf_counter()
        self.request_id = request_id
        self.key: str | None = None
        self.statements: list[str] = []
        self.rows = 0
        self.bytes = 0
        self.status = 200
        self.sqlstate: str | None = None
        self.reason: str | None = None

    def note_statements(self, texts: list[str]) -> None:
        """Keep hashes of the first texts, as the file of registered statements has them."""
        self.statements = digests(texts[:SHOWN])

    def note_failure(self, status: int, sqlstate: str | None) -> None:
        """Keep how the request failed."""
        self.status, self.sqlstate = status, sqlstate

    def note_reason(self, error: BaseException) -> None:
        """Keep the kind of an unexpected error and where it arose; its text may hold values."""
        frames = traceback.extract_tb(error.__traceback__)[-5:]
        places = [f"{PurePath(each.filename).name}:{each.lineno}" for each in frames]
        self.reason = f"{type(error).__name__} at {' < '.join(reversed(places))}"

    def line(self) -> str:
        """Return the line: JSON, written without an encoder's cost in each request."""
        if self.status == 200:
            level, end = "INFO", _GOOD
        else:
            level = "ERROR" if self.status == 500 else "WARNING" if self.status > 500 else "INFO"
            sqlstate, reason = _text(self.sqlstate), _text(self.reason)
            end = f'"sqlstate": {sqlstate}, "status": {self.status}, "reason": {reason}}}'
        hashes = '", "'.join(self.statements)
        hashes = f'"{hashes}"' if hashes else ""
        return (
            f'{{"timestamp": "{_timestamp(time.time())}", "level": "{level}", '
            f'"requestId": {_text(self.request_id)}, "message": "sql", "key": {_text(self.key)}, '
            f'"statements": [{hashes}], "rows": {self.rows}, '
            f'"bytes": {self.bytes}, '
            f'"milliseconds": {_milliseconds(time.perf_counter() - self.began)}, {end}'
        )


def _timestamp(seconds: float) -> str:
    """Write a time as Lambda's own lines have it, in UTC."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03}Z"


def _milliseconds(seconds: float) -> str:
    """Write a duration by whole numbers: to format a float takes 4 µs."""
    whole, rest = divmod(int(seconds * 100_000), 100)
    return f"{whole}.{rest:02}"


@lru_cache(1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _text(value: str | None) -> str:
    return "null" if value is None else encode_basestring_ascii(value)
