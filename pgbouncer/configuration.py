"""PgBouncer's configuration files, as text. Nothing here reads or writes anything."""

import math
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .settings import Settings

# Cancel requests to one peer at the same time. PgBouncer's default is default_pool_size, which may
# be 1, and a request over the limit is lost.
PEER_POOL_SIZE = 100
# The supervisor's own sessions with the console, which count as clients.
OWN_CLIENTS = 2
# Connections that the kernel keeps until PgBouncer accepts them, all at once. A burst of new
# environments connects at the same time; the default, 128, drops their SYNs.
LISTEN_BACKLOG = 4096

# Seconds from a failed login at the database to the next one. Until then every client is refused;
# the default, 15, turns one refused login into 15 seconds of errors for all. With this, a database
# that is down, or a wrong password, gets at most five logins a second from each task and user.
SERVER_LOGIN_RETRY = 0.2

# RFC 7677's minimum, for passwords that people choose.
SCRAM_ITERATIONS = 4096
# Passwords that Secrets Manager makes for the project's stacks and rotations: 40 letters, digits,
# dots and underscores, 240 bits. A similar text with fewer different characters is a sentence.
MACHINE_MADE = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])[A-Za-z0-9._]{40,}")
FEWEST_CHARACTERS = 20

# Processor seconds of a login, and the smallest task. `make bench` measures 1.1 to 1.6 ms; with a
# timeout that is too short a storm of logins never ends, and a longer one costs little.
LOGIN_SECONDS = 0.002
SMALLEST_CPU = 0.25


@dataclass(frozen=True)
class User:
    """A login: the name, and the password in clear text, which SCRAM to the server needs."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Console:
    """The users of PgBouncer's console: an administrator, and one that can only read."""

    admin: str
    observer: str


@dataclass(frozen=True, order=True)
class Peer:
    """A task of the service: its peer_id in PgBouncer, and its address."""

    id: int
    address: str


@dataclass(frozen=True)
class Group:
    """All known tasks of the service, with this one."""

    own: Peer
    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Files:
    """Paths of the files that PgBouncer reads."""

    folder: Path

    @property
    def ini(self) -> Path:
        """The main file."""
        return self.folder / "pgbouncer.ini"

    @property
    def users(self) -> Path:
        """Names and passwords (`auth_file`)."""
        return self.folder / "users.txt"

    @property
    def access(self) -> Path:
        """Rules for logins: user, origin and method (`auth_hba_file`)."""
        return self.folder / "access.conf"

    @property
    def certificate(self) -> Path:
        """Key and chain in one file, so that a change is never read by half."""
        return self.folder / "certificate.pem"

    @property
    def alive(self) -> Path:
        """An empty file; its time is that of the last successful check."""
        return self.folder / "alive"

    @property
    def admin_dsn(self) -> Path:
        """The URL of the console, for operators."""
        return self.folder / "admin_dsn"


def render_ini(
    settings: Settings,
    files: Files,
    console: Console,
    users: Iterable[User],
    group: Group | None = None,
) -> str:
    """Render the main file; it sets every option whose default does not fit Lambda."""
    sections: dict[str, Mapping[str, object]] = {
        "databases": _databases(settings),
        "pgbouncer": _parameters(settings, files, console, users),
    }
    if group is not None:
        sections["pgbouncer"] = {**sections["pgbouncer"], "peer_id": group.own.id}
        sections["peers"] = _peers(settings, group)
    return "\n".join(f"[{name}]\n{_lines(lines)}" for name, lines in sections.items())


