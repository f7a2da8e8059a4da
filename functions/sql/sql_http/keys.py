"""Find a caller by its key, in a copy of the table of keys that is renewed.

A copy is used for `lifetime` seconds of the wall clock: other clocks stand still in a frozen
environment. Any failed login may be due to an old copy, so it reads the table once more, at most
once a second. An unknown id takes the same path as a wrong secret.
docs/decisions/0050
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from lambda_pg._secrets import Fetch, SecretError

from .callers import Caller, StageRules
from .key_table import DIGEST_SIZE, Entry, KeyTable, TableError, read_table

READ_TIMEOUT: Final = 3.0
"""Seconds that a request waits for the table."""

PAUSE: Final = 1.0
"""Seconds between two readings of an environment."""

FAILED_PAUSE: Final = 10.0
"""The same after a failure, while there is a copy that can be used: each may take READ_TIMEOUT."""

OUTAGE: Final = 300.0
"""Seconds that a copy is used beyond its lifetime while Secrets Manager fails."""

_NO_DIGEST: Final = bytes(DIGEST_SIZE)


class KeysUnavailableError(Exception):
    """The table of keys cannot be read now (503)."""

    def __init__(self, message: str, retry_after: float) -> None:
        """Take a message without secrets, and the seconds until the next reading."""
        super().__init__(message)
        self.retry_after = retry_after


class _Copy(NamedTuple):
    table: KeyTable
    asked_at: float
    """The time before the reading, by the wall clock: later changes may be missing."""


def read_secret(arn: str) -> str:
    """Return the text of the secret with the table. Raises lambda_pg's SecretError."""
    fetch = Fetch(arn)
    fetch.start()
    return fetch.result(READ_TIMEOUT)


class Keys:
    """The keys of a stage."""

    def __init__(
        self,
        read: Callable[[], str],
        rules: StageRules,
        *,
        lifetime: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read nothing yet. `read` returns the table's text; `lifetime` is in seconds."""
        self._read, self._rules, self._clock = read, rules, clock
        self._lifetime = lifetime
        self._copy: _Copy | None = None
        self._next_read_at = 0.0
        self._failure = ""
        self._refused = False
        self._logged: tuple[str, ...] = ()

    def find(self, key_id: str, secret: str) -> Caller | None:
        """Return the caller, or None for a key that is not valid, whatever the reason.

        Raises KeysUnavailableError.
        """
        digest = _digest(secret)
        caller = self._match(self._current(), key_id, digest)
        if caller is None and self._may_read():
            self._refresh()
            caller = self._match(self._usable(), key_id, digest)
        return caller

    def _match(self, copy: _Copy, key_id: str, digest: bytes) -> Caller | None:
        """Compare in constant time; for an id that does not exist too."""
        entry: Entry | None = copy.table.entries.get(key_id)
        is_right = hmac.compare_digest(digest, _NO_DIGEST if entry is None else entry.digest)
        if entry is None or not is_right or self._clock() >= entry.expires:
            return None
        return entry.caller

    def _current(self) -> _Copy:
        """Return a copy within its lifetime or, while Secrets Manager fails, an older one."""
        copy = self._copy
        if copy is not None and 0 <= self._clock() - copy.asked_at < self._lifetime:
            return copy
        if not self._is_fresh() and self._may_read():
            self._refresh()
        return self._usable()

    def _is_fresh(self) -> bool:
        return self._age() < self._lifetime

    def _age(self) -> float:
        """Return the seconds since the copy was read; infinity without one."""
        age = float("inf") if self._copy is None else self._clock() - self._copy.asked_at
        return age if age >= 0 else float("inf")  # the clock was set back

    def _usable(self) -> _Copy:
        more = 0.0 if self._refused else OUTAGE
        if self._copy is None or self._age() >= self._lifetime + more:
            wait = min(max(self._next_read_at - self._clock(), 0.1), FAILED_PAUSE)
            raise KeysUnavailableError(f"the table of keys cannot be read: {self._failure}", wait)
        return self._copy

    def _may_read(self) -> bool:
        wait = self._next_read_at - self._clock()
        return not 0 < wait <= FAILED_PAUSE  # a clock may be set back

    def _refresh(self) -> None:
        """Read the table. A failure is kept, and logged."""
        asked_at = self._clock()
        try:
            table = read_table(self._read(), self._rules)
        except (SecretError, TableError) as error:
            self._fail(error)
            return
        self._copy, self._failure, self._refused = _Copy(table, asked_at), "", False
        self._next_read_at = asked_at + PAUSE
        if table.problems != self._logged:
            for problem in table.problems:
                _log(problem)
        self._logged = table.problems

    def _fail(self, error: SecretError | TableError) -> None:
        # A refusal, as for a secret that was deleted, is an answer: no outage.
        self._failure = str(error)
        self._refused = isinstance(error, SecretError) and not error.passing
        _log(self._failure)
        usable = not self._refused and self._age() < self._lifetime + OUTAGE
        self._next_read_at = self._clock() + (FAILED_PAUSE if usable else PAUSE)


@lru_cache(100)
def _digest(secret: str) -> bytes:
    """Return the hash of a secret, which is kept: a client's requests repeat it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _log(problem: str) -> None:
    print(json.dumps({"level": "ERROR", "message": "keys", "reason": problem}))
