"""Roles, the application's login and the database's timeouts.

A deployment sets all of them again; a rotation lets one login in. Both work over psycopg alone.

The master user of RDS is no superuser. It has CREATEROLE and owns the database, which is all that
is needed here on PostgreSQL 15 and, where a role's creator gets its ADMIN OPTION, on 16 and newer.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from time import sleep
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.errors import DuplicateObject, InsufficientPrivilege, InternalError_, UniqueViolation

GROUP = "lambda_pg_app"
"""Holds the grants and is named by the policies; cannot log in, so that logins come and go."""

IAM = "rds_iam"
"""RDS's own role: its members log in with a token of IAM's, and with nothing else."""

PROXY = "rdsproxyadmin"
"""RDS Proxy's own role, which has to connect to a database that PUBLIC may not connect to."""

NEON = ".neon.tech"
"""Where a password must travel in the clear: Neon refuses a verifier."""

POWERFUL = (
    *("pg_read_all_data", "pg_write_all_data"),
    *("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"),
    *("rds_superuser", "rds_replication"),
)
"""Ready-made roles that reach past what was granted to the application: tables without policies,
the server's files and programs, the stream of all changes. pg_monitor sees statements, no rows."""

LOCK = 0x6C616D6264617072
"""Key of the advisory lock, 'lambdapr' as a number: who changes a role that another transaction is
changing gets "tuple concurrently updated", and a rotation may meet a deployment."""

TRIES = 20
"""Attempts at changing roles, which are the server's: the lock keeps only one database's out."""

PAUSE = 0.05
"""Seconds between two attempts, in which the other database's transaction ends."""

LIMITS_TRANSACTIONS = 170000
"""The first server version that has transaction_timeout."""

CHECKS_CLIENTS = 140000
"""The first server version that has client_connection_check_interval."""

CLIENT_CHECK = ("client_connection_check_interval", "100ms")
"""How often a statement at work looks whether its client is still there.

When a client vanishes in the middle of a statement, PgBouncer closes the server connection and
opens another one, while the backend works on until statement_timeout. With this it ends soon. The
look is one poll() of a socket; at 100 ms no cost could be measured, neither of short statements
nor of long ones.
"""

SETS_ROUNDS = 160000
"""The first server version that has scram_iterations."""

MACHINE_MADE = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])[A-Za-z0-9._]{40,}")
FEWEST_CHARACTERS = 20
"""What the stacks and `rotate` have Secrets Manager make: 40 letters, digits, dots and underscores,
240 bits. A text like it that has fewer different characters is a sentence."""

logger = logging.getLogger("migrate")


@dataclass(frozen=True)
class Login:
    """The application's user; without a password it logs in by IAM.

    A `borrowed` one is somebody else's: where it exists, its password and its LOGIN are left alone.
    With `many_rounds` its password is hashed as often as RFC 7677 asks for, since somebody's client
    uses it that may refuse less (docs/decisions/0020).
    """

    name: str
    password: str | None = field(default=None, repr=False)
    borrowed: bool = False
    many_rounds: bool = False

    def __post_init__(self) -> None:
        """Raise `LoginError`: PostgreSQL takes an empty password for none, and clears the old."""
        if not self.name:
            raise LoginError("the application's login has no user: write one into its secret")
        if self.password == "":
            raise LoginError(
                f"the application's user {self.name!r} has an empty password, with which nobody "
                "can log in: write one into its secret"
            )


@dataclass(frozen=True)
class Timeouts:
    """Limits of every session of the database, in seconds; 0 is none.

    PostgreSQL knows one for whole transactions from 17 on.
    """

    statement: int
    lock: int
    idle_in_transaction: int
    transaction: int = 0


class LoginError(ValueError):
    """The application cannot have this login, or must not."""


class UnboundLoginError(LoginError):
    """The application's user would see every row, whatever the policies say."""


class OwnerLockedOutError(LoginError):
    """The owner's password would not be taken any more, and it has no other way to log in."""


class NeighbourError(ValueError):
    """Another database of the server has the application's group, which is the server's."""


