"""Who to log in as: cached, fetched once at a time, refreshed when a login is refused."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from lambda_pg._errors import CredentialsError
from lambda_pg._secrets import fetch_secret
from lambda_pg._settings import Settings

LIFETIME = 900.0
"""Seconds that a fetched secret is used without a look at Secrets Manager."""


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
        self._fetched_at = 0.0

    def get(self, timeout: float) -> Credentials:
        """Return the credentials, fetching them within `timeout` seconds where it must.

        An expired copy is still used when Secrets Manager fails: it may well be valid.
        Raises CredentialsError.
        """
        if self._settings.secret_arn is None:
            return Credentials(self._settings.user or "", self._settings.password or "")
        with self._lock:
            if self._cached is not None and self._clock() - self._fetched_at < LIFETIME:
                return self._cached
            try:
                return self._refresh(timeout)
            except CredentialsError:
                if self._cached is None:
                    raise
                return self._cached

    def replace(self, refused: Credentials, timeout: float) -> bool:
        """Fetch the secret after `refused` was refused; tell whether it differs now.

        Raises CredentialsError.
        """
        if self._settings.secret_arn is None:
            return False
        with self._lock:
            if self._cached is not None and self._cached != refused:
                return True  # another thread was faster
            return self._refresh(timeout) != refused

    def forget(self) -> None:
        """Drop the cached secret, so that the next use fetches it."""
        with self._lock:
            self._cached = None

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
        self._fetched_at = self._clock()
        return self._cached


def _port(arn: str, value: object) -> int | None:
    """Take a port as a number or, as CloudFormation writes it, as digits."""
    if value is None:
        return None
    if str(value).isascii() and str(value).isdigit():
        return int(str(value))
    raise CredentialsError(f"the secret {arn} has the port {value!r}, which is not a number")
