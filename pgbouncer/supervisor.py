"""Process 1 of the pooler: starts PgBouncer, keeps its files fresh, ends it in order."""

import logging
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from .agenda import Agenda
from .certificate import end_of
from .configuration import LISTEN_BACKLOG, PEER_POOL_SIZE, User
from .files import Folder
from .metrics import Metrics, Numbers, Tally, render
from .output import LogHandler, Output
from .peers import CloudMap, Peering
from .primary import Watch
from .process import LOG_SECONDS, Process, listens
from .pulse import LOOK_SECONDS, Pulse
from .refresh import LOOK_GAP, Refresh
from .relay import Relay
from .secret_store import Content, SecretsManager, SecretStore, region_of
from .session import SessionError
from .settings import Settings, SettingsError
from .transaction import Transaction
from .warm_up import warm_up

# Open files of PgBouncer besides its connections: listeners, log, pipes, name resolution.
OWN_FILES = 64
# How long to wait for the secrets of all users, once there is one: then the others are served. It
# is longer than a short outage of Secrets Manager, and shorter than the health check's patience.
MISSING_SECONDS = 15.0
# How long to wait before files that could not be written (no space left) are written again.
STORE_SECONDS = 2.0
# How long a drain may wait for its own transaction, and how long it keeps it open.
HOLD_WAIT = 2.0
HOLD_SECONDS = 1.0
DAY = timedelta(days=1)
# How long PgBouncer may take until it listens. A SIGHUP that comes before would end it.
START_SECONDS = 10.0
# How long PgBouncer may take to end at once.
QUIT_SECONDS = 5.0
WRONG_SETTINGS = 78  # EX_CONFIG

log = logging.getLogger("supervisor")


