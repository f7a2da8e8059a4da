"""The credentials: cached, fetched by one thread at a time, refreshed when a login is refused."""

import json
import math
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from time import sleep
from typing import Any, Final

from lambda_pg._clock import monotonic
from lambda_pg._errors import ConfigurationError, CredentialsError
from lambda_pg._iam import auth_token
from lambda_pg._jitter import jitter
from lambda_pg._secrets import Fetch, SecretError, take_prefetched
from lambda_pg._settings import Settings
from lambda_pg._url import ChannelBinding, Url, host_problem

LIFETIME: Final = 900.0
"""Seconds after which a secret is fetched again, less up to a fifth of jitter."""

TOKEN_LIFETIME: Final = 840.0
"""The same for an IAM token: a minute less than it is valid for at a connect (AWS's own limit)."""

PAUSE: Final = 30.0
"""Seconds until the next fetch after one that failed, while there is an old copy."""

REFUSED_PAUSE: Final = 0.5
"""Seconds between two fetches while logins are refused: a rotation takes its time, and a whole
fleet calls Secrets Manager then."""

DOUBTED_PAUSE: Final = 1.0
"""The same while a server refuses logins for an unknown reason."""

FAILED_PAUSE: Final = 1.0
"""Seconds between two fetches of an environment while Secrets Manager fails or throttles."""

LAST_FETCH: Final = 0.3
"""Seconds before the end of a wait at which it fetches once more, before the pause is over: enough
for the answer and for a login."""

END: Final = 0.9
"""Seconds before the end of a wait from which a refused login waits for that last fetch: more than
LAST_FETCH and the longest pause between two logins."""


class SecretsUnavailableError(CredentialsError):
    """Report that no version of the secret can be used now: a later fetch may succeed."""


@dataclass(frozen=True)
class Credentials:
    """A user and a password, and the endpoint that the secret names for them."""

    user: str
    password: str = field(repr=False)
    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    options: str | None = None
    channel_binding: ChannelBinding | None = None

    @classmethod
    def from_secret(cls, arn: str, text: str, *, direct: bool = False) -> "Credentials":
        """Read a secret as RDS writes it, or with `url` and `direct_url`.

        With a `direct_url` alone, the fields of RDS are those of the pooler.
        Raises ConfigurationError that names the field, never its content.
        """
        try:
            secret = json.loads(text)
        except (ValueError, RecursionError):
            secret = None
        if not isinstance(secret, dict):
            raise ConfigurationError([f"the secret {arn} is not a JSON object"])
        if "url" in secret or ("direct_url" in secret and (direct or "username" not in secret)):
            return cls._from_url(arn, "direct_url" if direct else "url", secret)
        if problems := list(_problems(secret)):
            raise ConfigurationError([f"the secret {arn} {problem}" for problem in problems])
        return cls(
            secret["username"],
            secret["password"],
            secret.get("host"),
            _port(secret.get("port")),
            secret.get("dbname"),
        )

    @classmethod
    def _from_url(cls, arn: str, name: str, secret: dict[str, Any]) -> "Credentials":
        text = secret.get(name)
        if not isinstance(text, str):
            raise ConfigurationError([f"the secret {arn} has no text in its field {name!r}"])
        try:
            url = Url.parse(text)
        except ValueError as error:
            raise ConfigurationError([f"the secret {arn}: its field {name!r} {error}"]) from None
        if url.user is None or url.password is None or url.host is None:
            raise ConfigurationError(
                [f"the secret {arn}: its field {name!r} names no user or no password"]
            )
        return cls(
            url.user,
            url.password,
            url.host,
            url.port,
            url.dbname,
            url.options,
            url.channel_binding,
        )


def _problems(secret: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the fields of a secret that RDS wrote, without their values."""
    for name in ("username", "password"):
        if not _is_text(secret.get(name)):
            yield f"has no text in its field {name!r}"
    for name in ("host", "dbname"):
        if secret.get(name) is not None and not _is_text(secret[name]):
            yield f"has a field {name!r} that is not a text"
    host = secret.get("host")
    if isinstance(host, str) and (problem := host_problem(host)):
        yield f"has a field 'host' that {problem}"
    if _port(secret.get("port")) == 0:
        yield "has a field 'port' that is not a port from 1 to 65535"


def _is_text(value: object) -> bool:
    """Tell whether it can be sent: JSON may hold a NUL, or a half of a surrogate pair."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()  # no pattern: to compile one costs a first request 0.4 ms
    except UnicodeEncodeError:
        return False
    return True


def _port(value: object) -> int | None:
    """Read a port from a number or, as CloudFormation writes it, from digits; 0 if it is wrong."""
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= 5):
        return 0
    return int(text) if 1 <= int(text) <= 65535 else 0


