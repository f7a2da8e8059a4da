"""Has PgBouncer log in at the database before clients come.

PgBouncer opens one server connection after the other, and each step of a login takes a round of its
loop. At the start all of them take tenths of a second. Among the logins of many clients they take
many seconds, and statements that wait for them are rejected. The health check succeeds only after
this; it does not depend on whether the database is up.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from .secret_store import Content
from .session import SessionError
from .settings import Settings
from .transaction import Transaction

# How many server connections each current user has before clients come, and how long that may take.
WARM_CONNECTIONS = 10
WARM_SECONDS = 2.0

log = logging.getLogger("supervisor")


def warm_up(settings: Settings, content: Content) -> None:
    """Open server connections of the current users and leave them open."""
    names = list(_logins(settings, content))
    # All at once: one after the other, they would share one server connection.
    with ThreadPoolExecutor(len(names)) as logins:
        found = logins.map(lambda login: _begin(settings, *login), names)
        opened = [transaction for transaction in found if transaction is not None]
    for transaction in opened:
        transaction.close()
    log.info("%d of %d server connections are open", len(opened), len(names))


def _logins(settings: Settings, content: Content) -> Iterator[tuple[str, str]]:
    """Yield a user and a name of the database for each connection; the current users come first."""
    names = [
        (
            settings.database_name,
            content.users[: len(settings.user_secret_arns)],
            settings.default_pool_size,
            min(settings.max_db_connections, settings.max_client_conn // 2),
        )
    ]
    if (sql := settings.sql) is not None:
        users = content.sql_users[: len(sql.secret_arns)]
        names.append((sql.database, users, sql.pool_size, sql.max_db_connections))
    for database, users, pool_size, most in names:
        count = min(pool_size, max(most // max(len(users), 1), 1), WARM_CONNECTIONS)
        yield from ((user.name, database) for user in users for _ in range(count))


def _begin(settings: Settings, user: str, database: str) -> Transaction | None:
    try:
        return Transaction(settings.socket, user, database, WARM_SECONDS)
    except SessionError:
        return None
