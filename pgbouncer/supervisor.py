"""Process 1 of the pooler: starts PgBouncer, keeps its files fresh, ends it in order."""

from __future__ import annotations

import logging
import math
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from os import WNOHANG, kill, waitpid, waitstatus_to_exitcode
from typing import IO

from .certificate import end_of
from .configuration import LISTEN_BACKLOG, PEER_POOL_SIZE
from .files import Folder
from .metrics import CONTINUED, Metrics, Numbers, Tally, render
from .output import LogHandler, Output
from .peers import CloudMap, Peering
from .primary import Watch
from .pulse import LOOK_SECONDS, Pulse
from .relay import Relay
from .secret_store import Content, SecretsManager, SecretStore, region_of
from .session import SessionError
from .settings import Settings, SettingsError
from .transaction import Transaction

# Open files of PgBouncer besides its connections: listeners, log, pipes, name resolution.
OWN_FILES = 64
# How long files that could not be written (no space left) wait for the next try.
STORE_SECONDS = 2.0
# A refused login may mean that a secret has changed: look at once, but not more often than this.
LOOK_GAP = 1.0
# How often to look at the certificate's secret, which changes every two months: each look is paid
# for. A client that refuses the certificate, and SIGHUP, bring the look forward.
CERTIFICATE_SECONDS = 3600.0
# How long a drain may wait for its own transaction, and how long it keeps it open.
HOLD_WAIT = 2.0
HOLD_SECONDS = 1.0
# How long to wait for an event at most: nothing may be due, and a queue takes no infinity.
LONGEST_WAIT = 3600.0
DAY = timedelta(days=1)
# How many server connections each current user has before clients come, and how long that may take.
WARM_CONNECTIONS = 10
WARM_SECONDS = 2.0
# How long PgBouncer may take until it listens. A SIGHUP that comes before would end it.
START_SECONDS = 10.0
# How long PgBouncer may take to end at once.
QUIT_SECONDS = 5.0
# How long the last lines of an ended PgBouncer may take to be copied, and then to be written.
LOG_SECONDS = 1.0
WRONG_SETTINGS = 78  # EX_CONFIG
CONTINUATION = b"..."
# A client's login at PgBouncer, and its own at the server, which may say why in another language.
REFUSED_LOGIN = re.compile(rb"authentication failed|no such user|server login failed")
# What clients say who do not accept the certificate, as OpenSSL names their alerts.
REFUSED_CERTIFICATE = re.compile(rb"alert (certificate expired|unknown ca|bad certificate)")

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
            f"files ({LISTEN_BACKLOG} for a burst of logins, MAX_DB_CONNECTIONS "
            f"{settings.max_db_connections}, and {PEER_POOL_SIZE + OWN_FILES} for peers and logs), "
            f"but the limit here is {hard}. Raise the limit (nofile) or lower the number."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard < 0 else hard, hard))


def open_files(settings: Settings) -> int:
    """Count the files that PgBouncer may have open at once.

    It counts a client against max_client_conn when it reads the client's first packet, and takes
    all connections that wait before it reads anything: a whole backlog comes on top. A PgBouncer
    without a free descriptor accepts nobody for five seconds, and no setting changes that.
    """
    connections = settings.max_client_conn + settings.max_db_connections + LISTEN_BACKLOG
    return connections + PEER_POOL_SIZE + OWN_FILES