def main(environment: Mapping[str, str]) -> int:
    """Run until PgBouncer has ended; return the exit code."""
    stdout, stderr = Output(sys.stdout.fileno()), Output(sys.stderr.fileno())
    logging.basicConfig(
        handlers=[LogHandler(stderr)],
        level=logging.INFO,
        format="%(asctime)s supervisor: %(message)s",
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        settings = Settings.from_env(environment)
        raise_open_files(settings)
        return Supervisor(settings, stdout, stderr).run()
    except SettingsError as error:
        log.error("%s", error)  # noqa: TRY400 - the message is meant for people, a traceback is not
        return WRONG_SETTINGS
    except Exception:  # the interpreter would write it where nobody may read, and wait
        log.exception("the supervisor cannot go on")
        return 1
    finally:
        stderr.finish(LOG_SECONDS)
        stdout.finish(LOG_SECONDS)


def raise_open_files(settings: Settings) -> None:
    """Raise the limit of open files to the hard limit; refuse more clients than it allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files(settings)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise SettingsError(
            f"MAX_CLIENT_CONN is {settings.max_client_conn}: PgBouncer may then open {needed} "
            f"files ({LISTEN_BACKLOG} for a burst of logins, {server_connections(settings)} for "
            f"MAX_DB_CONNECTIONS and SQL_MAX_DB_CONNECTIONS, and {PEER_POOL_SIZE + OWN_FILES} for "
            "peers and logs), "
            f"but the limit here is {hard}. Raise the limit (nofile) or lower the number."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard < 0 else hard, hard))


def open_files(settings: Settings) -> int:
    """Count the files that PgBouncer may have open at once.

    It counts a client against max_client_conn when it reads the client's first packet, and takes
    all connections that wait before it reads anything: a whole backlog comes on top. A PgBouncer
    without a free descriptor accepts nobody for five seconds, and no setting changes that.
    """
    connections = settings.max_client_conn + server_connections(settings) + LISTEN_BACKLOG
    return connections + PEER_POOL_SIZE + OWN_FILES


def server_connections(settings: Settings) -> int:
    """Count the server connections of all names of the database."""
    sql = settings.sql
    return settings.max_db_connections + (sql.max_db_connections if sql is not None else 0)


def is_ready(store: SecretStore, impatient: bool) -> bool:
    """Tell whether a start can go on: with all users, or after a while with some."""
    if store.content is None or (store.missing and not impatient):
        return False
    if store.missing:
        log.warning("starting without the users of %s", ", ".join(store.missing))
    return True


class Supervisor:
    """One PgBouncer and what it needs."""

    def __init__(self, settings: Settings, stdout: Output, stderr: Output) -> None:
        """Write the first files; raise SettingsError where that cannot be done.

        Metrics go to `stdout`, PgBouncer's log to `stderr`.
        """
        self._settings = settings
        self._stdout = stdout
        self._agenda = Agenda("look", "store", "peers", "report", "pulse")
        self._folder = Folder(settings)
        self._secret_store = SecretStore(
            settings.user_secret_arns,
            settings.certificate_secret_arn,
            settings.sql.secret_arns if settings.sql is not None else (),
            read=SecretsManager(),
            check=self._folder.check,
            report=log.warning,
        )
        self._refresh = Refresh(
            self._secret_store, settings.refresh_interval, lambda: self._agenda.put("looked")
        )
        self._peering: Peering | None = None
        self._relay: Relay | None = None
        if settings.peers is not None:
            cloud_map = CloudMap(settings.peers, region_of(settings.certificate_secret_arn))
            self._peering = Peering(settings.peers, discover=cloud_map, report=log.warning)
        tally = Tally(*settings.pool_sizes)
        self._metrics = Metrics(settings, self._folder.console.observer, tally)
        command = [*settings.pgbouncer, str(self._folder.files.ini)]
        self._process = Process(command, stderr, tally, self._agenda.put)
        self._content: Content
        self._pulse: Pulse | None = None

    def run(self) -> int:
        """Wait for what PgBouncer needs, start it, and serve until it ends or a signal comes."""
        self._agenda.take_signals()
        if not self._await_own_address() or not self._await_secrets():
            return 0
        self._start()
        duties = {
            "look": self._look,
            "store": self._store,
            "peers": self._join_peers,
            "report": self._report,
            "pulse": self._feel_pulse,
        }
        while not self._agenda.stopping:
            # Before the wait: the start may have taken the event of a death that it saw.
            if (code := self._process.exit_code()) is not None:
                self._process.end_log()
                log.error("PgBouncer has ended, with code %d, though nobody stopped it", code)
                return code
            self._handle(self._agenda.wait_for_duty())
            for name, perform in duties.items():
                if self._agenda.is_due(name):
                    perform()
        return self._drain()

    # Events

    def _handle(self, event: str | None) -> None:
        """Plan what an event asks for."""
        due = self._agenda.due
        if event == "looked":
            due["look"] = self._refresh.end()
            due["store"] = time.monotonic()
        elif event in {"refused", "distrusted"}:
            due["look"] = min(due["look"], self._refresh.soonest)
        if event in {"look", "distrusted"}:  # only SIGHUP says "look"
            self._refresh.want_certificate()

    def _rest(self, seconds: float) -> None:
        """Wait before another try, unless a signal asks to look or to stop."""
        due = self._agenda.due
        due["look"] = time.monotonic() + seconds
        while not self._agenda.stopping and time.monotonic() < due["look"]:
            self._handle(self._agenda.wait(due["look"] - time.monotonic()))

    # Secrets

    def _await_secrets(self) -> bool:
        """Look until there are users and a certificate; return False if a signal stops it.

        One secret that stays unreadable must not stop the traffic of the other users.
        """
        pause, patience = 1.0, time.monotonic() + MISSING_SECONDS
        while not self._agenda.stopping:
            self._look()
            while self._refresh.running and not self._agenda.stopping:
                self._handle(self._agenda.wait(LOOK_GAP))
            if self._agenda.stopping:
                break
            if is_ready(self._secret_store, time.monotonic() > patience) and self._write(
                self._update
            ):
                return True
            self._put_metrics({"UnreadableSecrets": self._secret_store.unreadable})
            log.info("waiting %g s for users and a certificate", pause)
            self._rest(pause)
            pause = min(2 * pause, max(1.0, self._settings.refresh_interval))
        return False

    def _look(self) -> None:
        self._agenda.due["look"] = math.inf
        self._refresh.start()

    def _store(self) -> None:
        """Write users and certificate; if they have changed, have PgBouncer read them."""
        self._agenda.due["store"] = math.inf
        if self._refresh.running:  # it stores at its end
            return
        changed = self._write(self._update)
        if changed is None:
            self._agenda.due["store"] = time.monotonic() + STORE_SECONDS
        elif changed:
            log.info("users or certificate have changed: reloading PgBouncer")
            self._process.signal(signal.SIGHUP)

    def _update(self) -> bool:
        self._content = self._secret_store.content or self._content
        return self._folder.update(self._content)

    def _write(self, write: Callable[[], bool]) -> bool | None:
        """Write files; return whether they have changed, or None where that cannot be done."""
        try:
            return write()
        except OSError as error:
            log.warning("%s (keeping the old files, trying again soon)", error)
            return None

    # Peers

    def _await_own_address(self) -> bool:
        """Ask until this task's address is known; return False if a signal stops it."""
        if self._peering is None:
            return True
        while not self._agenda.stopping:
            self._peering.learn_own()
            if self._peering.group is not None:
                self._folder.join(self._peering.group)
                self._relay = self._folder.make_relay()
                self._relay.start()
                return True
            self._rest(1.0)
        return False

    def _join_peers(self) -> None:
        """Take what was found of the other tasks; when it is news, have PgBouncer read it."""
        self._agenda.due["peers"] = math.inf
        group = self._peering.take() if self._peering is not None else None
        if group is None or self._relay is None:
            return
        self._relay.addresses = {peer.id: peer.address for peer in group.peers}
        changed = self._write(lambda: self._folder.join(group))
        if changed is None:
            self._agenda.due["peers"] = time.monotonic() + STORE_SECONDS
        elif changed:
            tasks = ", ".join(f"{peer.id} at {peer.address}" for peer in group.peers)
            log.info("the tasks are now %s: reloading PgBouncer", tasks)
            self._process.signal(signal.SIGHUP)

    # Metrics

    def _plan_report(self, last: float) -> None:
        """Plan the next report from when the last one was due: being late does not add up."""
        if self._settings.metrics is not None:
            interval = self._settings.metrics.interval
            self._agenda.due["report"] = max(last + interval, time.monotonic())

    def _report(self) -> None:
        """Write PgBouncer's numbers, or say why there are none."""
        self._plan_report(self._agenda.due["report"])
        try:
            measured = self._metrics.measure()
        except SessionError as error:
            log.warning("no metrics this time: %s", error)
            return
        left = end_of(self._content.certificate.chain) - datetime.now(UTC)
        task = {
            "UnreadableSecrets": self._secret_store.unreadable,
            "CertificateDays": left / DAY,
        }
        self._put_metrics(measured.pop(self._settings.database_name) | task)
        for database, numbers in measured.items():
            self._put_metrics(numbers, database)

    def _put_metrics(self, numbers: Numbers, database: str = "") -> None:
        if self._settings.metrics is not None:
            line = render(numbers, self._settings.metrics, time.time(), database)
            self._stdout.put(f"{line}\n".encode())

    # PgBouncer

    def _start(self) -> None:
        def users() -> dict[str, tuple[User, ...]]:
            return self._content.by_database(self._settings.pool_sizes)

        def warm() -> None:
            warm_up(self._settings, self._content)
            self._agenda.put("pulse")

        watch = Watch(self._settings, self._folder.admin, users)
        watch.start()
        pid = self._process.start()
        log.info("PgBouncer runs as process %d", pid)
        self._await_socket()
        watch.listens.set()
        self._pulse = Pulse(self._settings.socket, self._folder.console.observer, pid)
        threading.Thread(target=warm, daemon=True).start()
        self._plan_report(time.monotonic())
        if self._peering is not None:
            self._peering.watch(lambda: self._agenda.put("peers"))

    def _await_socket(self) -> None:
        """Wait until PgBouncer listens, has ended, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while (
            not listens(self._settings.socket)
            and self._process.exit_code() is None
            and not self._agenda.stopping
        ):
            if time.monotonic() > deadline:
                log.warning("PgBouncer does not listen after %g s", START_SECONDS)
                return
            self._handle(self._agenda.wait(0.01))

    def _feel_pulse(self) -> None:
        """End a PgBouncer that hangs; else show the container's health check that it does not."""
        self._agenda.due["pulse"] = time.monotonic() + LOOK_SECONDS
        if self._pulse is None:
            return
        if reason := self._pulse.look():
            log.error("PgBouncer hangs: %s. Ending it, so that another task is started", reason)
            # Not SIGQUIT first: what hangs runs no handler, and a stopped process none either.
            self._process.signal(signal.SIGKILL)
        elif self._pulse.answers:
            try:
                self._folder.show_alive()
            except OSError as error:
                log.warning("the health check will fail: %s", error)

    # The end

    def _drain(self) -> int:
        """Let open transactions finish, refuse everything else, and end PgBouncer."""
        deadline = time.monotonic() + self._settings.drain_timeout
        log.info("draining, for at most %g s", self._settings.drain_timeout)
        held = self._hold()
        self._process.signal(signal.SIGINT)
        if held is not None:
            self._wait(min(HOLD_SECONDS, self._settings.drain_timeout))
            held.close()
        code = self._wait(deadline - time.monotonic())
        for number in (signal.SIGQUIT, signal.SIGKILL):
            if code is None:
                log.warning("PgBouncer has not ended: sending %s", number.name)
                self._process.signal(number)
                code = self._wait(QUIT_SECONDS)
        self._process.end_log()
        log.info("PgBouncer has ended with code %s", code)
        return 1 if code is None else code

    def _hold(self) -> Transaction | None:
        """Open a transaction: one is enough for all names of the database, whichever has room."""
        everyone = self._content.by_database(self._settings.pool_sizes)
        logins = [(users[0], database) for database, users in everyone.items() if users]
        for user, database in logins:
            try:
                return Transaction(self._settings.socket, user.name, database, HOLD_WAIT)
            except SessionError as error:
                log.warning("no transaction of our own through %s: %s", database, error)
        log.warning("draining without a transaction of our own")
        return None

    def _wait(self, seconds: float) -> int | None:
        """Wait for PgBouncer's end, at most for some seconds; return its code."""
        deadline = time.monotonic() + seconds
        while (code := self._process.exit_code()) is None and time.monotonic() < deadline:
            self._handle(self._agenda.wait(deadline - time.monotonic()))
        return code