class CredentialCache:
    """Hold the credentials; threads that need a fetch wait for one.

    Large because one lock guards all of it: both versions of the secret, and when each may be asked
    for.
    """

    def __init__(
        self,
        settings: Settings,
        start_fetch: Callable[[str, str], Fetch] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read nothing yet. The clock is the wall's: others stand still in a frozen environment."""
        self._settings = settings
        self._start_fetch = start_fetch or _start_fetch
        self._clock = clock
        self.refreshes = 0
        self.generation = 0
        """Counts the changes: a connection that was opened under an older one is replaced."""
        self.unlock()
        self.forget()
        _CACHES.add(self)

    def unlock(self) -> None:
        """Have no thread hold the turn to fetch."""
        self._lock = Lock()
        self._freed = Condition(self._lock)
        self._holder: Callable[[], object] = _no_turn

    def forget(self) -> None:
        """Know nothing, as a new environment does."""
        self.generation += 1
        self._cached: Credentials | None = None
        self._asked_at = -math.inf
        self._may_fetch_at = -math.inf
        """The wall clock's time before which a failing Secrets Manager is not called again."""
        self._failure = ""
        self._previous: Credentials | None = None
        self._previous_asked_at = -math.inf
        self.fresh_until = 0.0
        """The wall clock's time until which `get` returns what it has."""

    def get(self, timeout: float) -> Credentials:
        """Return the credentials, fetching them within `timeout` seconds where it must.

        An expired copy is still used when Secrets Manager fails: it may well be valid.
        Raises CredentialsError, and ConfigurationError for a secret that cannot be used.
        """
        cached = self._cached
        if cached is not None and (self._is_fresh() or self._holder() is not None):
            return cached  # fresh, or another thread is fetching already
        with self._locked(timeout) as left:
            if self._cached is None:
                return self._first(left)
            if self._is_fresh():
                return self._cached
            try:
                return self._refresh(left / 3)
            except (CredentialsError, ConfigurationError):
                self.fresh_until = self._clock() + PAUSE
                return self._cached

    def _is_fresh(self) -> bool:
        return 0 < self.fresh_until - self._clock() <= LIFETIME  # else the clock was set back

    def accepted(self, credentials: Credentials) -> None:
        """Use credentials that a login has just accepted."""
        if credentials != self._cached:
            self._cached = credentials
            self.fresh_until = self._clock() + PAUSE

    def after_refusal(
        self, refused: Credentials, timeout: float, pause: float = REFUSED_PAUSE
    ) -> Credentials | None:
        """Return other credentials than those that were refused; None when there are none now.

        First the current version is fetched again, where that was not done in the last `pause`
        seconds. When that is refused too, or cannot be used, the previous one may still be right: a
        pooler may not know the new password yet.
        """
        if self._settings.secret_arn is None and self._settings.auth == "password":
            return None
        with self._locked(timeout) as left:
            if refused == self._previous and refused != self._cached:
                return None
            if self._cached is not None and self._cached != refused:
                return self._cached  # another thread was faster
            unusable: ConfigurationError | None = None
            if not 0 <= self._clock() - self._asked_at < pause:  # a clock may be set back
                try:
                    current = self._refresh(left, patient=left <= END)
                except ConfigurationError as error:
                    unusable = error.with_traceback(None)
                else:
                    if current != refused:
                        return current
            previous = self._fetch_previous(refused, left)
            if previous is None and unusable is not None:
                raise SecretsUnavailableError(
                    f"the login was refused, and the current credentials cannot be used: {unusable}"
                )
            return previous

    def _fetch_previous(self, refused: Credentials, timeout: float) -> Credentials | None:
        if self._settings.secret_arn is None:
            return None
        if 0 <= self._clock() - self._previous_asked_at < PAUSE:
            return None
        try:
            self._previous = self._fetch("AWSPREVIOUS", timeout, patient=timeout <= END)
        except SecretsUnavailableError:
            return None  # no answer: the next fetch may follow soon
        except (CredentialsError, ConfigurationError):
            self._previous_asked_at = self._clock()
            return None  # a secret that was never rotated has none
        self._previous_asked_at = self._clock()
        return None if self._previous == refused else self._previous

    def _first(self, timeout: float) -> Credentials:
        """Fetch the current version, or the previous one while the current one cannot be used."""
        until = monotonic() + timeout
        try:
            return self._refresh(timeout, patient=True)
        except ConfigurationError as error:
            if self._settings.secret_arn is None or self._settings.auth == "iam":
                raise
            problems = error.problems
        try:
            previous = self._fetch("AWSPREVIOUS", max(0.1, until - monotonic()), patient=True)
        except SecretsUnavailableError:
            raise
        except (CredentialsError, ConfigurationError) as error:
            also = f"nor can its previous version be used: {error}"
            raise ConfigurationError([*problems, also]) from None
        self._cached = previous
        self.fresh_until = self._clock() + PAUSE
        return previous

    @contextmanager
    def _locked(self, timeout: float) -> Generator[float, None, None]:
        """Wait for another thread's fetch; yield the seconds that are left then.

        The thread that fetches holds a turn, which is freed with its frame: a signal handler's
        exception may come between any two steps, and would leave a lock locked for good.
        """
        until = monotonic() + timeout
        turn = _Turn()
        with self._lock:
            while self._holder() is not None:
                left = until - monotonic()
                if left <= 0:
                    raise SecretsUnavailableError(
                        f"Secrets Manager did not answer within {timeout:.1f} s"
                    )
                self._freed.wait(min(left, 0.1))  # a turn that was freed that way gives no notice
            self._holder = weakref.ref(turn)
        try:
            yield max(0.1, until - monotonic())
        finally:
            self._holder = _no_turn
            with self._lock:
                self._freed.notify()

    def _refresh(self, timeout: float, *, patient: bool = False) -> Credentials:
        self._asked_at = self._clock()
        try:
            fresh = self._current(timeout, patient=patient)
        except SecretsUnavailableError:
            self._asked_at = 0.0  # there was no answer
            raise
        if self._cached is not None and fresh != self._cached and self._settings.auth != "iam":
            self.generation += 1  # a new token matters only at a connect
        self._cached = fresh
        lifetime = TOKEN_LIFETIME if self._settings.auth == "iam" else LIFETIME
        self.fresh_until = self._asked_at + lifetime * jitter.uniform(0.8, 1.0)
        self.refreshes += self._settings.password is None  # else nothing was fetched
        return fresh

    def _current(self, timeout: float, *, patient: bool) -> Credentials:
        settings = self._settings
        if settings.auth == "iam":
            return Credentials(settings.user or "", auth_token(settings))
        if settings.secret_arn is None:
            return Credentials(settings.user or "", settings.password or "")
        return self._fetch("AWSCURRENT", timeout, patient=patient)

    def _fetch(self, stage: str, timeout: float, *, patient: bool) -> Credentials:
        """Fetch a version of the secret within `timeout` seconds.

        While Secrets Manager fails or throttles, it is called at most once a second. A `patient`
        fetch waits until it may call. Raises SecretsUnavailableError, at once if not `patient`.
        """
        until = monotonic() + timeout
        while True:
            pause = self._may_fetch_at - self._clock()
            if not 0 < pause <= 2 * FAILED_PAUSE:  # a clock may be set back
                pause = 0.0
            wait = _wait(pause, until - monotonic()) if patient and pause else pause
            if wait is None or (wait and not patient):
                raise SecretsUnavailableError(f"{self._failure} (next attempt in {pause:.1f} s)")
            sleep(wait)
            turn = (
                self._clock() + pause - wait
            )  # a fetch before its time does not move the later ones
            try:
                return self._fetch_now(stage, max(0.1, until - monotonic()))
            except SecretsUnavailableError as error:
                self._may_fetch_at, self._failure = turn + FAILED_PAUSE, str(error)
                if not patient or until - monotonic() <= LAST_FETCH:
                    raise

    def _fetch_now(self, stage: str, timeout: float) -> Credentials:
        arn = self._settings.secret_arn or ""
        fetch = self._start_fetch(arn, stage)
        try:
            return Credentials.from_secret(arn, fetch.result(timeout), direct=self._settings.direct)
        except ConfigurationError as error:
            raise error.with_traceback(None) from None  # its frames have the secret
        except SecretError as error:
            kind = SecretsUnavailableError if error.passing else CredentialsError
            raise kind(str(error)) from error


class _Turn:
    """Held by the thread that fetches."""


def _no_turn() -> None:
    return None


def _wait(seconds: float, left: float) -> float | None:
    """Return the seconds to wait before the next fetch, or None if `left` seconds are too few.

    A fetch that would come too late is moved forward, to LAST_FETCH seconds before the time is up,
    but only once.
    """
    if seconds <= left - LAST_FETCH:
        return max(0.0, seconds)
    early = left - LAST_FETCH
    return early if early > 0 and seconds <= FAILED_PAUSE else None


_CACHES: Final[weakref.WeakSet[CredentialCache]] = weakref.WeakSet()


def _unlock() -> None:
    """Free the turn that a thread of the parent process holds."""
    for cache in list(_CACHES):
        cache.unlock()


os.register_at_fork(after_in_child=_unlock)


def _start_fetch(arn: str, stage: str) -> Fetch:
    """Begin a fetch, or take the one that began with the environment, while it is young."""
    early = take_prefetched(arn) if stage == "AWSCURRENT" else None
    if early is not None and 0 <= time.time() - early.started_at < PAUSE:
        return early
    fetch = Fetch(arn, stage)
    fetch.start()
    return fetch
