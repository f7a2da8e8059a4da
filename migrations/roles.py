"""Roles, the application's login and the database's timeouts.

A deployment sets all of them again; a rotation lets one login in. Both work over psycopg alone.

The master user of RDS is not a superuser. It has CREATEROLE and owns the database. That is enough
on PostgreSQL 15 and, where the creator of a role gets its ADMIN OPTION, on 16 and newer.
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
"""The role that has the grants and is in the policies; it cannot log in, so logins can change."""

IAM = "rds_iam"
"""RDS's role whose members log in with IAM tokens only."""

PROXY = "rdsproxyadmin"
"""RDS Proxy's role, which must connect to the database even if PUBLIC may not."""

NEON = ".neon.tech"
"""Hosts to which a password is sent in clear text: Neon rejects a verifier."""

POWERFUL = (
    *("pg_read_all_data", "pg_write_all_data"),
    *("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"),
    *("rds_superuser", "rds_replication"),
)
"""Predefined roles that can reach more than the application's grants: tables without policies, the
server's files and programs, the stream of all changes. pg_monitor sees statements, but no rows."""

LOCK = 0x6C616D6264617072
"""Key of the advisory lock, 'lambdapr' as a number. Without it a rotation and a deployment that
change the same role would fail with "tuple concurrently updated"."""

TRIES = 20
"""Attempts to change roles: the server has them, but the lock works within one database only."""

PAUSE = 0.05
"""Seconds between two attempts, in which the other database's transaction can end."""

LIMITS_TRANSACTIONS = 170000
"""The first server version that has transaction_timeout."""

CHECKS_CLIENTS = 140000
"""The first server version that has client_connection_check_interval."""

CLIENT_CHECK = ("client_connection_check_interval", "100ms")
"""How often a running statement checks whether its client is still connected.

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

    A `borrowed` login belongs to somebody else: if it exists, its password and its LOGIN do not
    change. With `many_rounds` its password is hashed in as many rounds as RFC 7677 requires, for
    clients that may reject fewer (docs/decisions/0020).
    """

    name: str
    password: str | None = field(default=None, repr=False)
    borrowed: bool = False
    many_rounds: bool = False

    def __post_init__(self) -> None:
        """Raise `LoginError`: PostgreSQL treats an empty password as none."""
        if not self.name:
            raise LoginError("the application's login has no user: write one into its secret")
        if self.password == "":
            raise LoginError(
                f"the application's user {self.name!r} has an empty password, which PostgreSQL "
                "treats as none: write one into its secret"
            )


@dataclass(frozen=True)
class Timeouts:
    """Limits of every session of the database, in seconds; 0 is no limit.

    PostgreSQL has one for whole transactions since version 17.
    """

    statement: int
    lock: int
    idle_in_transaction: int
    transaction: int = 0


class LoginError(ValueError):
    """The application cannot or must not use this login."""


class UnboundLoginError(LoginError):
    """Row-level security would not restrict the application's user."""


class OwnerLockedOutError(LoginError):
    """RDS would reject the owner's password, and the owner has no other way to log in."""


class NeighbourError(ValueError):
    """Another database of the server uses the application's group."""


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

    Return the user that this made a member of rds_iam, or None. If the owner became a member too,
    RDS would reject the owner's password: raise `OwnerLockedOutError` unless the owner can log in
    by token (`owner_by_token`).

    The login is read under the lock: else a rotation could end in between, and an outdated password
    would be set. In a database that is `shared`, nothing changes for others: it stays open to the
    same roles, and the limits are set for the login only. `login_limit` is the number of
    connections that each of the application's users may have: -1 is no limit, None changes nothing.
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
    """Create a login that is needed before the migration; raise as `prepare` does.

    It can connect; the migration does the rest. This waits `patience` seconds for the lock: the
    database's own limits, which an earlier migration may have set, are for requests.
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
(PostgreSQL, is_member_of_role_nosuper). pg_has_role treats superusers as members of all roles."""


def _locked_out(owner: str, user: str) -> str:
    return (
        f"granting {IAM} to {user} would lock the owner {owner} out: {owner} created that role, so "
        f"it is a member of it, and RDS accepts no password of members of {IAM}. Nothing was "
        f"changed. Let an administrator other than {owner} create the role: CREATE ROLE {GROUP}; "
        f"CREATE ROLE {user} LOGIN; GRANT {GROUP}, {IAM} TO {user}. Then deploy again. Or set "
        "rds_proxy.auth to 'secret'"
    )


def turn_out(connection: Connection[Any], user: str) -> None:
    """Revoke rds_iam from a user."""
    _run(connection, "REVOKE {} FROM {}", IAM, user)


def hold(connection: Connection[Any]) -> None:
    """Take the lock for changes of logins, until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def admit(connection: Connection[Any], login: Login, *, like: str | None = None) -> None:
    """Create or change a login, as a member of the group, in one transaction.

    It gets the connection limit of the user `like`, and the timeouts that `like` itself has, as in
    a shared database. Raise `LoginError`, before any change, for a role that does not belong to the
    application.
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
    """Raise `LoginError` for an existing role that does not belong to the application."""
    ours = login.borrowed or not exists(connection, login.name)
    if not ours and not is_member(connection, login.name, GROUP):
        raise LoginError(
            f"the role {login.name!r} exists and does not belong to the application: it is not a "
            f"member of {GROUP}. Drop it, or name another user in the secret"
        )


