"""Roles, the application's login and the database's timeouts.

A deployment sets all of them again; a rotation lets one login in. Both work over psycopg alone.

The master user of RDS is not a superuser. It has CREATEROLE and owns the database. That is enough
on PostgreSQL 15 and, where the creator of a role gets its ADMIN OPTION, on 16 and newer.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import sleep
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.errors import DuplicateObject, InsufficientPrivilege, InternalError_, UniqueViolation

from .level_names import LEVELS

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
    clients that may reject fewer (docs/decisions/0020). `group` is the application's or a trust
    level's (`group_of`).
    """

    name: str
    password: str | None = field(default=None, repr=False)
    borrowed: bool = False
    many_rounds: bool = False
    group: str = GROUP

    def __post_init__(self) -> None:
        """Raise `LoginError`: PostgreSQL treats an empty password as none."""
        if not self.name:
            raise LoginError(f"{self.whose} login has no user: write one into its secret")
        if self.password == "":
            raise LoginError(
                f"{self.whose} user {self.name!r} has an empty password, which PostgreSQL "
                "treats as none: write one into its secret"
            )

    @property
    def whose(self) -> str:
        """Name its owner in a message."""
        return "the application's" if self.group == GROUP else f"the group {self.group}'s"


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


class LevelLoginError(LoginError):
    """A trust level's login has more rights than its level."""


class OwnerLockedOutError(LoginError):
    """RDS would reject the owner's password, and the owner has no other way to log in."""


class NeighbourError(ValueError):
    """Another database of the server uses the application's group."""


def group_of(level: str) -> str:
    """Name the group of a trust level."""
    return f"lambda_pg_sql_{level}"


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
        login = read_login()
        newcomer = admit_safely(connection, login, owner_by_token=owner_by_token)
        if login_limit is not None and not login.borrowed:
            _limit_connections(connection, login_limit)
        _open_database(connection, shared=shared)
        if shared:
            _limit_login(connection, timeouts, login)
        else:
            set_timeouts(connection, timeouts, _database(connection))
        return newcomer


def admit_safely(
    connection: Connection[Any], login: Login, *, owner_by_token: bool = False
) -> str | None:
    """Admit a login under the lock; return its name if this made it a member of rds_iam."""
    refuse_neighbour(connection, login.group)
    known, owner = is_member(connection, login.name, IAM), owner_is_of_iam(connection)
    admit(connection, login)
    if not owner_by_token and not owner and owner_is_of_iam(connection):
        raise OwnerLockedOutError(_locked_out(connection.info.user, login))
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
        login = read_login()
        refuse_neighbour(connection, login.group)
        admit(connection, login)
        let_connect(connection, login.group)


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


