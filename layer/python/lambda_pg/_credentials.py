"""Who to log in as: cached, fetched once at a time, refreshed when a login is refused."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Any

from lambda_pg._errors import CredentialsError
from lambda_pg._secrets import SecretsUnavailableError, fetch_secret
from lambda_pg._settings import Settings

LIFETIME = 900.0
"""Seconds that a fetched secret is used without a look at Secrets Manager."""

PAUSE = 30.0
"""Seconds until the next look after one that failed, while there is an old copy."""


@dataclass(frozen=True)
class Credentials:
    """A user and a password, and where the secret says they are valid."""

    user: str
    password: str = field(repr=False)
    host: str | None = None
    port: int | None = None
    dbname: str | None = None


class CredentialCache:
    """Hold the credentials of one secret; threads that need a fetch wait for one."""

    def __init__(
        self,
        settings: Settings,
        fetch: Callable[..., dict[str, Any]] = fetch_secret,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read nothing yet. The clock is the wall's: others stand still in a frozen environment."""
        self._settings = settings
        self._fetch = fetch
        self._clock = clock
        self._lock = Lock()
        self._cached: Credentials | None = None
        self._fresh_until = 0.0

    def get(self, timeout: float) -> Credentials:
        """Return the credentials, fetching them within `timeout` seconds where it must.

        An expired copy is still used when Secrets Manager fails: it may well be valid.
        Raises CredentialsError.
        """
        if self._settings.secret_arn is None:
            return Credentials(self._settings.user or "", self._settings.password or "")
        with self._locked(timeout) as left:
            if self._cached is None:
                return self._refresh(left)
            if self._clock() < self._fresh_until:
                return self._cached
            try:
                return self._refresh(left / 3)
            except CredentialsError:
                self._fresh_until = self._clock() + PAUSE
                return self._cached

    def replace(self, refused: Credentials, timeout: float) -> bool:
        """Fetch the secret after `refused` was refused; tell whether it differs now.

        Raises CredentialsError.
        """
        if self._settings.secret_arn is None:
            return False
        with self._locked(timeout) as left:
            if self._cached is not None and self._cached != refused:
                return True  # another thread was faster
            return self._refresh(left) != refused

    @contextmanager
    def _locked(self, timeout: float) -> Generator[float, None, None]:
        """Wait for another thread's fetch; give the seconds that are left then."""
        until = monotonic() + timeout
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise SecretsUnavailableError(f"Secrets Manager did not answer within {timeout:.1f} s")
        try:
            yield max(0.1, until - monotonic())
        finally:
            self._lock.release()

    def _refresh(self, timeout: float) -> Credentials:
        arn = self._settings.secret_arn or ""
        secret = self._fetch(arn, timeout=timeout)
        missing = [
            name for name in ("username", "password") if not isinstance(secret.get(name), str)
        ]
        if missing:
            raise CredentialsError(f"the secret {arn} has no text field {' and '.join(missing)}")
        self._cached = Credentials(
            user=secret["username"],
            password=secret["password"],
            host=secret.get("host"),
            port=_port(arn, secret.get("port")),
            dbname=secret.get("dbname"),
        )
        self._fresh_until = self._clock() + LIFETIME
        return self._cached


def _port(arn: str, value: object) -> int | None:
    """Take a port as a number or, as CloudFormation writes it, as digits."""
    if value is None:
        return None
    if str(value).isascii() and str(value).isdigit():
        return int(str(value))
    raise CredentialsError(f"the secret {arn} has the port {value!r}, which is not a number")
