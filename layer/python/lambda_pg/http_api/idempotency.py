"""Changes that are applied once: the answer is stored in the transaction of the change."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import psycopg
from psycopg.rows import Row, tuple_row

from lambda_pg._clock import monotonic
from lambda_pg._connection import Connection
from lambda_pg._database import Database
from lambda_pg._errors import (
    CommitOutcomeUnknownError,
    DatabaseUnavailableError,
    DeadlineExceededError,
)
from lambda_pg._jitter import jitter
from lambda_pg._pipeline import Request as Statement
from lambda_pg.http_api.answers import Answer
from lambda_pg.http_api.problems import Problem
from lambda_pg.http_api.request import Request

Change = Callable[[psycopg.Connection[Row]], Answer]

MAX_STORED: Final = 65_536
"""Bytes that the body of a stored answer may have; the table has the same bound."""

LONGEST_WAIT: Final = 10.0
"""Seconds from the beginning of a request in which it waits for the first one with its key."""

FIRST_PAUSE: Final = 0.025
LONGEST_PAUSE: Final = 0.4
"""Bounds of the pause between two looks for the first one's answer, in seconds."""

LAST_LOOK: Final = 0.1
"""Seconds at the end of the wait in which a request does not look again."""

CLAIM: Final = (
    "SELECT claimed, request, status, headers::text, body"
    " FROM claim_idempotency_key(%s, %s, %s, %s)"
)
"""With true as its last parameter it claims the key for the transaction, else it only looks."""

STORE: Final = "SELECT store_idempotent_answer(%s, %s, %s, %s::smallint, %s::jsonb, %s)"
"""Also deletes at most ten expired rows of the caller."""


def change_once(
    db: Database[Row],
    request: Request,
    change: Change[Row],
    *,
    claims: Mapping[str, Any] | None = None,
) -> Answer:
    """Run `change(connection)` in a transaction, and return its answer.

    With an Idempotency-Key the change is made once: the transaction stores the answer too, for 24
    hours, and a repetition gets it with `Idempotent-Replayed: true`. The key belongs to the
    caller's `sub`, the API, the method and the path. While another request with the key runs, this
    one waits within the deadline, at most 10 s, without a server connection.

    Only an answer of 200 to 299 is committed. After another one, or an exception, everything is
    rolled back and nothing is stored. `change` must have no effects but those of its connection: it
    may run again, as in run_transaction(). `claims` are the request's, unless given.

    Raises Problem: 400 without a key where the stage requires one, 422 if the key belongs to
    another request, 409 at the end of the wait. Raises ValueError if an answer that must be stored
    has a body of more than 65,536 bytes, and what run_transaction() raises.
    """
    text = request.require_key()
    claims = request.claims if claims is None else claims
    if text is None:
        return _committed(db, lambda connection: _answer_of(change, connection), claims)
    key = Key.of(request, text, _subject(claims))
    until = min(db._invocations.earliest(), monotonic() + LONGEST_WAIT)
    unknown: CommitOutcomeUnknownError | None = None
    while True:
        try:
            answer = _apply_or_wait(db, key, change, claims, until)
        except CommitOutcomeUnknownError as error:
            if unknown is not None:
                raise
            unknown = error  # the next claim shows the outcome: the row is there if the change is
        except DatabaseUnavailableError as error:
            if unknown is None:
                raise
            raise unknown from error  # the change may have been made
        else:
            if answer is not None:
                return answer


def _apply_or_wait(
    db: Database[Row], key: "Key", change: Change[Row], claims: Mapping[str, Any], until: float
) -> Answer | None:
    """Return the answer of the change, or of the first request; None if the key is free again."""
    try:
        return _committed(db, lambda connection: key.apply(change, connection), claims)
    except _BusyError:
        return _await_first(db, key, claims, until)


class _BusyError(Exception):
    """Another transaction has the key: roll this one back."""