def _databases(settings: Settings) -> dict[str, object]:
    """Render one line for each name of the database.

    `max_db_connections` counts a name's server connections, of all its users, and a user that is
    never idle keeps all of them. So `/sql` has a second name (docs/decisions/0049).
    """
    server = (
        f"host={settings.database_host} port={settings.database_port} "
        f"dbname={settings.database_name}"
    )
    sql = settings.sql
    if sql is None:
        return {settings.database_name: server}
    clients = settings.max_client_conn - sql.max_client_conn
    # Always by transaction: a session would keep one of these few connections while it is idle.
    bounds = (
        f"pool_mode=transaction pool_size={sql.pool_size} "
        f"max_db_connections={sql.max_db_connections}"
    )
    return {
        settings.database_name: server + _client_bound(clients if sql.max_client_conn else 0),
        sql.database: f"{server} {bounds}{_client_bound(sql.max_client_conn)}",
    }


def _client_bound(clients: int) -> str:
    return f" max_db_client_connections={clients}" if clients else ""


def _lines(parameters: Mapping[str, object]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in parameters.items())


def _peers(settings: Settings, group: Group) -> dict[str, object]:
    """Render one line for each task, all by way of the relay; PgBouncer passes over its own."""
    relay = f"host='{settings.relay.parent}' port={settings.listen_port} pool_size={PEER_POOL_SIZE}"
    return {str(peer.id): relay for peer in group.peers}


def _parameters(
    settings: Settings, files: Files, console: Console, users: Iterable[User]
) -> dict[str, object]:
    return (
        _listening(settings, files)
        | _keeping_alive()
        | _logins(files, console, users)
        | _pooling(settings)
        | _timeouts(settings)
        | _logging()
    )


def _listening(settings: Settings, files: Files) -> dict[str, object]:
    return {
        "listen_addr": settings.listen_addr,
        "listen_port": settings.listen_port,
        "listen_backlog": LISTEN_BACKLOG,
        "unix_socket_dir": settings.run_dir,
        "unix_socket_mode": "0700",
        "client_tls_sslmode": "require",
        "client_tls_key_file": files.certificate,
        "client_tls_cert_file": files.certificate,
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": settings.server_tls_ca_file,
    }


def _keeping_alive() -> dict[str, object]:
    """Render what tells a frozen client from a dead server, which share these settings.

    A frozen environment does not answer: keep its flow through a load balancer (350 s), and give
    up on it after six minutes. A server that has gone without a word (its machine, its zone) does
    not acknowledge what is sent: give up on it after ten seconds. Without that a dead server
    connection is kept for a quarter of an hour, and clients are refused for want of a live one.
    With it the first probe that stays unanswered for `tcp_keepintvl` is the last.
    """
    parameters: dict[str, object] = {
        "tcp_keepalive": 1,
        "tcp_keepidle": 330,
        "tcp_keepintvl": 30,
        "tcp_keepcnt": 1,
    }
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # macOS has none, and PgBouncer then refuses everyone
        parameters["tcp_user_timeout"] = 10_000
    return parameters


def _logins(files: Files, console: Console, users: Iterable[User]) -> dict[str, object]:
    return {
        "auth_type": "hba",
        "auth_hba_file": files.access,
        "auth_file": files.users,
        "admin_users": console.admin,
        "stats_users": console.observer,
        "scram_iterations": scram_iterations(users),
        # Nothing is dropped in silence.
        "ignore_startup_parameters": "",
    }


def scram_iterations(users: Iterable[User]) -> int:
    """Return how often a login hashes a password: once where a machine made all of them.

    The rounds make guessing slower, which a password of 240 bits does not need. They are half of
    what a login costs the client (docs/decisions/0020).
    """
    return 1 if all(is_machine_made(user.password) for user in users) else SCRAM_ITERATIONS


def is_machine_made(password: str) -> bool:
    """Tell whether a password looks like those that the project's stacks and rotations create."""
    return bool(MACHINE_MADE.fullmatch(password)) and len(set(password)) >= FEWEST_CHARACTERS


def _pooling(settings: Settings) -> dict[str, object]:
    return {
        "pool_mode": settings.pool_mode,
        "max_client_conn": settings.max_client_conn + OWN_CLIENTS,
        # Pools are per user: only max_db_connections bounds what all of them open together. It is
        # shared without fairness, so a user's pool has to be a part of it.
        "default_pool_size": settings.default_pool_size,
        "max_db_connections": settings.max_db_connections,
        # Protocol-level prepared statements of clients that use them keep working.
        "max_prepared_statements": 200,
    }