def prepare(
    connection: Connection[Any],
    read_login: Callable[[], Login],
    timeouts: Timeouts,
    *,
    shared: bool = False,
    login_limit: int | None = None,
    owner_by_token: bool = False,
) -> str | None:
    """Create or alter everything, in one transaction; raise `LoginError` or `NeighbourError`.

    Return the user who became one of IAM's by this, or None. Where that makes the owner one of them
    too, whose password RDS then refuses, raise `OwnerLockedOutError` unless the owner can log in by
    token (`owner_by_token`).

    The login is read under the lock: a rotation that ends meanwhile would leave a password set
    that is not the current one any more. In a database that is `shared` with others nothing changes
    for them: it stays open to whom it was, and the limits are the login's own. `login_limit` is how
    many connections each of the application's users may have: -1 is no limit, None changes none.
    """
    with connection.transaction():
        hold(connection)
        _refuse_neighbour(connection)
        login = read_login()
        known, owner = is_member(connection, login.name, IAM), owner_is_of_iam(connection)
        admit(connection, login)
        if not owner_by_token and not owner and owner_is_of_iam(connection):
            raise OwnerLockedOutError(_locked_out(connection.info.user, login.name))
        if login_limit is not None and not login.borrowed:
            _limit_connections(connection, login_limit)
        _open_database(connection, shared=shared)
        if shared:
            _limit_login(connection, timeouts, login)
        else:
            _limit(connection, timeouts, _database(connection))
        return login.name if is_member(connection, login.name, IAM) and not known else None


def admit_early(
    connection: Connection[Any], read_login: Callable[[], Login], patience: float
) -> None:
    """Let a login in that somebody waits for before the migration; raise as `prepare` does.

    It may connect; the migration does the rest. The database's limits, which an earlier migration
    may have set, are for requests: this waits `patience` seconds for the lock.
    """
    with connection.transaction():
        for name in ("statement_timeout", "lock_timeout"):
            connection.execute(
                "SELECT set_config(%s, %s, true)", [name, f"{round(patience * 1000)}ms"]
            )
        hold(connection)
        _refuse_neighbour(connection)
        admit(connection, read_login())
        _open_database(connection, shared=True)


def owner_is_of_iam(connection: Connection[Any]) -> bool:
    """Tell whether RDS accepts only a token from the connected role, and no password.

    That holds for members of members too, with or without INHERIT. Since PostgreSQL 16 a role is a
    member of each role that it creates, and only a superuser can end that.
    """
    found = connection.execute(OF_IAM, [IAM])
    return found.fetchone() is not None


OF_IAM = """
WITH RECURSIVE held(role) AS (
    SELECT oid FROM pg_roles WHERE rolname = session_user
    UNION
    SELECT roleid FROM held JOIN pg_auth_members ON member = role
)
SELECT FROM held JOIN pg_roles ON oid = role WHERE rolname = %s AND rolname <> session_user
"""
"""Members as pg_hba.conf counts them for +role: a superuser is one only where it was made one
(PostgreSQL, is_member_of_role_nosuper). pg_has_role takes superusers for members of all."""


def _locked_out(owner: str, user: str) -> str:
    return (
        f"granting {IAM} to {user} would lock the owner {owner} out: {owner} made that role and so "
        f"is its member, and from members of {IAM} RDS takes tokens only, no password. Nothing was "
        f"changed. Let an administrator other than {owner} make the role: CREATE ROLE {GROUP}; "
        f"CREATE ROLE {user} LOGIN; GRANT {GROUP}, {IAM} TO {user}. Then deploy again. Or set "
        "rds_proxy.auth to 'secret'"
    )


def turn_out(connection: Connection[Any], user: str) -> None:
    """Take IAM's role away from a user again."""
    _run(connection, "REVOKE {} FROM {}", IAM, user)


def hold(connection: Connection[Any]) -> None:
    """Keep everybody else from changing logins until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def admit(connection: Connection[Any], login: Login, *, like: str | None = None) -> None:
    """Let a login in, new or not, as a member of the group, in one transaction.

    It gets the limit of connections of the user `like`, and the timeouts that `like` has for
    itself, as in a shared database. Raise `LoginError`, before anything is changed, for a role that
    is none of the application's.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                hold(connection)
                _admit(connection, login)
                if like is not None:
                    _take_over_limits(connection, like, login.name)
        except (InternalError_, UniqueViolation, DuplicateObject):
            if not tries_left:
                raise
            sleep(PAUSE)
        else:
            return