class _UndoneError(Exception):
    """Roll the transaction back, and return the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Key(NamedTuple):
    """An Idempotency-Key of one caller, and the request that came with it."""

    owner: UUID
    id: bytes
    """A hash of API, method, path and key."""
    request: bytes
    """A hash of what must be equal in a repetition."""
    lock: int
    """The number of the advisory lock that the transaction of the change holds. If another key
    has the same number, each waits for the other's transaction."""

    @classmethod
    def of(cls, request: Request, text: str, owner: UUID) -> "Key":
        """Take the characters of the key and the caller's `sub`."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = _hash(request.api, request.method, request.path, text)
        sent = _hash(request.method, request.path, request.query, media_type, request.body)
        lock = int.from_bytes(_hash(owner.bytes, name)[:8], "big", signed=True)
        return cls(owner, name, sent, lock)

    def apply(self, change: Change[Row], connection: psycopg.Connection[Row]) -> Answer:
        """Claim the key, run the change, and have its answer stored together with COMMIT.

        Raises _UndoneError with an answer that must not be stored, _BusyError if another
        transaction has the key, and Problem if the key belongs to another request.
        """
        cursor = connection.cursor(row_factory=tuple_row)
        claimed, stored = self._read(cursor.execute(CLAIM, (*self._claim, True)))
        if stored is not None:
            raise _UndoneError(stored)
        if not claimed:
            raise _BusyError
        answer = _answer_of(change, connection)
        cast(Connection[Row], connection).close_with([self._storing(connection, answer)])
        return answer

    def look(self, db: Database[Row], claims: Mapping[str, Any]) -> tuple[bool, Answer | None]:
        """Tell in one round trip whether the key is free, and return the stored answer.

        Raises Problem if the key belongs to another request.
        """
        cursor: psycopg.Cursor[Any] = db.execute(
            CLAIM, (*self._claim, False), claims=claims, idempotent=True
        )
        cursor.row_factory = tuple_row
        return self._read(cursor)

    @property
    def _claim(self) -> tuple[UUID, bytes, int]:
        return self.owner, self.id, self.lock

    def _read(self, cursor: psycopg.Cursor[Any]) -> tuple[bool, Answer | None]:
        claimed, request, status, headers, body = cursor.fetchone() or (False, *[None] * 4)
        if status is None:
            return bool(claimed), None
        if request != self.request:
            raise Problem(
                "idempotency-key-reused",
                "The Idempotency-Key was sent before with another request; send a new key.",
            )
        replayed = {**json.loads(headers), "Idempotent-Replayed": "true"}
        return False, Answer(status, body or None, replayed)

    def _storing(self, connection: psycopg.Connection[Row], answer: Answer) -> Statement:
        content = answer.content
        if len(content) > MAX_STORED:
            raise ValueError(
                f"the body of the answer has {len(content)} bytes; must be at most {MAX_STORED} to "
                "be stored for a repetition: return less, for example only the id of the new row"
            )
        headers = json.dumps(dict(answer.headers))
        row = (self.owner, self.id, self.request, answer.status, headers, content)
        return Statement.of(psycopg.Cursor(connection, row_factory=tuple_row), STORE, row)


def _hash(*parts: str | bytes) -> bytes:
    """Hash parts such that no other list of parts has the same hash."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode(errors="surrogatepass")
        found.update(len(data).to_bytes(8, "big") + data)
    return found.digest()


def _subject(claims: Mapping[str, Any]) -> UUID:
    """Return the owner of a key. Raises ValueError, without the claims: they may be private."""
    try:
        return UUID(claims["sub"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            "the claims have no sub that is a UUID; an Idempotency-Key belongs to such a sub"
        ) from None


def _committed(
    db: Database[Row], work: Callable[[psycopg.Connection[Row]], Answer], claims: Mapping[str, Any]
) -> Answer:
    """Run a transaction; return its answer, also one that has rolled it back."""
    try:
        answer: Answer | None = db.run_transaction(work, claims=claims)
    except _UndoneError as undone:
        return undone.answer
    if answer is None:
        raise TypeError("the change was rolled back by psycopg.Rollback: return an Answer instead")
    return answer


def _answer_of(change: Change[Row], connection: psycopg.Connection[Row]) -> Answer:
    """Run the change. Raises _UndoneError with an answer whose status is not 200 to 299.

    The body is encoded here, so that one that JSON cannot hold is not found after COMMIT.
    """
    answer = change(connection)
    if not isinstance(answer, Answer):
        raise TypeError(f"the change returned a {type(answer).__name__}; must return an Answer")
    _ = answer.content
    if not 200 <= answer.status <= 299:
        raise _UndoneError(answer)
    return answer


def _await_first(
    db: Database[Row], key: Key, claims: Mapping[str, Any], until: float
) -> Answer | None:
    """Return the answer of the first request with the key; None if the key is free again.

    Nothing is held between two looks. Raises Problem: 409 at the time.monotonic() of `until`.
    """
    longest = FIRST_PAUSE
    while (left := until - LAST_LOOK - monotonic()) > 0:
        time.sleep(min(left, jitter.uniform(longest / 2, longest)))
        longest = min(2 * longest, LONGEST_PAUSE)
        try:
            free, answer = key.look(db, claims)
        except DeadlineExceededError as late:
            raise _in_use() from late
        if free or answer is not None:
            return answer
    raise _in_use()


def _in_use() -> Problem:
    return Problem(
        "idempotency-key-in-use",
        "The first request with this Idempotency-Key is still running; retry it later.",
        headers={"Retry-After": "1"},
    )