def _locked_out(owner: str, login: Login) -> str:
    user, group = login.name, login.group
    return (
        f"granting {IAM} to {user} would lock the owner {owner} out: {owner} created that role, so "
        f"it is a member of it, and RDS accepts no password of members of {IAM}. Nothing was "
        f"changed. Let an administrator other than {owner} create the role: CREATE ROLE {group}; "
        f"CREATE ROLE {user} LOGIN; GRANT {group}, {IAM} TO {user}. Then deploy again. Or set "
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

    It gets the connection limit of the user `like`, which is of the same group, and the timeouts
    that `like` itself has, as in a shared database. Raise `LoginError`, before any change, for a
    role that does not belong to the application or to the trust level.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                hold(connection)
                if like is not None:
                    _refuse_stranger(connection, replace(login, name=like))
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
    refuse_unbound(connection, login)
    _refuse_stranger(connection, login)
    _create(connection, login.group, can_login=False)
    if not login.borrowed:
        _let_in(connection, login)
    elif not exists(connection, login.name):
        _lend(connection, login)
    if not is_member(connection, login.name, login.group):
        _run(connection, "GRANT {} TO {}", login.group, login.name)


def _refuse_stranger(connection: Connection[Any], login: Login) -> None:
    """Raise `LoginError` for an existing role that does not belong to the application."""
    ours = login.borrowed or not exists(connection, login.name)
    if not ours and not is_member(connection, login.name, login.group):
        raise LoginError(
            f"the role {login.name!r} exists and does not belong to the application: it is not a "
            f"member of {login.group}. Drop it, or name another user in the secret"
        )


def refuse_unbound(connection: Connection[Any], login: Login) -> None:
    """Raise `UnboundLoginError` if row-level security does not bind a login, or it can change that.

    Raise `LevelLoginError` for a trust level's login that has any right but its group's.

    The login can use the rights of every role of which it or the group is a member, directly or
    not. A membership without INHERIT and SET (PostgreSQL 16 and newer) is refused too, since its
    ADMIN OPTION gives both.
    """
    row = find_power(connection, login.name, login.group)
    if row is None:
        return
    name, (path, why) = login.name, row
    if path == [name]:
        what, remedy = f"it {why}", "G"
    else:
        shown = " → ".join(path if path[0] == name else [name, *path])
        what = f"it has the rights of {path[-1]} by membership ({shown}), which {why}"
        remedy = f"{_remedy(path)}, or g"
    if login.group != GROUP:
        raise LevelLoginError(
            f"/sql logs in as {name}, which has more rights than its group {login.group}: {what}. "
            f"{remedy}ive the trust level a separate user"
        )
    raise UnboundLoginError(
        f"the application logs in as {name}, which row-level security does not bind: {what}. Every "
        f"caller could see everybody's rows. {remedy}ive the application a separate user"
    )


def find_power(connection: Connection[Any], name: str, group: str) -> tuple[list[str], str] | None:
    """Return the path to a role that a login of a group must not have, and the reason; or None."""
    groups = [GROUP, *map(group_of, LEVELS)]
    asked = {
        "login": name,
        "group": group,
        "powerful": list(POWERFUL),
        "others": [each for each in groups if each != group],
        "only": None if group == GROUP else [name, group, IAM],
    }
    path_and_why: tuple[list[str], str] | None = connection.execute(UNBOUND, asked).fetchone()
    return path_and_why


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
        WHEN rolname = ANY (%(others)s) THEN 'is the group of other logins'
        WHEN rolname <> ALL (%(only)s::text[]) THEN 'is not a role of its trust level'
        WHEN %(only)s::text[] IS NOT NULL AND rolcreatedb THEN 'has CREATEDB'
        WHEN rolname = %(login)s THEN (
            SELECT format('owns the table %%s, whose policies it can switch off', oid::regclass)
            FROM pg_class WHERE relowner = role AND relpersistence <> 't'
                AND (relrowsecurity OR %(only)s::text[] IS NOT NULL) LIMIT 1
        )
        ELSE (
            SELECT 'owns ' || pg_describe_object(classid, objid, objsubid) FROM pg_shdepend
            WHERE refclassid = 'pg_authid'::regclass AND refobjid = role AND deptype = 'o'
                AND classid NOT IN ('pg_largeobject'::regclass, 'pg_default_acl'::regclass)
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
bound either. Every member of a group can make large objects and default privileges for it, which
no policy depends on: they must not stop a deployment. Tables that the application's login itself
owns are allowed, unless they have policies. A trust level's login (`only`) owns no table and is a
member of its group alone.
"""


def _remedy(path: list[str]) -> str:
    if len(path) == 1:
        return f"Remove that from {path[0]}"
    return f'Revoke the membership (REVOKE "{path[1]}" FROM "{path[0]}")'


def refuse_neighbour(connection: Connection[Any], group: str) -> None:
    """Raise if a group has rights in another database: its members could log in there too."""
    found = find_neighbour(connection, group)
    if found is not None:
        raise NeighbourError(
            f"the role {group} also has rights in the database {found!r} of this server, so the "
            "users of each database could log in to the other. Use a separate server for each "
            f"lambda-pg; if {found!r} is no longer in use: REVOKE ALL ON "
            f'DATABASE "{found}" FROM {group}'
        )


def find_neighbour(connection: Connection[Any], group: str) -> str | None:
    """Return the name of another database in which a group has rights, or None."""
    found = connection.execute(
        "SELECT datname FROM pg_database, aclexplode(datacl) AS granted"
        " JOIN pg_roles ON pg_roles.oid = granted.grantee"
        " WHERE rolname = %s AND datname <> current_database() ORDER BY datname",
        [group],
    ).fetchone()
    return None if found is None else str(found[0])


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
            "this server is not RDS (it has no role %s), so %s cannot log in by IAM", IAM, name
        )


def _open_database(connection: Connection[Any], *, shared: bool) -> None:
    """Let the group connect, and no other role unless the database is shared."""
    database = connection.info.dbname
    if not shared:
        _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", database)
        if exists(connection, PROXY):
            _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", database, PROXY)
    let_connect(connection, GROUP)
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}", GROUP)


def let_connect(connection: Connection[Any], group: str) -> None:
    """Let the members of a group connect to the database."""
    _run(connection, "GRANT CONNECT ON DATABASE {} TO {}", connection.info.dbname, group)


def set_timeouts(connection: Connection[Any], timeouts: Timeouts, whose: sql.Composable) -> None:
    """Set timeouts on a database or a role: new sessions have them."""
    for name, value in settings_of(connection, timeouts).items():
        _set(connection, whose, name, value)


def settings_of(connection: Connection[Any], timeouts: Timeouts) -> dict[str, str]:
    """Return the server's settings for timeouts, and how often it looks for a client."""
    settings = {
        "statement_timeout": f"{timeouts.statement}s",
        "lock_timeout": f"{timeouts.lock}s",
        "idle_in_transaction_session_timeout": f"{timeouts.idle_in_transaction}s",
    }
    if connection.info.server_version >= LIMITS_TRANSACTIONS:
        settings["transaction_timeout"] = f"{timeouts.transaction}s"
    if connection.info.server_version >= CHECKS_CLIENTS:
        settings |= dict([CLIENT_CHECK])
    return settings


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
                limit_user(connection, name, limit)
        except InsufficientPrivilege as error:
            logger.warning(
                "the role %s keeps its connection limit, as only its creator can change it (%s): "
                "have it changed by ALTER ROLE %s CONNECTION LIMIT %d",
                name,
                error,
                name,
                limit,
            )


def limit_user(connection: Connection[Any], name: str, limit: int) -> None:
    """Set the number of connections that a user may have; -1 is no limit."""
    statement = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}")
    connection.execute(statement.format(sql.Identifier(name), sql.Literal(limit)))


def _limit_login(connection: Connection[Any], timeouts: Timeouts, login: Login) -> None:
    """Set timeouts for one user; a rotation copies them to the other one."""
    try:
        with connection.transaction():
            set_timeouts(connection, timeouts, in_database(connection, login.name))
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
        limit_user(connection, name, limit)
    found = connection.execute(
        "SELECT unnest(setconfig) FROM pg_db_role_setting"
        " JOIN pg_roles ON pg_roles.oid = setrole JOIN pg_database ON pg_database.oid = setdatabase"
        " WHERE rolname = %s AND datname = current_database()",
        [like],
    )
    for (setting,) in found.fetchall():
        parameter, _, value = setting.partition("=")
        if parameter.endswith("_timeout") or parameter == CLIENT_CHECK[0]:
            _set(connection, in_database(connection, name), parameter, value)


def _database(connection: Connection[Any]) -> sql.Composed:
    return sql.SQL("DATABASE {}").format(sql.Identifier(connection.info.dbname))


def in_database(connection: Connection[Any], name: str) -> sql.Composed:
    """Name a role in this database, for ALTER … SET."""
    return sql.SQL("ROLE {} IN {}").format(sql.Identifier(name), _database(connection))


def _set(connection: Connection[Any], whose: sql.Composable, name: str, value: str) -> None:
    statement = sql.SQL("ALTER {} SET {} = {}")
    connection.execute(statement.format(whose, sql.Identifier(name), value))


def _run(connection: Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