def _admit(connection: Connection[Any], login: Login) -> None:
    _refuse_unbound(connection, login.name)
    _refuse_stranger(connection, login)
    _create(connection, GROUP, can_login=False)
    if not login.borrowed:
        _let_in(connection, login)
    elif not exists(connection, login.name):
        _lend(connection, login)
    if not is_member(connection, login.name, GROUP):
        _run(connection, "GRANT {} TO {}", GROUP, login.name)


def _refuse_stranger(connection: Connection[Any], login: Login) -> None:
    """Raise for a role that is there and is none of the application's."""
    ours = login.borrowed or not exists(connection, login.name)
    if not ours and not is_member(connection, login.name, GROUP):
        raise LoginError(
            f"the role {login.name!r} exists and is none of the application's, whose users are "
            f"members of {GROUP}: drop it, or name another user in the secret"
        )


def _refuse_unbound(connection: Connection[Any], name: str) -> None:
    """Raise `UnboundLoginError` where row-level security does not bind a login, or it can end that.

    The login may take the rights of each role of which it is a member, directly or not, and of the
    group's. On PostgreSQL 16 and newer a membership can be without INHERIT and without SET; it is
    refused all the same, as its ADMIN OPTION gives both.
    """
    found = connection.execute(UNBOUND, {"login": name, "group": GROUP, "powerful": list(POWERFUL)})
    row = found.fetchone()
    if row is None:
        return
    path, why = row
    if path == [name]:
        what, remedy = f"it {why}", "G"
    else:
        shown = " → ".join(path if path[0] == name else [name, *path])
        what = f"it has the rights of {path[-1]} by membership ({shown}), which {why}"
        remedy = f"{_remedy(path)}, or g"
    raise UnboundLoginError(
        f"the application logs in as {name}, which row-level security does not bind: {what}. Every "
        f"caller could see everybody's rows. {remedy}ive the application a user of its own"
    )


UNBOUND = """
WITH RECURSIVE held(role, path) AS (
    SELECT oid, ARRAY[rolname::text] FROM pg_roles WHERE rolname IN (%(login)s, %(group)s)
    UNION
    SELECT roleid, path || rolname::text
    FROM held JOIN pg_auth_members ON member = role JOIN pg_roles ON pg_roles.oid = roleid
), database AS (
    SELECT oid FROM pg_database WHERE datname = current_database()
), judged AS (
    SELECT path, CASE
        WHEN rolsuper THEN 'is a superuser'
        WHEN rolname = current_user THEN 'is the owner, which makes roles and tables'
        WHEN rolbypassrls THEN 'has BYPASSRLS'
        WHEN rolcreaterole THEN 'has CREATEROLE'
        WHEN rolreplication THEN 'has REPLICATION'
        WHEN rolname = ANY (%(powerful)s) THEN 'reaches past what was granted'
        WHEN rolname = %(login)s THEN (
            SELECT format('owns the table %%s, whose policies it can switch off', oid::regclass)
            FROM pg_class WHERE relowner = role AND relrowsecurity LIMIT 1
        )
        ELSE (
            SELECT 'owns ' || pg_describe_object(classid, objid, objsubid) FROM pg_shdepend
            WHERE refclassid = 'pg_authid'::regclass AND refobjid = role AND deptype = 'o'
                AND (
                    dbid = (SELECT oid FROM database)
                    OR classid = 'pg_database'::regclass AND objid = (SELECT oid FROM database)
                )
            ORDER BY classid <> 'pg_class'::regclass, objid LIMIT 1
        )
    END AS why
    FROM held JOIN pg_roles ON oid = role
)
SELECT path, why FROM judged WHERE why IS NOT NULL ORDER BY cardinality(path), path LIMIT 1
"""
"""The shortest way from the login or the group to a role that the policies do not bind.

A table's owner can switch its policies off, the owner of a function that they call can change it,
and the owner of a schema can put a table of its own into the place of another: so a role that owns
anything here is one. Tables of the login's own are its own affair, unless they have policies.
"""