def _timeouts(settings: Settings) -> dict[str, object]:
    return {
        "query_wait_timeout": settings.query_wait_timeout,
        # An environment frozen in a transaction holds a server connection until then. PgBouncer's
        # transaction_timeout is not set: it exists since 1.25 only, and older versions do not start
        # with it. The database's own bounds every transaction.
        "idle_transaction_timeout": settings.idle_transaction_timeout,
        "client_login_timeout": login_timeout(settings.max_client_conn),
        "server_connect_timeout": 5,
        "server_login_retry": SERVER_LOGIN_RETRY,
        # A cancel request that cannot be passed on at once is useless later, and delays those that
        # follow (docs/decisions/0010).
        "cancel_wait_timeout": 1,
        # The name is resolved again only when a server connection is opened: after a failover the
        # old address would be used once more.
        "dns_max_ttl": 1,
        "dns_nxdomain_ttl": 1,
    }


def login_timeout(clients: int) -> int:
    """Return the seconds that a login may take: twice what those of all clients take together.

    After an outage all of a task's clients log in at once, PgBouncer works on all of them in turn,
    and they are finished at nearly the same time. A shorter timeout cuts every one of them just
    before that, they begin again, and it never ends. A login that a client has left keeps one of
    the task's places that much longer, as an open connection would.
    """
    return max(15, math.ceil(2 * clients * LOGIN_SECONDS / SMALLEST_CPU))


def _logging() -> dict[str, object]:
    # A health check is a connection: its log lines would hide all others.
    return {"log_connections": 0, "log_disconnections": 0, "log_pooler_errors": 1, "log_stats": 0}


def render_access(
    settings: Settings,
    console: Console,
    users: Iterable[User] = (),
    sql_users: Iterable[User] = (),
) -> str:
    """Render the rules for logins: users by TLS and SCRAM; the console only through the socket.

    The socket is in a folder that is closed to other accounts. The supervisor comes through it to
    hold a transaction open during a drain and to read statistics, and needs no password there. The
    console's administrator needs one, in clear text: it is in the same folder.

    Every line names its database, so that SCRAM never begins for another name: there PgBouncer up
    to 1.26.0 takes a user's password for another user's (CVE-2026-107350).

    Where the database has a second name, for `/sql`, the users of each name are rejected at the
    other one. All the rest has to log in by SCRAM: to a name that it does not know PgBouncer then
    gives the same answer as to a wrong password, which has clients read their secret once more.
    """
    console_rules = (
        f'local    pgbouncer    "{console.admin}"  password\n'
        f'local    pgbouncer    "{console.observer}"  trust\n'
    )
    if settings.sql is None:
        return console_rules + _rules(settings.database_name, ())
    return (
        console_rules
        + _rules(settings.database_name, sql_users)
        + _rules(settings.sql.database, users)
    )


def _rules(database: str, rejected: Iterable[User]) -> str:
    names = ",".join(_quote(user.name) for user in rejected)
    methods = ([(names, "reject")] if names else []) + [("all", "scram-sha-256")]
    return f'local    "{database}"  all  trust\n' + "".join(
        f'hostssl  "{database}"  {users}  {addresses}  {method}\n'
        for users, method in methods
        for addresses in ("0.0.0.0/0", "::/0")
    )


def render_users(users: Iterable[User]) -> str:
    """Render `auth_file`; raise ValueError for values that it cannot express."""
    return "".join(f"{_quote(user.name)} {_quote(user.password)}\n" for user in users)


def _quote(value: str) -> str:
    """Quote a value. PgBouncer cannot escape line breaks, and SCRAM allows no empty password."""
    if not value or any(character in value for character in "\0\r\n"):
        raise ValueError("a user name or password is empty or has a line break or a NUL in it")
    return '"' + value.replace('"', '""') + '"'