class Supervisor:
    """One PgBouncer and what it needs."""

    def __init__(self, settings: Settings, stdout: Output, stderr: Output) -> None:
        """Write the first files; raise SettingsError where that cannot be done.

        Metrics go to `stdout`, PgBouncer's log to `stderr`.
        """
        self._settings = settings
        self._stdout, self._stderr = stdout, stderr
        self._folder = Folder(settings)
        self._secret_store = SecretStore(
            settings.user_secret_arns,
            settings.certificate_secret_arn,
            read=SecretsManager(),
            check=self._folder.check,
            report=log.warning,
        )
        self._peering: Peering | None = None
        self._relay: Relay | None = None
        if settings.peers is not None:
            cloud_map = CloudMap(settings.peers, region_of(settings.certificate_secret_arn))
            self._peering = Peering(settings.peers, discover=cloud_map, report=log.warning)
        self._tally = Tally()
        self._metrics = Metrics(settings, self._folder.console.observer, self._tally)
        # A queue whose put() may interrupt its own get(): signal handlers run in between.
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._content: Content
        self._child: subprocess.Popen[bytes] | None = None
        self._pulse: Pulse | None = None
        self._copying: threading.Thread | None = None
        self._stopping = False
        # A look at the secrets is under way; another one is wanted after it.
        self._looking = self._look_again = False
        self._last_look = 0.0
        # The next look is for the certificate too; whether the last one was, and has read it.
        self._wants_certificate = True
        self._certificate_due = math.inf
        self._fetched = (False, False)
        # What there is to do, and when; an event brings it forward.
        self._due = dict.fromkeys(("look", "store", "peers", "report", "pulse"), math.inf)

    def run(self) -> int:
        """Wait for what PgBouncer needs, start it, and serve until it or we have to end."""
        self._take_signals()
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
        while not self._stopping:
            # Before the wait: the start may have taken the event of a death that it saw.
            if (code := self._exit_code()) is not None:
                self._end_log()
                log.error("PgBouncer has ended, with code %d, though nobody stopped it", code)
                return code
            self._next_event(min(self._due.values()) - time.monotonic())
            for name, perform in duties.items():
                if not self._stopping and time.monotonic() >= self._due[name]:
                    perform()
        return self._drain()

    # Events

    def _take_signals(self) -> None:
        names = {"SIGTERM": "stop", "SIGINT": "stop", "SIGHUP": "look", "SIGCHLD": "child"}
        for name, event in names.items():
            signal.signal(signal.Signals[name], lambda *_, event=event: self._notice(event))

    def _notice(self, event: str) -> None:
        self._events.put(event)

    def _next_event(self, seconds: float) -> None:
        """Wait for an event, at most for some seconds, and note what it asks for."""
        try:
            event = self._events.get(timeout=min(max(seconds, 0), LONGEST_WAIT))
        except queue.Empty:
            return
        if event == "stop":
            self._stopping = True
        elif event == "looked":
            self._end_look()
        elif event in {"refused", "distrusted"}:
            self._wants_certificate |= event == "distrusted"
            self._due["look"] = min(self._due["look"], self._last_look + LOOK_GAP)
        elif event in self._due:
            # Only SIGHUP says "look".
            self._wants_certificate |= event == "look"
            self._due[event] = time.monotonic()

    def _rest(self, seconds: float) -> None:
        """Wait before another try, unless told to look or to stop."""
        self._due["look"] = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < self._due["look"]:
            self._next_event(self._due["look"] - time.monotonic())

    # Secrets

    def _await_secrets(self) -> bool:
        """Look until there are a user and a certificate; False when told to stop before."""
        pause = 1.0
        while not self._stopping:
            self._look()
            while self._looking and not self._stopping:
                self._next_event(LOOK_GAP)
            if self._stopping:
                break
            if self._secret_store.content is not None and self._write(self._update):
                return True
            self._put_metrics({"UnreadableSecrets": self._secret_store.unreadable})
            log.info("waiting %g s for a user and a certificate", pause)
            self._rest(pause)
            pause = min(2 * pause, max(1.0, self._settings.refresh_interval))
        return False

    def _look(self) -> None:
        """Look at the secrets, in a thread: a silent service must not hide PgBouncer's death."""
        self._due["look"] = math.inf
        if self._looking:
            self._look_again = True
            return
        self._looking = True
        certificate = self._wants_certificate or time.monotonic() >= self._certificate_due
        self._wants_certificate = False
        threading.Thread(target=self._fetch, args=(certificate,), daemon=True).start()

    def _fetch(self, certificate: bool) -> None:
        self._fetched = (certificate, False)
        try:
            self._fetched = (certificate, self._secret_store.refresh(certificate=certificate))
        except Exception:  # nothing may end the thread before it has said so
            log.exception("the look at the secrets failed")
        finally:
            self._events.put("looked")

    def _end_look(self) -> None:
        """Plan what follows a look: to write what it has brought, and the next one."""
        self._last_look = time.monotonic()
        asked, read = self._fetched
        if read:
            self._certificate_due = self._last_look + CERTIFICATE_SECONDS
        elif asked:
            self._wants_certificate = True
        pause = LOOK_GAP if self._look_again else self._settings.refresh_interval
        self._due["look"] = self._last_look + pause
        self._looking = self._look_again = False
        self._due["store"] = self._last_look

    def _store(self) -> None:
        """Have PgBouncer read users and certificate, where they have changed."""
        self._due["store"] = math.inf
        if self._looking:  # it stores at its end
            return
        changed = self._write(self._update)
        if changed is None:
            self._due["store"] = time.monotonic() + STORE_SECONDS
        elif changed:
            log.info("users or certificate have changed: reloading PgBouncer")
            self._signal(signal.SIGHUP)

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
        """Ask until this task's address is known; False when told to stop before."""
        if self._peering is None:
            return True
        while not self._stopping:
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
        self._due["peers"] = math.inf
        group = self._peering.take() if self._peering is not None else None
        if group is None or self._relay is None:
            return
        self._relay.addresses = {peer.id: peer.address for peer in group.peers}
        changed = self._write(lambda: self._folder.join(group))
        if changed is None:
            self._due["peers"] = time.monotonic() + STORE_SECONDS
        elif changed:
            tasks = ", ".join(f"{peer.id} at {peer.address}" for peer in group.peers)
            log.info("the tasks are now %s: reloading PgBouncer", tasks)
            self._signal(signal.SIGHUP)

    # Metrics

    def _plan_report(self, last: float) -> None:
        """Plan the next report from when the last one was due: being late does not add up."""
        if self._settings.metrics is not None:
            interval = self._settings.metrics.interval
            self._due["report"] = max(last + interval, time.monotonic())

    def _report(self) -> None:
        """Write PgBouncer's numbers, or say why there are none."""
        self._plan_report(self._due["report"])
        try:
            numbers = self._metrics.measure()
        except SessionError as error:
            log.warning("no metrics this time: %s", error)
            return
        self._put_metrics(numbers | self._secrets_metrics())

    def _secrets_metrics(self) -> Numbers:
        """Return how well the secrets could be read, and the days that the certificate has left."""
        left = end_of(self._content.certificate.chain) - datetime.now(UTC)
        return {"UnreadableSecrets": self._secret_store.unreadable, "CertificateDays": left / DAY}

    def _put_metrics(self, numbers: Numbers) -> None:
        if self._settings.metrics is not None:
            line = render(numbers, self._settings.metrics, time.time())
            self._stdout.put(f"{line}\n".encode())

    # PgBouncer

    def _start(self) -> None:
        watch = Watch(self._settings, self._folder.admin, self._users)
        watch.start()
        command = [*self._settings.pgbouncer, str(self._folder.files.ini)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output = self._child.stdout
        self._copying = threading.Thread(target=self._pass_on, args=(output,), daemon=True)
        self._copying.start()
        log.info("PgBouncer runs as process %d", self._child.pid)
        self._await_socket()
        watch.listens.set()
        observer = self._folder.console.observer
        self._pulse = Pulse(self._settings.socket, observer, self._child.pid)
        threading.Thread(target=self._warm_up, daemon=True).start()
        self._plan_report(time.monotonic())
        if self._peering is not None:
            self._peering.watch(lambda: self._events.put("peers"))

    def _users(self) -> list[str]:
        return [user.name for user in self._content.users]

    def _warm_up(self) -> None:
        """Have PgBouncer log in at the database before clients come, in a thread.

        It opens one server connection after the other, and each step of a login takes a round of
        its loop: tenths of a second for all of them now, and many seconds among the logins of a
        fleet, whose statements wait meanwhile and are refused. The health check succeeds only after
        this; whether the database is there makes no difference to it.
        """
        settings = self._settings
        users = self._content.users[: len(settings.user_secret_arns)]
        share = min(settings.max_db_connections, settings.max_client_conn // 2) // len(users)
        count = min(settings.default_pool_size, max(share, 1), WARM_CONNECTIONS)
        names = [user.name for user in users for _ in range(count)]
        # All are open at once: else one server connection would serve one after the other.
        with ThreadPoolExecutor(len(names)) as logins:
            opened = [found for found in logins.map(self._begin, names) if found is not None]
        for transaction in opened:
            transaction.close()
        log.info("%d of %d server connections are open", len(opened), len(names))
        self._events.put("pulse")

    def _begin(self, user: str) -> Transaction | None:
        try:
            database = self._settings.database_name
            return Transaction(self._settings.socket, user, database, WARM_SECONDS)
        except SessionError:
            return None

    def _await_socket(self) -> None:
        """Wait until PgBouncer listens, has ended, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not self._listens() and self._exit_code() is None and not self._stopping:
            if time.monotonic() > deadline:
                log.warning("PgBouncer does not listen after %g s", START_SECONDS)
                return
            self._next_event(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self._settings.socket)) == 0

    def _pass_on(self, output: IO[bytes]) -> None:
        """Copy PgBouncer's log, in a thread: PgBouncer must never wait for a reader."""
        for line in output:
            # Marked, as what a client may have written: it must not pass for a line of metrics.
            mark = CONTINUATION if line.startswith(CONTINUED) else b""
            self._stderr.put(mark + line)
            self._tally.note(line)
            if REFUSED_LOGIN.search(line):
                self._events.put("refused")
            elif REFUSED_CERTIFICATE.search(line):
                self._events.put("distrusted")

    def _feel_pulse(self) -> None:
        """End a PgBouncer that hangs; else show the container's health check that it does not."""
        self._due["pulse"] = time.monotonic() + LOOK_SECONDS
        if self._pulse is None:
            return
        if reason := self._pulse.look():
            log.error("PgBouncer hangs: %s. Ending it, so that another task is started", reason)
            # Not SIGQUIT first: what hangs runs no handler, and a stopped process none either.
            self._signal(signal.SIGKILL)
        elif self._pulse.answers:
            try:
                self._folder.show_alive()
            except OSError as error:
                log.warning("the health check will fail: %s", error)

    def _end_log(self) -> None:
        """Wait for PgBouncer's last lines, which may say why it has ended."""
        if self._copying is not None:
            self._copying.join(LOG_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            kill(self._child.pid, number)

    def _exit_code(self) -> int | None:
        """Collect every ended child, as process 1 must; return PgBouncer's code, once it has one.

        Death by a signal counts as 128 + its number, as in a shell.
        """
        while self._child is not None and self._child.returncode is None:
            try:
                pid, status = waitpid(-1, WNOHANG)
            except ChildProcessError:
                return 1
            if pid == 0:
                return None
            if pid == self._child.pid:
                self._child.returncode = waitstatus_to_exitcode(status)
        code = self._child.returncode if self._child is not None else 0
        return 128 - code if code < 0 else code

    # The end

    def _drain(self) -> int:
        """Let open transactions finish, refuse everything else, and end PgBouncer."""
        deadline = time.monotonic() + self._settings.drain_timeout
        log.info("draining, for at most %g s", self._settings.drain_timeout)
        held = self._hold()
        self._signal(signal.SIGINT)
        if held is not None:
            self._wait(min(HOLD_SECONDS, self._settings.drain_timeout))
            held.close()
        code = self._wait(deadline - time.monotonic())
        for number in (signal.SIGQUIT, signal.SIGKILL):
            if code is None:
                log.warning("PgBouncer is still there: sending %s", number.name)
                self._signal(number)
                code = self._wait(QUIT_SECONDS)
        self._end_log()
        log.info("PgBouncer has ended with code %s", code)
        return 1 if code is None else code

    def _hold(self) -> Transaction | None:
        user, database = self._content.users[0].name, self._settings.database_name
        try:
            return Transaction(self._settings.socket, user, database, HOLD_WAIT)
        except SessionError as error:
            log.warning("draining without a transaction of our own: %s", error)
            return None

    def _wait(self, seconds: float) -> int | None:
        """Wait for PgBouncer's end, at most for some seconds; return its code."""
        deadline = time.monotonic() + seconds
        while (code := self._exit_code()) is None and time.monotonic() < deadline:
            self._next_event(deadline - time.monotonic())
        return code