def _remedy(path: list[str]) -> str:
    if len(path) == 1:
        return f"Take that from {path[0]}"
    return f'Take the membership away (REVOKE "{path[1]}" FROM "{path[0]}")'


def _refuse_neighbour(connection: Connection[Any]) -> None:
    """Raise where the group has rights in another database: its members would log in there too."""
    found = connection.execute(
        "SELECT datname FROM pg_database, aclexplode(datacl) AS granted"
        " JOIN pg_roles ON pg_roles.oid = granted.grantee"
        " WHERE rolname = %s AND datname <> current_database() ORDER BY datname",
        [GROUP],
    ).fetchone()
    if found is not None:
        raise NeighbourError(
            f"the role {GROUP} has rights in the database {found[0]!r} of this server too, and "
            "roles are the server's: the users of each would log in to the other. Give each "
            f"lambda-pg a server of its own; if {found[0]!r} is not in use any more: REVOKE ALL ON "
            f'DATABASE "{found[0]}" FROM {GROUP}'
        )


def is_member(connection: Connection[Any], name: str, group: str) -> bool:
    """Tell whether a role is there and was made a member of a group."""
    found = connection.execute(
        "SELECT FROM pg_auth_members"
        " JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid"
        " WHERE member.rolname = %s AND grouped.rolname = %s",
        [name, group],
    )
    return found.fetchone() is not None


def exists(connection: Connection[Any], name: str) -> bool:
    """Tell whether there is a role of that name."""
    found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
    return found.fetchone() is not None


def _create(connection: Connection[Any], name: str, *, can_login: bool) -> None:
    found = connection.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [name])
    row = found.fetchone()
    if row == (can_login,):
        return
    verb = sql.SQL("CREATE ROLE {} {}" if row is None else "ALTER ROLE {} {}")
    kind = sql.SQL("LOGIN" if can_login else "NOLOGIN")
    connection.execute(verb.format(sql.Identifier(name), kind))


def _let_in(connection: Connection[Any], login: Login) -> None:
    _create(connection, login.name, can_login=True)
    if login.password is None:
        _let_in_by_iam(connection, login.name)
        return
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    make = _verifier if login.many_rounds else _cheap_verifier
    verifier = make(connection, login.name, login.password)
    connection.execute(statement.format(sql.Identifier(login.name), verifier))
    if is_member(connection, login.name, IAM):
        _run(connection, "REVOKE {} FROM {}", IAM, login.name)


def _lend(connection: Connection[Any], login: Login) -> None:
    """Make a role of somebody else's, once: from then on its password is theirs to change."""
    password = login.password or ""
    if not connection.info.host.endswith(NEON):
        password = _verifier(connection, login.name, password)
    statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(login.name), password))


def _cheap_verifier(connection: Connection[Any], name: str, password: str) -> str:
    """Make a verifier of one hash round for a password that a machine made.

    libpq takes the number of rounds from what the server reports of the session, from PostgreSQL 16
    on. The rounds make guessing slower, which such a password does not need, and are more than half
    of what a direct login costs its client (docs/decisions/0020).
    """
    if connection.info.server_version < SETS_ROUNDS or not is_machine_made(password):
        return _verifier(connection, name, password)
    connection.execute("SET LOCAL scram_iterations = 1")
    verifier = _verifier(connection, name, password)
    connection.execute("SET LOCAL scram_iterations TO DEFAULT")
    return verifier


def is_machine_made(password: str) -> bool:
    """Tell whether a password looks like those that the project's stacks and rotations make."""
    return bool(MACHINE_MADE.fullmatch(password)) and len(set(password)) >= FEWEST_CHARACTERS


def _verifier(connection: Connection[Any], name: str, password: str) -> str:
    """Make what is sent in the password's place: statements may be logged."""
    return connection.pgconn.encrypt_password(
        password.encode(), name.encode(), b"scram-sha-256"
    ).decode()


def _let_in_by_iam(connection: Connection[Any], name: str) -> None:
    if is_member(connection, name, IAM):
        return
    if exists(connection, IAM):
        _run(connection, "GRANT {} TO {}", IAM, name)
    else:
        logger.warning(
            "this server has no role %s, so %s cannot log in by IAM: it is not RDS", IAM, name
        )