def _refuse_unbound(connection: Connection[Any], name: str) -> None:
    """Raise `UnboundLoginError` if row-level security does not bind a login, or it can change that.

    The login can use the rights of every role of which it or the group is a member, directly or
    not. A membership without INHERIT and SET (PostgreSQL 16 and newer) is refused too, since its
    ADMIN OPTION gives both.
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
        f"caller could see everybody's rows. {remedy}ive the application a separate user"
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
"""The shortest path of memberships from the login or the group to a role that is not bound.

The owner of a table can switch its policies off, the owner of a function that policies call can
change it, and the owner of a schema can replace its tables. So a role that owns one of these is not
bound either. Tables that the login itself owns are allowed, unless they have policies.
"""


def _remedy(path: list[str]) -> str:
    if len(path) == 1:
        return f"Remove that from {path[0]}"
    return f'Revoke the membership (REVOKE "{path[1]}" FROM "{path[0]}")'


def _refuse_neighbour(connection: Connection[Any]) -> None:
    """Raise if the group has rights in another database: its members could log in there too."""
    found = connection.execute(
        "SELECT datname FROM pg_database, aclexplode(datacl) AS granted"
        " JOIN pg_roles ON pg_roles.oid = granted.grantee"
        " WHERE rolname = %s AND datname <> current_database() ORDER BY datname",
        [GROUP],
    ).fetchone()
    if found is not None:
        raise NeighbourError(
            f"the role {GROUP} also has rights in the database {found[0]!r} of this server, so the "
            "users of each database could log in to the other. Use a separate server for each "
            f"lambda-pg; if {found[0]!r} is no longer in use: REVOKE ALL ON "
            f'DATABASE "{found[0]}" FROM {GROUP}'
        )


def is_member(connection: Connection[Any], name: str, group: str) -> bool:
    """Tell whether a role exists and is a direct member of a group."""
    found = connection.execute(
        "SELECT FROM pg_auth_members"
        " JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid"
        " WHERE member.rolname = %s AND grouped.rolname = %s",
        [name, group],
    )
    return found.fetchone() is not None


def exists(connection: Connection[Any], name: str) -> bool:
    """Tell whether a role exists."""
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
    """Create a borrowed role, once; afterwards only its owner changes its password."""
    password = login.password or ""
    if not connection.info.host.endswith(NEON):
        password = _verifier(connection, login.name, password)
    statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(login.name), password))


def _cheap_verifier(connection: Connection[Any], name: str, password: str) -> str:
    """Return a verifier of one hash round for a machine-made password.

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
    """Return the verifier that is sent instead of the password: statements may be logged."""
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
    """Let the group connect, and no other role unless the database is shared."""
    database = connection.info.dbname
    if not shared:
        _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)
        if exists(connection, PROXY):
            _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, PROXY)
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, GROUP)
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}", GROUP)


def _limit(connection: Connection[Any], timeouts: Timeouts, whose: sql.Composable) -> None:
    """Set timeouts on a database or a role: new sessions have them."""
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
    """Limit the connections of each application user, including both users of a rotation.

    PostgreSQL counts every backend of a user, also those whose client has disconnected. The owner
    is not such a user: from PostgreSQL 16 on it is a member of the group that it has created.
    """
    members = connection.execute(
        "SELECT member.rolname FROM pg_auth_members"
        " JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " JOIN pg_roles AS grouped ON grouped.oid = pg_auth_members.roleid"
        " WHERE grouped.rolname = %s AND member.rolcanlogin AND member.rolconnlimit <> %s"
        " AND member.rolname <> CURRENT_USER"
        " ORDER BY member.rolname",
        [GROUP, limit],
    )
    for (name,) in members.fetchall():
        try:
            with connection.transaction():
                _limit_user(connection, name, limit)
        except InsufficientPrivilege as error:
            logger.warning(
                "the role %s keeps its connection limit, as only its creator can change it (%s): "
                "have it changed by ALTER ROLE %s CONNECTION LIMIT %d",
                name,
                error,
                name,
                limit,
            )


def _limit_user(connection: Connection[Any], name: str, limit: int) -> None:
    statement = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}")
    connection.execute(statement.format(sql.Identifier(name), sql.Literal(limit)))


def _limit_login(connection: Connection[Any], timeouts: Timeouts, login: Login) -> None:
    """Set timeouts for one user; a rotation copies them to the other one."""
    try:
        with connection.transaction():
            _limit(connection, timeouts, _in_database(connection, login.name))
    except InsufficientPrivilege as error:
        if not login.borrowed and login.password is not None:
            raise
        logger.warning(
            "the role %s has no timeouts, since only its creator can set them (%s): have them set "
            "by ALTER ROLE %s SET statement_timeout = '%ds' and so on",
            login.name,
            error,
            login.name,
            timeouts.statement,
        )


def _take_over_limits(connection: Connection[Any], like: str, name: str) -> None:
    """Copy the limits of one user to another, those of the server and of this database."""
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
