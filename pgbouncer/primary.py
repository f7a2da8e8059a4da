"""Makes PgBouncer close its connections to a server that has become a standby.

PgBouncer keeps a server connection for an hour. One that was opened after a failover, while the
name still led to the old primary, stays with a server that takes no writes. So once a second the
supervisor resolves the name and looks at the server connections. A server does not become a standby
while it runs: it is asked only when there are new connections (docs/decisions/0030).
"""

import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .configuration import User
from .session import Row, Session, SessionError
from .settings import Settings

# Seconds between two looks.
LOOK_SECONDS = 1.0
# Seconds between two times that PgBouncer has to reconnect: new connections are of no use before
# the name leads to the new primary. Where that lasts, it is not a failover: some names lead
# elsewhere at each look, and an address may have become a standby's for good.
PAUSE, LONG_PAUSE = 1.0, 30.0
LONGEST_FAILOVER = 120.0
# Seconds without a reason after which another one begins.
QUIET_SECONDS = 60.0
# Seconds that PgBouncer's console, and a server that is asked, may take to answer.
ANSWER_SECONDS = 10.0
# How PgBouncer calls a server connection that is not logged in yet.
LOGGING_IN = ("new", "login")
IS_IN_RECOVERY = "SELECT pg_is_in_recovery()"

log = logging.getLogger("supervisor")


class Login(NamedTuple):
    """A name of the database in PgBouncer, and a user."""

    database: str
    user: str


@dataclass(frozen=True)
class Connection:
    """A server connection: its login, the server's address, and what no other connection has."""

    login: Login
    address: str
    identity: tuple[str | None, ...]


class Verdict:
    """Judges by what each look has seen. Pure: no clock, no I/O."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._addresses: frozenset[str] = frozenset()
        self._left: frozenset[str] = frozenset()
        self._asked: frozenset[Connection] = frozenset()
        self._has_seen_primary = self._in_recovery = False
        # PgBouncer had to leave a standby, and some connections may have been opened there since.
        self._is_leaving = False
        self._not_before = self._quiet_at = -math.inf
        self._began = 0.0

    def resolved(self, addresses: frozenset[str]) -> None:
        """Take what the name leads to; nothing where nobody answers."""
        if not addresses <= self._addresses | self._left:  # one that it never led to
            self._not_before = self._quiet_at = -math.inf
        if addresses:
            self._left = (self._left | self._addresses) - addresses
            self._addresses = addresses

    def to_ask(self, connections: frozenset[Connection]) -> list[Login]:
        """Return the logins whose server has to be asked whether it is in recovery."""
        return sorted({each.login for each in connections - self._asked})

    def answered(self, connections: frozenset[Connection], *, in_recovery: bool) -> None:
        """Take the answer of the server that these connections lead to."""
        self._asked = connections
        self._in_recovery = in_recovery
        self._has_seen_primary |= not in_recovery
        self._is_leaving |= self._in_recovery and self._has_seen_primary

    def reason(self, connections: frozenset[Connection], now: float) -> str:
        """Tell why PgBouncer has to reconnect now, or nothing; `now` is in seconds.

        A standby is a reason only after a primary: else the address is meant to be a standby's.
        """
        reason = self._reason(connections)
        if not reason:
            return ""
        if now >= self._quiet_at:
            self._began = now
        self._quiet_at = now + QUIET_SECONDS
        if now < self._not_before:
            return ""
        is_short = now < self._began + LONGEST_FAILOVER
        self._not_before = now + (PAUSE if is_short else LONG_PAUSE)
        self._is_leaving = self._is_leaving and self._in_recovery
        return reason

    def _reason(self, connections: frozenset[Connection]) -> str:
        left = sorted({each.address for each in connections} & self._left)
        if left:
            now = ", ".join(sorted(self._addresses))
            return f"the database is at {now} now, and not at {', '.join(left)}"
        if connections and self._is_leaving:
            now = "in recovery, and was not before" if self._in_recovery else "the primary again"
            return f"the database is {now}"
        return ""


class Watch:
    """Looks at name and server connections, in a thread, which may wait long for either."""

    def __init__(
        self,
        settings: Settings,
        admin: tuple[str, str],
        users: Callable[[], Mapping[str, Collection[User]]],
    ) -> None:
        """Keep the console's administrator and password.

        `users` lists the users of each name of the database.
        """
        self._settings = settings
        self._admin, self._password = admin
        self._users = users
        self._verdict = Verdict()
        self._was_in_recovery: bool | None = None
        self.listens = threading.Event()
        """Set as soon as PgBouncer listens."""

    def start(self) -> None:
        """Begin, before PgBouncer resolves the name: else an address may have passed unseen."""
        threading.Thread(target=self._look_forever, daemon=True).start()

    def _look_forever(self) -> None:
        while True:
            self._verdict.resolved(addresses_of(self._settings.database_host))
            self.listens.wait()
            with contextlib.suppress(SessionError):
                self._look_through_one_session()
            time.sleep(LOOK_SECONDS)

    def _look_through_one_session(self) -> None:
        """Look again and again until the session with the console fails: logins are not free."""
        with Session(
            self._settings.socket,
            self._admin,
            "pgbouncer",
            purpose="watch",
            seconds=ANSWER_SECONDS,
            password=self._password,
        ) as console:
            while True:
                console.extend(ANSWER_SECONDS)
                self._look(console)
                time.sleep(LOOK_SECONDS)
                self._verdict.resolved(addresses_of(self._settings.database_host))

    def _look(self, console: Session) -> None:
        current = self._users()
        connections = connections_of(current, console.query("SHOW SERVERS"))
        logins = [
            login
            for login in self._verdict.to_ask(connections)
            if login.user in {user.name for user in current[login.database]}
        ]
        answers = {login: answer for login in logins if (answer := self._ask(login)) is not None}
        if answers:
            # Without an answer, as where one name's queue is full: asked again at the next look.
            known = frozenset(
                each for each in connections if each.login in answers or each.login not in logins
            )
            self._take_answer(known, in_recovery=any(answers.values()))
        if reason := self._verdict.reason(connections, time.monotonic()):
            log.info("%s: PgBouncer reconnects", reason)
            console.extend(ANSWER_SECONDS)
            console.query("RECONNECT")  # every name of the database

    def _take_answer(self, connections: frozenset[Connection], *, in_recovery: bool) -> None:
        self._verdict.answered(connections, in_recovery=in_recovery)
        if in_recovery != self._was_in_recovery:
            log.info("the database is a %s", "standby" if in_recovery else "primary")
        self._was_in_recovery = in_recovery

    def _ask(self, login: Login) -> bool | None:
        """Ask a login's server whether it is in recovery; None where nobody answers."""
        path = self._settings.socket
        with (
            contextlib.suppress(SessionError),
            Session(
                path, login.user, login.database, purpose="watch", seconds=ANSWER_SECONDS
            ) as session,
        ):
            return session.query(IS_IN_RECOVERY) == [{"pg_is_in_recovery": "t"}]
        return None


def connections_of(databases: Collection[str], rows: Iterable[Row]) -> frozenset[Connection]:
    """Take the server connections that clients may still get out of the rows of SHOW SERVERS."""
    return frozenset(
        Connection(
            Login(row["database"] or "", row["user"] or ""),
            row["addr"] or "",
            (row["local_port"], row["connect_time"]),
        )
        for row in rows
        if row["database"] in databases
        and row["state"] not in LOGGING_IN
        and row["close_needed"] == "0"
    )


def addresses_of(host: str) -> frozenset[str]:
    """Resolve a name; return nothing where that fails."""
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()