def _open_database(connection: Connection[Any], *, shared: bool) -> None:
    """Let the group in, and nobody else unless the database is shared."""
    database = connection.info.dbname
    if not shared:
        _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)
        if exists(connection, PROXY):
            _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, PROXY)
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, GROUP)
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}", GROUP)


def _limit(connection: Connection[Any], timeouts: Timeouts, whose: sql.Composable) -> None:
    """Set timeouts, on the whole database wherever that may be: new logins have them then."""
    limits = {
        "statement_timeout": timeouts.statement,
        "lock_timeout": timeouts.lock,
        "idle_in_transaction_session_timeout": timeouts.idle_in_transaction,
    }
    if connection.info.server_version >= LIMITS_TRANSACTIONS:
        limits["transaction_timeout"] = timeouts.transaction
    for name, seconds in limits.items():
        _set(connection, whose, name, f"{seconds}s")
    if connection.info.server_version >= CHECKS_CLIENTS:
        _set(connection, whose, *CLIENT_CHECK)


def _limit_connections(connection: Connection[Any], limit: int) -> None:
    """Limit the connections of each of the application's users, both of a rotation's among them.

    PostgreSQL counts every backend of a user, also those whose client has gone.
    """
    members = connection.execute(
        "SELECT member.rolname FROM pg_auth_members"
        " JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid"
        " WHERE grouped.rolname = %s AND member.rolcanlogin AND member.rolconnlimit <> %s"
        " ORDER BY member.rolname",
        [GROUP, limit],
    )
    for (name,) in members.fetchall():
        try:
            with connection.transaction():
                _limit_user(connection, name, limit)
        except InsufficientPrivilege as error:
            logger.warning(
                "the role %s keeps its limit of connections, since only who made it may set that "
                "(%s): let it be set by ALTER ROLE %s CONNECTION LIMIT %d",
                name,
                error,
                name,
                limit,
            )


def _limit_user(connection: Connection[Any], name: str, limit: int) -> None:
    statement = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}")
    connection.execute(statement.format(sql.Identifier(name), sql.Literal(limit)))


def _limit_login(connection: Connection[Any], timeouts: Timeouts, login: Login) -> None:
    """Set timeouts for one user; a rotation takes them over for the other one."""
    try:
        with connection.transaction():
            _limit(connection, timeouts, _in_database(connection, login.name))
    except InsufficientPrivilege as error:
        if not login.borrowed and login.password is not None:
            raise
        logger.warning(
            "the role %s has no timeouts, since only who made it may set them (%s): let them be "
            "set by ALTER ROLE %s SET statement_timeout = '%ds' and so on",
            login.name,
            error,
            login.name,
            timeouts.statement,
        )


def _take_over_limits(connection: Connection[Any], like: str, name: str) -> None:
    """Set for a user the limits that another one has for itself, on the server and here."""
    limited = connection.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [like])
    for (limit,) in limited.fetchall():
        _limit_user(connection, name, limit)
    found = connection.execute(
        "SELECT unnest(setconfig) FROM pg_db_role_setting"
        " JOIN pg_roles ON pg_roles.oid = setrole JOIN pg_database ON pg_database.oid = setdatabase"
        " WHERE rolname = %s AND datname = current_database()",
        [like],
    )
    for (setting,) in found.fetchall():
        parameter, _, value = setting.partition("=")
        if parameter.endswith("_timeout") or parameter == CLIENT_CHECK[0]:
            _set(connection, _in_database(connection, name), parameter, value)


def _database(connection: Connection[Any]) -> sql.Composed:
    return sql.SQL("DATABASE {}").format(sql.Identifier(connection.info.dbname))


def _in_database(connection: Connection[Any], name: str) -> sql.Composed:
    return sql.SQL("ROLE {} IN {}").format(sql.Identifier(name), _database(connection))


def _set(connection: Connection[Any], whose: sql.Composable, name: str, value: str) -> None:
    statement = sql.SQL("ALTER {} SET {} = {}")
    connection.execute(statement.format(whose, sql.Identifier(name), value))


def _run(connection: Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
